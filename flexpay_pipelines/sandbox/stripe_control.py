"""The sandbox's own controls under /_sandbox/: seed, clock, faults, settings, counts.

What belongs here: what no Stripe has. What does not: Stripe's endpoints (`stripe_http`).
"""

from __future__ import annotations

from flexpay_pipelines.sandbox import stripe_cycles as cycles
from flexpay_pipelines.sandbox.stripe_account import Account, Refused
from flexpay_pipelines.sandbox.stripe_objects import State

REQUEST_FAULTS = (
    "429", "500_before", "500_after", "timeout_before", "timeout_after", "reset_before", "reset_after",
    "duplicate_events", "shuffled_events",
)  # fmt: skip
FAULTS = (*REQUEST_FAULTS, "delayed_events", "release")


def control(account: Account, path: str, asked: State) -> State:
    """Do what a path asks; the answer says what there is now.

    Raises:
        KeyError: no such control, or a value is missing.
    """
    return _CONTROLS[path.removeprefix("/_sandbox/")](account, asked)


def _clear(account: Account, _asked: State) -> State:
    account.store.clear()
    return {}


def _seed(account: Account, asked: State) -> State:
    cycles.seed(account, asked)
    return {}


def _clock(account: Account, asked: State) -> State:
    if "now" in asked:
        account.store.set_setting("clock", int(asked["now"]))
    return {"now": account.now}


def _advance(account: Account, asked: State) -> State:
    happened, reached = cycles.advance(account, int(asked["to"]), most=int(asked["most"]))
    return {"happened": happened, "reached": reached, "now": account.now}


def _fault(account: Account, asked: State) -> State:
    if asked["kind"] not in FAULTS:
        return Refused(f"No such fault: {asked['kind']}").body()
    account.store.order_fault(asked)
    return {}


def _clear_faults(account: Account, _asked: State) -> State:
    for number, _ in account.store.faults():
        account.store.change_fault(number, None)
    return {}


def _settings(account: Account, asked: State) -> State:
    for name in ("seed", "decline_rate", "rate_limit", "webhook"):
        if name in asked:
            account.store.set_setting(name, asked[name])
    return {}


def _counts(account: Account, _asked: State) -> State:
    return dict(account.store.counts())


_CONTROLS = {
    "clear": _clear, "seed": _seed, "clock": _clock, "advance": _advance, "faults": _fault,
    "clear-faults": _clear_faults, "settings": _settings, "counts": _counts,
}  # fmt: skip
