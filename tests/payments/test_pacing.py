"""The pace of requests: one bucket for all, one for each endpoint, and what a key is allowed."""

from __future__ import annotations

import threading
import time

import pytest

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
    gateway = StripeGateway(stripe.api_key, stripe.api_base, requests_per_second=1, sleep=waits)
    gateway.ping()
    list(gateway.subscriptions())
    assert sum(waits) == pytest.approx(1, abs=0.5)
