"""What can go wrong with predictions and labels. Apart from the rest, which takes long to import."""

from __future__ import annotations


class FeedbackDownError(RuntimeError):
    """The database does not answer, is full, or refuses; nothing was stored. `lasting`: trying again will not help."""

    def __init__(self, text: str, lasting: bool = False) -> None:
        super().__init__(text)
        self.lasting = lasting


class FeedbackFullError(RuntimeError):
    """There is no room for another label, or nobody takes them any more."""
