"""The pace of requests: one bucket for all, one for each endpoint, and what a key is allowed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from flexpay_pipelines.database import Connection, connect, opened
from flexpay_pipelines.payments import SharedPace
from flexpay_pipelines.payments.pacing import Pace, allowed_by_key
from flexpay_pipelines.payments.stripe_gateway import StripeGateway
from flexpay_pipelines.sandbox.stripe_server import StripeSandbox
from tests.payments.conftest import NOW

UPDATE, CANCEL = "POST /v1/subscriptions/{id}", "DELETE /v1/subscriptions/{id}"


class Waits(list[float]):
    """Remembers how long was to be waited, and does not wait."""

    def __call__(self, seconds: float) -> None:
        self.append(seconds)


@pytest.mark.parametrize(
    ("key", "allowed"), [("sk_test_a", 25), ("rk_test_a", 25), ("sk_live_a", 100), ("rk_live_a", 100), ("odd", 25)]
)
def test_the_key_decides_where_no_setting_does(key: str, allowed: float) -> None:
    assert allowed_by_key(key) == allowed
    assert StripeGateway(key).requests_per_second == allowed
    assert StripeGateway(key, requests_per_second=7).requests_per_second == 7


def test_requests_follow_each_other_evenly() -> None:
    waits = Waits()
    pace = Pace(5, sleep=waits)
    for _ in range(6):
        pace.wait(UPDATE)
    assert waits == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0], abs=0.05)


def test_an_endpoint_has_a_bucket_inside_that_of_all() -> None:
    waits = Waits()
    pace = Pace(1000, 5, sleep=waits)
    for _ in range(3):
        pace.wait(UPDATE)
    assert max(waits) == pytest.approx(0.4, abs=0.05)
    waits.clear()
    pace.wait(CANCEL)
    assert sum(waits) < 0.1, "another endpoint does not wait behind it"


def test_an_endpoint_cannot_be_faster_than_all_together() -> None:
    waits = Waits()
    pace = Pace(10, 1000, sleep=waits)
    for _ in range(3):
        pace.wait(UPDATE)
    assert max(waits) == pytest.approx(0.2, abs=0.05)


def test_a_stall_is_made_up_for_and_an_idle_hour_is_not() -> None:
    waits = Waits()
    pace = Pace(100, sleep=waits)
    pace.wait(UPDATE)
    time.sleep(0.5)
    for _ in range(20):
        pace.wait(UPDATE)
    assert 8 <= len(waits) <= 11, "a tenth of a second was saved up, no more"


def test_threads_share_the_pace() -> None:
    pace, started = Pace(200), time.monotonic()

    def ask() -> None:
        for _ in range(25):
            pace.wait(UPDATE)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert 80 / 200 <= time.monotonic() - started < 3


def test_pages_are_paced_as_well(stripe: StripeSandbox) -> None:
    stripe.set_clock(NOW)
    waits = Waits()
    gateway = StripeGateway(stripe.api_key, stripe.api_base, requests_per_second=0.1, sleep=waits)
    gateway.ping()
    list(gateway.subscriptions())
    assert sum(waits) == pytest.approx(10, abs=5)


Shared = Callable[[], SharedPace]


@pytest.fixture
def shared(billing_url: str) -> Iterator[Shared]:
    """The pace as another process has it, each on a connection of its own."""
    made: list[SharedPace] = []

    def make() -> SharedPace:
        made.append(SharedPace(partial(connect, billing_url, purpose="stripe pace")))
        return made[-1]

    yield make
    for one in made:
        one.close()


class Slots(list[float]):
    """Remembers when each request might be made, and does not wait."""

    def ask(self, pace: Pace, endpoint: str = UPDATE) -> None:
        waited = len(self)
        pace.wait(endpoint)
        if len(self) == waited:
            self.append(time.monotonic())

    def __call__(self, seconds: float) -> None:
        self.append(time.monotonic() + seconds)

    @property
    def span(self) -> float:
        return max(self) - min(self)


def test_processes_share_one_pace(shared: Shared) -> None:
    slots = Slots()
    paces = [Pace(50, sleep=slots, shared=shared().reserve) for _ in range(3)]
    for _ in range(40):
        for pace in paces:
            slots.ask(pace)
    # 120 requests at 50 a second; what was saved up, 0.1 s, may come on top.
    assert slots.span >= 119 / 50 - 0.12
    # A process that stops leaves no more than its block unused: 5 slots.
    assert slots.span <= 119 / 50 + 3 * 5 / 50 + 0.5


def test_an_endpoints_bucket_is_shared_as_well(shared: Shared) -> None:
    slots = Slots()
    first, second = (Pace(1000, 10, sleep=slots, shared=shared().reserve) for _ in range(2))
    for _ in range(5):
        slots.ask(first)
        slots.ask(second)
    assert slots.span >= 9 / 10 - 0.12
    waits = Waits()
    Pace(1000, 10, sleep=waits, shared=shared().reserve).wait(CANCEL)
    assert sum(waits) < 0.5, "another endpoint does not wait behind it"


def test_a_busy_process_asks_the_database_for_blocks(shared: Shared, billing: Connection) -> None:
    asked: list[int] = []
    one = shared()

    def counting(bucket: str, slots: int, interval: float) -> float | None:
        asked.append(slots)
        return one.reserve(bucket, slots, interval)

    pace = Pace(100, sleep=Waits(), shared=counting)
    for _ in range(100):
        pace.wait(UPDATE)
    assert asked[:5] == [1, 2, 4, 8, 10] or asked[:5] == [2, 4, 8, 10, 10]
    assert len(asked) <= 14
    row = billing.execute("SELECT bucket FROM billing.stripe_pace").fetchall()
    assert row == [{"bucket": "all"}]


def test_threads_of_two_processes_share_the_pace(shared: Shared) -> None:
    paces, started = [Pace(200, shared=shared().reserve) for _ in range(2)], time.monotonic()

    def ask(pace: Pace) -> None:
        for _ in range(25):
            pace.wait(UPDATE)

    threads = [threading.Thread(target=ask, args=(pace,)) for pace in paces for _ in range(2)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert 75 / 200 <= time.monotonic() - started < 5


def test_a_reservation_that_somebody_holds_up_is_not_waited_for(
    shared: Shared, billing: Connection, billing_url: str
) -> None:
    pace = Pace(100, sleep=Waits(), shared=shared().reserve)
    pace.wait(UPDATE)
    with opened(billing_url, purpose="holder") as holder, holder.transaction():
        holder.execute("UPDATE billing.stripe_pace SET next_at = next_at")
        started = time.monotonic()
        for _ in range(50):
            pace.wait(UPDATE)
        assert time.monotonic() - started < 5, "after a quarter of a second it keeps its own pace"


def test_its_own_pace_is_kept_where_the_database_is_away(billing_url: str) -> None:
    waits = Waits()
    away = SharedPace(partial(connect, "postgresql://127.0.0.1:1/nowhere", purpose="stripe pace"))
    pace = Pace(5, sleep=waits, shared=away.reserve)
    for _ in range(4):
        pace.wait(UPDATE)
    assert waits == pytest.approx([0.2, 0.4, 0.6], abs=0.15)


def test_its_own_pace_is_kept_where_the_schema_is_of_an_older_release(shared: Shared, billing: Connection) -> None:
    billing.execute("DROP TABLE billing.stripe_pace")
    waits = Waits()
    pace = Pace(5, sleep=waits, shared=shared().reserve)
    for _ in range(4):
        pace.wait(UPDATE)
    assert waits == pytest.approx([0.2, 0.4, 0.6], abs=0.15)


@pytest.mark.parametrize("off", ["1 day", "-1 day"])
def test_a_clock_that_was_set_neither_stops_nor_rushes_anybody(shared: Shared, billing: Connection, off: str) -> None:
    billing.execute("INSERT INTO billing.stripe_pace VALUES ('all', clock_timestamp() + %s::interval)", (off,))
    slots = Slots()
    pace = Pace(100, sleep=slots, shared=shared().reserve)
    for _ in range(40):
        slots.ask(pace)
    assert 39 / 100 - 0.12 <= slots.span < 2
    assert max(slots) - time.monotonic() < 1
