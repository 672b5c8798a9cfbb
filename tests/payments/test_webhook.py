"""The webhook as Stripe sees it: a served process, raw bodies, signatures, and 2xx only for what is committed."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from flexpay_pipelines.clock import FixedClock
from flexpay_pipelines.database import Connection
from flexpay_pipelines.payments import StripeGateway, poll_events
from flexpay_pipelines.payments.webhook import LARGEST_BODY
from flexpay_pipelines.sandbox.stripe_server import StripeSandbox
from flexpay_pipelines.sandbox.stripe_webhooks import signature
from tests.commands import FLEXPAY, environment
from tests.payments.conftest import NOW, quiet, stripe_id

SECRET, NEXT_SECRET = "whsec_the_first", "whsec_the_next"
PATIENCE = 60.0


class Served:
    """A running `flexpay webhook`."""

    def __init__(self, process: subprocess.Popen[str], url: str, log: Path) -> None:
        self.process = process
        self.url = url
        self.log = log

    def post(self, payload: bytes, signed: str | None = None) -> httpx.Response:
        headers = {} if signed is None else {"Stripe-Signature": signed}
        return httpx.post(f"{self.url}/stripe/webhook", content=payload, headers=headers, timeout=30)

    def send(self, event: Any, secret: str = SECRET) -> httpx.Response:
        payload = json.dumps(event, indent=1).encode()
        return self.post(payload, signature(payload, secret, int(time.time())))


def _free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _await(true: Callable[[], bool]) -> None:
    until = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < until
        time.sleep(0.02)


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/healthz", timeout=30).status_code in (200, 503)
    except httpx.TransportError:
        return False


def _variables(billing_url: str, stripe: StripeSandbox) -> dict[str, str]:
    return {
        "FLEXPAY_BILLING_URL": billing_url, "FLEXPAY_CONTROL_URL": billing_url,
        "FLEXPAY_STRIPE_API_KEY": stripe.api_key, "FLEXPAY_STRIPE_API_BASE": stripe.api_base,
    }  # fmt: skip


@pytest.fixture
def served(tmp_path: Path, company: Connection, billing_url: str, stripe: StripeSandbox) -> Iterator[Served]:
    port, log = _free_port(), tmp_path / "webhook.log"
    variables = {**_variables(billing_url, stripe), "FLEXPAY_STRIPE_WEBHOOK_SECRET": f"{SECRET}, {NEXT_SECRET}"}
    with log.open("w") as file:
        process = subprocess.Popen(
            [FLEXPAY, "webhook", "--port", str(port)], env=environment(tmp_path, **variables), cwd=tmp_path,
            stdout=file, stderr=file, text=True,
        )  # fmt: skip
    one = Served(process, f"http://127.0.0.1:{port}", log)
    try:
        _await(lambda: process.poll() is not None or _answers(one.url))
        assert process.poll() is None, log.read_text()
        yield one
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        stripe.set_webhook(None)


def _stored(billing: Connection) -> int:
    row = billing.execute("SELECT count(*) AS n FROM billing.stripe_events").fetchone()
    assert row is not None
    return int(row["n"])


def _event(gateway: StripeGateway, kind: str) -> Any:
    return next(event for page in gateway.events(since=None, types=[kind]) for event in page)


def test_an_event_is_committed_before_it_is_answered_and_what_follows_comes_at_once(
    served: Served, company: Connection, gateway: StripeGateway, stripe: StripeSandbox
) -> None:
    stripe.set_decline_rate(1)
    stripe.advance(NOW + timedelta(days=1, hours=1))
    answer = served.send(_event(gateway, "invoice.payment_failed"))
    assert (answer.status_code, answer.json()) == (200, {"received": True, "new": True})
    assert _stored(company) == 1

    def statuses() -> set[str]:
        return {row["status"] for row in company.execute("SELECT status FROM billing.subscriptions")}

    _await(lambda: statuses() == {"active", "past_due"})
    row = company.execute("SELECT failure_class FROM billing.payments").fetchone()
    assert row is not None
    assert row["failure_class"] in ("issuer_decline", "block")
    assert served.send(_event(gateway, "invoice.payment_failed")).json() == {"received": True, "new": False}
    stripe.set_decline_rate(0)
    stripe.advance(NOW + timedelta(days=2, hours=1))
    assert served.send(_event(gateway, "invoice.paid"), NEXT_SECRET).status_code == 200, (
        "either secret, while both hold"
    )
    _await(lambda: statuses() == {"active"})


def test_what_stripe_did_not_sign_is_refused_and_stores_nothing(
    served: Served, company: Connection, gateway: StripeGateway, stripe: StripeSandbox
) -> None:
    stripe.advance(NOW + timedelta(days=2))
    event = _event(gateway, "invoice.paid")
    payload, now = json.dumps(event).encode(), int(time.time())
    tampered = payload.replace(b'"invoice.paid"', b'"invoice.paid" ')
    unsigned = [None, "t=1,v1=00", signature(payload, "whsec_no", now), signature(payload, SECRET, now - 301)]
    odd = [b"[]", b"\xff", b'{"object": "event"}']
    answers = [
        *(served.post(payload, signed) for signed in unsigned),
        served.post(tampered, signature(payload, SECRET, now)),
        *(served.post(body, signature(body, SECRET, now)) for body in odd),
    ]
    assert [answer.status_code for answer in answers] == [400] * len(answers)
    for answer in answers:
        sentence = answer.json()["error"]
        assert "\n" not in sentence
        assert "whsec" not in sentence
    large = b" " * (LARGEST_BODY + 1)
    assert served.post(large, signature(large, SECRET, now)).status_code == 413
    assert httpx.get(f"{served.url}/stripe/webhook").status_code == 405
    assert _stored(company) == 0
    assert served.post(payload, signature(payload, SECRET, now)).status_code == 200
    assert "whsec" not in served.log.read_text()


def test_events_that_are_not_ours_are_taken_and_forgotten(served: Served, company: Connection) -> None:
    event = {
        "id": "evt_1",
        "object": "event",
        "type": "charge.refunded",
        "created": 1,
        "data": {"object": {"id": "ch_1"}},
    }
    answer = served.send(event)
    assert (answer.status_code, answer.json()["new"], _stored(company)) == (200, False, 0)


def test_while_the_database_is_away_stripe_is_asked_to_come_again(
    served: Served, company: Connection, gateway: StripeGateway, stripe: StripeSandbox
) -> None:
    stripe.advance(NOW + timedelta(days=2))
    event = _event(gateway, "invoice.paid")
    assert httpx.get(f"{served.url}/healthz").json() == {"ok": True}
    company.execute("ALTER TABLE billing.stripe_events RENAME TO away")
    answer = served.send(event)
    assert (answer.status_code, answer.json()) == (
        503, {"error": "The event could not be stored: send it again later."},
    )  # fmt: skip
    company.execute("ALTER TABLE billing.away RENAME TO stripe_events")
    assert served.send(event).status_code == 200
    killed = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'flexpay webhook'"
    company.execute(killed.encode())
    assert served.send(event).json() == {"received": True, "new": False}, "a connection that died is opened anew"


def test_the_sandbox_delivers_all_that_happens(
    served: Served, company: Connection, gateway: StripeGateway, clock: FixedClock, stripe: StripeSandbox
) -> None:
    """Twice and in any order; a poll afterwards finds nothing new."""
    stripe.set_webhook(f"{served.url}/stripe/webhook", secret=SECRET, shuffled=True, repeated=True)
    before = stripe.webhooks()
    stripe.set_decline_rate(0.3)
    stripe.advance(NOW + timedelta(days=8))
    gateway.cancel(stripe_id(company, "s1"), key="end")
    _await(lambda: stripe.webhooks()["waiting"] == 0)
    sent = stripe.webhooks()
    assert sent["failed"] == before["failed"]
    assert sent["delivered"] - before["delivered"] > 40
    done = "SELECT count(*) AS n FROM billing.stripe_events WHERE applied_at IS NULL"
    _await(lambda: company.execute(done.encode()).fetchone() == {"n": 0})
    result = poll_events(company, gateway, clock=clock, apply=lambda *_: None, progress=quiet)
    assert result.received > 10
    assert (result.new, result.payments_recorded) == (0, 0)
    counts = stripe.counts()
    row = company.execute("SELECT count(*) AS n FROM billing.payments").fetchone()
    assert row == {"n": counts["events.invoice.paid"] + counts["events.invoice.payment_failed"]}


def test_a_signal_ends_it_with_grace(served: Served) -> None:
    served.process.send_signal(signal.SIGTERM)
    assert served.process.wait(PATIENCE) == 0
    said = served.log.read_text()
    assert "The webhook has stopped" in said
    assert "Traceback" not in said


def _refused(tmp_path: Path, *arguments: str, **variables: str) -> str:
    done = subprocess.run(
        [FLEXPAY, "webhook", *arguments], env=environment(tmp_path, **variables), cwd=tmp_path, capture_output=True,
        text=True, check=False, timeout=PATIENCE,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


def test_wrong_settings_are_one_sentence(tmp_path: Path, billing_url: str, stripe: StripeSandbox) -> None:
    ours = _variables(billing_url, stripe)
    assert "FLEXPAY_STRIPE_WEBHOOK_SECRET is not set" in _refused(tmp_path, **ours)
    ours["FLEXPAY_STRIPE_WEBHOOK_SECRET"] = SECRET
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        assert "is in use" in _refused(tmp_path, "--port", str(taken.getsockname()[1]), **ours)
    file = tmp_path / "file"
    file.touch()
    assert "is no socket" in _refused(tmp_path, "--socket", str(file), **ours)


def test_it_listens_on_a_unix_socket(tmp_path: Path, billing_url: str, stripe: StripeSandbox) -> None:
    path = Path("/tmp") / f"flexpay-{time.monotonic_ns()}.sock"  # noqa: S108 - a socket's path may not be long
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(path))
    stale.close()
    log = tmp_path / "webhook.log"
    with log.open("w") as file:
        process = subprocess.Popen(
            [FLEXPAY, "webhook", "--socket", str(path)], cwd=tmp_path, stderr=file,
            env=environment(tmp_path, **_variables(billing_url, stripe), FLEXPAY_STRIPE_WEBHOOK_SECRET=SECRET),
        )  # fmt: skip
    try:
        _await(lambda: process.poll() is not None or str(path) in log.read_text())
        assert process.poll() is None, log.read_text()
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), base_url="http://webhook") as client:
            assert client.get("/healthz", timeout=PATIENCE).json() == {"ok": True}
        assert path.stat().st_mode & 0o777 == 0o660
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 0
        assert not path.exists()
    finally:
        process.kill()
        process.wait()
