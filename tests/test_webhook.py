"""Alerts are posted in order, again where that may help, and never at the cost of whoever has them posted."""

from __future__ import annotations

import logging
import threading
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest

from reference_apps.asking import wait_until
from reference_apps.webhook import Webhook, WebhookError, address
from stages import alerts
from tests.conftest import PATIENCE_S
from tests.listening import Receiver, listening


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A webhook is asked through a proxy where the environment has one, which does not know this machine's ports."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")


SETTINGS = alerts.Webhook(url_env="HOOK", timeout_s=5.0, retries_max=2, queue_length_max=2)


def posted(receiver: Receiver, *messages: dict[str, Any]) -> list[dict[str, Any]]:
    """What arrives of messages that are offered one after the other, the webhook being closed after the last."""
    with listening(receiver) as url, Webhook(f"{url}/a-secret", SETTINGS, first_pause_s=0.01) as webhook:
        for n, message in enumerate(messages, start=1):
            assert webhook.offer(message)
            assert wait_until(lambda least=n: len(receiver.taken) >= least, PATIENCE_S)  # type: ignore[misc]
        wait_until(lambda: len(receiver.taken) > 3, 0.3)
    return receiver.taken


def test_messages_arrive_in_order() -> None:
    assert posted(Receiver(), {"alert": "a"}, {"alert": "b"}) == [{"alert": "a"}, {"alert": "b"}]


def test_a_receiver_that_fails_is_asked_again_but_not_for_ever(caplog: pytest.LogCaptureFixture) -> None:
    assert posted(Receiver(500, 429, 200), {"alert": "a"}) == [{"alert": "a"}] * 3
    assert posted(Receiver(503), {"alert": "a"}) == [{"alert": "a"}] * 3
    assert [record.levelno for record in caplog.records][-3:] == [logging.WARNING, logging.WARNING, logging.ERROR]
    assert "a-secret" not in caplog.text
    assert all("a-secret" not in str(vars(record)) for record in caplog.records)


def test_a_receiver_that_says_no_is_not_asked_again() -> None:
    assert posted(Receiver(400), {"alert": "a"}) == [{"alert": "a"}]


@pytest.mark.parametrize("status", [301, 302, 303, 307])
def test_a_receiver_that_is_elsewhere_has_not_taken_it(status: int, caplog: pytest.LogCaptureFixture) -> None:
    """Followed, the POST would be a GET without the message, and the 200 for that a delivery."""
    asked: list[str] = []

    def elsewhere(request: BaseHTTPRequestHandler, _: bytes) -> int:
        asked.append(request.command)
        return status if request.path == "/a-secret" else 200

    with listening(elsewhere, location="/new") as url:
        hook = Webhook(f"{url}/a-secret", SETTINGS)
        hook._send({"alert": "a"})
    assert asked == ["POST"]
    assert (caplog.records[-1].levelno, caplog.records[-1].fields["why"]) == (logging.ERROR, f"status {status}")  # type: ignore[attr-defined]


def test_a_receiver_that_hangs_holds_up_nobody(caplog: pytest.LogCaptureFixture) -> None:
    inside, over = threading.Event(), threading.Event()

    def hangs(*_: object) -> int:
        inside.set()
        over.wait(PATIENCE_S)
        return 200

    with listening(hangs) as url, Webhook(url, SETTINGS) as webhook:
        assert webhook.offer({"alert": "on its way"})
        assert inside.wait(PATIENCE_S)
        assert [webhook.offer({"alert": str(n)}) for n in range(4)] == [True, True, False, False]
        over.set()
    assert [record.fields["alert"] for record in caplog.records if "too many" in record.message] == ["2", "3"]  # type: ignore[attr-defined]


def test_nobody_listens(caplog: pytest.LogCaptureFixture) -> None:
    with listening(Receiver()) as url:
        pass
    with Webhook(f"{url}/a-secret", SETTINGS, first_pause_s=0.01) as webhook:
        webhook.offer({"alert": "a"})
        assert wait_until(lambda: any(record.levelno == logging.ERROR for record in caplog.records), PATIENCE_S)
    assert caplog.records[-1].fields == {"alert": "a", "why": "ConnectionRefusedError", "tries": 3}  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("value", "got"), [(None, "nothing"), ("ftp://x/y", "something else"), ("http://", "something else")]
)
def test_an_address_that_is_none_is_told_without_it(value: str | None, got: str) -> None:
    with pytest.raises(WebhookError) as caught:
        address(SETTINGS, {} if value is None else {"HOOK": value})
    assert str(caught.value) == (
        "alerts.webhook.url_env: HOOK must hold an address that begins with http:// or https://, "
        f"got {got}. Nobody would hear of alerts. Set the variable, or leave [alerts.webhook] out."
    )
