"""A delivering process is killed around every message and request, and relays run against each other: told once."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest

from flexpay_pipelines.clock import FixedClock
from flexpay_pipelines.database import Connection, opened
from flexpay_pipelines.payments import StripeGateway, deliver_commands, link_subscriptions
from flexpay_pipelines.sandbox import Cluster
from flexpay_pipelines.sandbox.stripe_server import StripeSandbox
from tests.conftest import clone, make_template
from tests.killing import KILLED, kill, points_of, wait_until_gone
from tests.payments.conftest import NOW, command, fill, quiet

SUBSCRIPTIONS = 8
MODES = ("collection", "subscription")
Fresh = Callable[[], AbstractContextManager[str]]


def deliver(url: str, key: str, base: str, purpose: str = KILLED) -> None:
    """The work that is killed."""
    gateway = StripeGateway(key, base, max_network_retries=0, requests_per_second=10_000)
    with opened(url, purpose=purpose) as connection:
        deliver_commands(connection, gateway, clock=FixedClock(NOW), progress=quiet)


@pytest.fixture(scope="module", params=MODES)
def outbox_template(cluster: Cluster, request: pytest.FixtureRequest) -> str:
    """A template database whose outbox tells each subscription several things, in an order that matters."""
    template = make_template(cluster, f"delivery_kills_{request.param}", ["core", "frequencies", "pauses", "rewards"])
    with opened(cluster.url(template), purpose="test") as connection:
        fill(connection, SUBSCRIPTIONS)
        for number in range(1, SUBSCRIPTIONS + 1):
            _write_commands(connection, number, request.param)
    return template


def _write_commands(connection: Connection, number: int, mode: str) -> None:
    ref, pause = f"s{number}", f'{{"mode": "{mode}", "resumes_at": "2026-04-01T00:00:00+00:00"}}'
    yearly = '{"plan": "basic", "payment_frequency": "YEARLY", "currency": "EUR", "amount_minor": 41000'
    price = f'{yearly}, "proration": "none"}}'
    command(connection, ref, "pause", pause, 1)
    if number % 2:
        command(connection, ref, "resume", f'{{"mode": "{mode}"}}', 2)
    if number % 4 == 1:
        command(connection, ref, "change_price", price, 3)
    if number % 4 == 2:
        command(connection, ref, "cancel", "{}", 4)


@pytest.fixture
def fresh(cluster: Cluster, outbox_template: str, stripe: StripeSandbox, gateway: StripeGateway) -> Fresh:
    """Makes a copy of the database, and an account at Stripe that knows it, for as long as a block lasts."""

    @contextmanager
    def copy() -> Iterator[str]:
        for url in clone(cluster, outbox_template):
            with opened(url, purpose="test") as connection:
                stripe.seed_from_billing(connection)
                link_subscriptions(connection, gateway, progress=quiet)
            yield url

    return copy


def _told(url: str, stripe: StripeSandbox, gateway: StripeGateway) -> dict[str, Any]:
    """What Stripe was told, what it has become of it, and what the outbox says."""
    events = {name: number for name, number in stripe.counts().items() if name.startswith("events.")}
    subscriptions = {one["id"]: one for page in gateway.subscriptions() for one in page}
    with opened(url, purpose="test") as connection:
        states = connection.execute("SELECT idempotency_key, state FROM billing.stripe_commands ORDER BY 1")
        return {"events": events, "subscriptions": subscriptions, "outbox": list(states)}


def _undisturbed(fresh: Fresh, stripe: StripeSandbox, gateway: StripeGateway) -> tuple[list[str], dict[str, Any]]:
    with fresh() as url:
        points = points_of(deliver, url, stripe.api_key, stripe.api_base)
        told = _told(url, stripe, gateway)
    assert {row["state"] for row in told["outbox"]} == {"delivered"}
    return points, told


def _killed_at(points: list[int], fresh: Fresh, stripe: StripeSandbox, gateway: StripeGateway) -> None:
    _, expected = _undisturbed(fresh, stripe, gateway)
    for at in points:
        with fresh() as url:
            kill(deliver, url, stripe.api_key, stripe.api_base, at=at)
            wait_until_gone(url)
            deliver(url, stripe.api_key, stripe.api_base, "test")
            assert _told(url, stripe, gateway) == expected, f"killed at point {at}"


def test_a_relay_that_is_killed_is_finished_by_the_next(
    fresh: Fresh, stripe: StripeSandbox, gateway: StripeGateway
) -> None:
    points, _ = _undisturbed(fresh, stripe, gateway)
    requests = [number for number, kind in enumerate(points, 1) if kind.endswith("answer")]
    commits = [number for number, kind in enumerate(points, 1) if kind == "after commit"]
    _killed_at(sorted({*requests[:: max(len(requests) // 6, 1)], *commits[-2:]}), fresh, stripe, gateway)


@pytest.mark.soak
def test_a_relay_that_is_killed_at_any_point_is_finished_by_the_next(
    fresh: Fresh, stripe: StripeSandbox, gateway: StripeGateway
) -> None:
    points, _ = _undisturbed(fresh, stripe, gateway)
    _killed_at(list(range(1, len(points) + 1)), fresh, stripe, gateway)


@pytest.mark.parametrize("relays", [2, 4])
def test_relays_at_once_tell_everything_once(
    fresh: Fresh, stripe: StripeSandbox, gateway: StripeGateway, relays: int
) -> None:
    _, expected = _undisturbed(fresh, stripe, gateway)
    forks = multiprocessing.get_context("forkserver")
    with fresh() as url:
        arguments = (url, stripe.api_key, stripe.api_base, "relay")
        processes = [forks.Process(target=deliver, args=arguments) for _ in range(relays)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
            assert process.exitcode == 0
        assert _told(url, stripe, gateway) == expected
