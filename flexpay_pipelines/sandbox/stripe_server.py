"""A stateful stand-in for Stripe on loopback, for exactly the endpoints that we call.

What belongs here: starting it, sharing it, and steering it from outside. What does not: what it answers
(`stripe_http`, `stripe_changes`, `stripe_cycles`), how Stripe is called (`payments.stripe_gateway`).

What it does as Stripe does
- customers, products, prices (also by `lookup_keys`), subscriptions (retrieve, list with paging and `status=all`,
  update, cancel, `/pause`, `/resume` in flexible billing mode), invoices (list, retrieve with expanded payments, pay),
  events (list with `created[…]`, `types`, paging): objects have the shape of the pinned API version.
- A write with an idempotency key happens once; its first answer is given again for 24 hours of the account's clock, an
  error 500 included; the same key with other parameters is an `idempotency_error`. A kill loses nothing.
- 429 beyond `rate_limit` requests a second (100 unless set), `Request-Id` on each answer, 401 for a wrong key, an error
  for a parameter or a path that it does not know.
- Time is the account's own and stands still until it is advanced. Periods are billed at the exact instants at which
  they end: month-end anchors clamp; another interval bills a new period at once unless `trial_end` keeps the date;
  `pause_collection` voids, drafts or writes off instead of collecting, and leaves earlier invoices being retried.
- A failed payment makes a subscription past due and is tried again 1, 3 and 5 days after the first failure; a try that
  somebody asks for (`pay`) does not raise `attempt_count`.
- Each event is posted to the webhook endpoint, where one is set, signed and after the change is committed; what is not
  answered with 2xx is repeated.

Where it is simpler: one item a subscription, cards that always exist, no taxes, coupons, trials ended early, invoice
for the time of a trial, or smart retries; a first payment fails with the decline rate (2 % unless set), a retry with
its fourth root; a subscription that is never paid stays past due. One webhook endpoint, which gets every type of event,
one after the other; five tries within seconds, not three days; signed with the machine's time, as its receiver checks
it. A sandbox that is stopped forgets which webhooks it had still to send. Events are listed for ever, not for 30 days.

Faults that can be ordered (`order_fault`): `429`, `500_before` and `500_after` the effect, `timeout_before` and
`timeout_after`, `reset_before` and `reset_after` (the connection), `duplicate_events` and `shuffled_events` (of a page
of events; webhooks have their own, see `set_webhook`), `delayed_events` (`match`: a type; it is listed some seconds of
the account's clock after it was recorded), and `release`: from an instant on, payments on other intervals than one
month fail with an invalid_request_error, as a faulty release makes them.
"""

from __future__ import annotations

import json
import os
import secrets
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flexpay_pipelines.errors import BadInput, TransientError
from flexpay_pipelines.sandbox.sharing import running_http_server, serve

if TYPE_CHECKING:
    from flexpay_pipelines.database import Connection

WHAT = "the Stripe sandbox"
_MODULE = "flexpay_pipelines.sandbox.stripe_server"
_HAPPENINGS_A_REQUEST = 500
_CONTROL_TIMEOUT_SECONDS = 120


@dataclass(frozen=True, slots=True)
class StripeSandbox:
    """A running sandbox: where it answers, the key it takes, and its controls."""

    api_base: str
    api_key: str

    def seed_from_billing(self, connection: Connection) -> dict[str, int]:
        """Fill the account from the billing database, as everything stands there; what it held before is gone.

        Products, prices, customers, and every subscription that is not canceled, with its pause. Identifiers follow
        from the references, so that the same database gives the same account. Set the clock first.

        Returns:
            How many objects of each kind there are now.
        """
        from flexpay_pipelines.sandbox.stripe_seed import seed_rows  # noqa: PLC0415 - only seeding needs SQL

        self.control("clear")
        for rows in seed_rows(connection):
            self.control("seed", rows)
        return self.counts()

    def now(self) -> datetime:
        """The account's clock."""
        return datetime.fromtimestamp(self.control("clock")["now"], UTC)

    def set_clock(self, instant: datetime) -> None:
        """Set the clock without letting time pass: nothing falls due."""
        self.control("clock", {"now": int(instant.timestamp())})

    def advance(self, to: datetime) -> int:
        """Let time pass: whatever falls due until then happens, in order. Returns how many things happened.

        Raises:
            BadInput: `to` lies before the clock.
        """
        if to < self.now():
            raise BadInput(f"The Stripe sandbox's clock stands at {self.now().isoformat()}: time goes forward only.")
        happened, reached = 0, False
        while not reached:
            done = self.control("advance", {"to": int(to.timestamp()), "most": _HAPPENINGS_A_REQUEST})
            happened, reached = happened + done["happened"], done["reached"]
        return happened

    def order_fault(
        self, kind: str, *, times: int = 1, match: str = "", seconds: float = 0,
        since: datetime | None = None, share: float = 1.0,
    ) -> None:  # fmt: skip
        """Make the next requests fail.

        Args:
            kind: one of those in the module's description.
            times: how many requests.
            match: which requests: the beginning of `METHOD /path` (or of an event's type); all of them when empty.
            seconds: the Retry-After of a 429, for how long a timeout is silent, or how late an event is listed.
            since: from when a `release` fails payments; now when omitted.
            share: the part of the requests that is struck, or of the payments that a `release` fails, 0 to 1.

        Raises:
            BadInput: no such fault.
        """
        start = self.now() if since is None else since
        answer = self.control(
            "faults",
            {"kind": kind, "times": times, "match": match, "seconds": seconds, "share": share,
             "since": int(start.timestamp())},
        )  # fmt: skip
        if "error" in answer:
            raise BadInput(f"The Stripe sandbox knows no fault '{kind}'.")

    def clear_faults(self) -> None:
        """Take back every fault, a release included."""
        self.control("clear-faults")

    def set_decline_rate(self, rate: float) -> None:
        """The part of first payments that the issuer declines, 0 to 1."""
        self.control("settings", {"decline_rate": rate})

    def set_rate_limit(self, requests_per_second: float) -> None:
        """Above how many requests a second the answer is 429."""
        self.control("settings", {"rate_limit": requests_per_second})

    def set_seed(self, seed: int) -> None:
        """Choose other declines than those of seed 0."""
        self.control("settings", {"seed": seed})

    def set_webhook(self, url: str | None, *, secret: str = "", shuffled: bool = False, repeated: bool = False) -> None:
        """Post what happens from now on to an endpoint; None: to nobody any more.

        Args:
            secret: signs each body (`whsec_…`).
            shuffled: what happens in one request is sent in any order.
            repeated: each event is sent twice.
        """
        endpoint = {"url": url, "secret": secret, "shuffled": shuffled, "repeated": repeated}
        self.control("settings", {"webhook": "" if url is None else endpoint})

    def webhooks(self) -> dict[str, int]:
        """How many webhooks were `offered`, `delivered` (answered 2xx), `failed` (given up), and are `waiting`."""
        return {name: int(number) for name, number in self.control("webhooks").items()}

    def counts(self) -> dict[str, int]:
        """How many of each: `subscriptions`, `subscriptions.active`, `events.invoice.paid`, `requests.…` and so on."""
        return {name: int(number) for name, number in self.control("counts").items()}

    def control(self, name: str, asked: dict[str, Any] | None = None) -> dict[str, Any]:
        """One request to the sandbox's own controls.

        Raises:
            TransientError: it does not answer.
        """
        request = urllib.request.Request(  # noqa: S310 - our own server on loopback
            f"{self.api_base}/_sandbox/{name}",
            data=json.dumps(asked or {}).encode(),
            headers={"Authorization": f"Bearer {self.api_key}"},
        )
        try:
            with urllib.request.urlopen(request, timeout=_CONTROL_TIMEOUT_SECONDS) as answer:  # noqa: S310 - as above
                return dict(json.load(answer))
        except (urllib.error.URLError, ConnectionError, TimeoutError) as error:
            raise TransientError(f"The Stripe sandbox does not answer at {self.api_base}: {error}.") from error


@contextmanager
def running_stripe_server(folder: Path, *, port: int | None = None) -> Iterator[StripeSandbox]:
    """Have the sandbox running for as long as the block lasts; shared by `folder`, stopped by its last user.

    Raises:
        BadInput: the port is taken, or the sandbox of this folder already runs on another one.
    """
    with running_http_server(folder, _MODULE, what=WHAT, port=port) as address:
        yield StripeSandbox(api_base=address, api_key=_key(folder))


def _key(folder: Path) -> str:
    path = folder / "api_key"
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return path.read_text()
    with os.fdopen(descriptor, "w") as file:
        file.write(f"sk_test_{secrets.token_hex(12)}")
    return path.read_text()


def main(arguments: Sequence[str]) -> None:
    """The subprocess: serve the account of a folder."""
    from flexpay_pipelines.sandbox.stripe_account import Account  # noqa: PLC0415 - users need not load the server
    from flexpay_pipelines.sandbox.stripe_http import Server  # noqa: PLC0415
    from flexpay_pipelines.sandbox.stripe_store import Store  # noqa: PLC0415

    folder = Path(arguments[0])
    account = Account(Store(folder))
    if account.now == 0:
        account.store.set_setting("clock", int(datetime.now(UTC).timestamp()))
    serve(Server(account, _key(folder)), arguments)


if __name__ == "__main__":
    main(sys.argv[1:])
