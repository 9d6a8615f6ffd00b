"""Rules over the keys of [feedback]: who would write down what was answered, and where labels come from.

Asked by stages/rules.py, like the rules there. A stage without [feedback] breaks none of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from stages import unread
from stages.feedback import LABELLED_MODELS, Feedback
from stages.fleet import Gateway
from stages.problems import Problem, shown
from stages.queue import Queue
from stages.spec import Model


def no_unread_feedback_keys(feedback: Feedback | None) -> Iterator[Problem]:
    """A key that nothing reads would look like a choice."""
    return (key.problem() for key in unread.of_feedback(feedback) if key.given)


def feedback_has_a_gateway(
    feedback: Feedback | None, gateway: Gateway | None, queue: Queue | None
) -> Iterator[Problem]:
    """Answers are written down, and labels taken, by our own gateway."""
    if feedback is None:
        return
    if gateway is None or queue is not None:
        yield Problem(
            "feedback",
            "needs a [gateway] that answers at once",
            "none" if gateway is None else "a [queue]",
            "Nobody would write down what was answered.",
            "Write [gateway] and no [queue], or remove [feedback].",
        )
    elif gateway.engine == "nginx":
        yield Problem(
            "gateway.engine",
            'must be "rung" where there is [feedback]',
            '"nginx"',
            "Nginx keeps no answers, and takes no labels.",
            'Use engine = "rung", or remove [feedback].',
        )


def labels_are_known(feedback: Feedback | None, model: Model) -> Iterator[Problem]:
    """The clients of a load test can only tell what they know."""
    if feedback is not None and feedback.share > 0.0 and model.name not in LABELLED_MODELS:
        yield Problem(
            "feedback.share",
            f"must be 0 for the model {shown(model.name)}",
            f"{feedback.share:g}",
            "Its inputs in a load test are noise, and nobody knows what they show.",
            f"Use share = 0.0, or a model with labels: {', '.join(LABELLED_MODELS)}.",
        )


def labels_come_in_time(feedback: Feedback | None) -> Iterator[Problem]:
    """What comes after the window is kept and not counted."""
    if feedback is not None and feedback.delay_s >= feedback.window_s:
        yield Problem(
            "feedback.delay_s",
            f"must be less than feedback.window_s ({feedback.window_s:g} seconds)",
            f"{feedback.delay_s:g}",
            "Every label would come too late to be counted.",
            "Lower it, or raise feedback.window_s.",
        )


RULES: tuple[Callable[..., Iterator[Problem]], ...] = (
    no_unread_feedback_keys,
    feedback_has_a_gateway,
    labels_are_known,
    labels_come_in_time,
)
