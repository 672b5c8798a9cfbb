"""The demo company: a made-up subscription business, written as the files of the data contract.

What belongs here: who signs up when, and writing the files. What does not: what customers do (`company_lives`).
The same seed and end give the same bytes.
"""

from __future__ import annotations

import csv
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from flexpay_pipelines.errors import BadInput, disk_errors
from flexpay_pipelines.sandbox.company_catalog import PLACES, PLANS, SEASON, add_months, exchange_rates
from flexpay_pipelines.sandbox.company_lives import Booking, Life, Person, Rows
from flexpay_pipelines.sandbox.company_rewards import reward

FIRST_NAMES = (
    "Ada", "Ben", "Clara", "David", "Emma", "Felix", "Grace", "Hugo", "Ines", "Jonas", "Kenji", "Lena", "Mateo", "Nora",
    "Oscar", "Paula", "Quentin", "Rosa", "Sam", "Tara", "Uma", "Victor", "Wanda", "Yuki", "Zoe",
)  # fmt: skip
LAST_NAMES = (
    "Abe", "Becker", "Costa", "Dubois", "Evans", "Fischer", "Garcia", "Hughes", "Ito", "Jansen", "Keller", "Lopez",
    "Moreau", "Novak", "Olsen", "Peters", "Quinn", "Rossi", "Smith", "Tanaka", "Urban", "Vogel", "Weber", "Young",
)  # fmt: skip
HOURS_AHEAD = 24
SHARE_OF_SECOND_SUBSCRIPTIONS = 0.07
SHARE_OF_SHORT_PAUSES = 0.2
BOOKINGS_AN_HOUR = 8
Cell = str | int


@dataclass(frozen=True, slots=True)
class CompanyFacts:
    """What was written: instants UTC, rows by file, and how many pauses fall due in the 24 hours after `end`."""

    first_day: datetime
    end: datetime
    customers: int
    subscriptions: int
    rows: dict[str, int]
    pauses_due_to_start: int
    pauses_due_to_end: int


def write_company(
    folder: Path,
    *,
    seed: int,
    end: datetime,
    customers: int = 5_000,
    months: int = 18,
    progress: Callable[[str], None] = lambda _: None,
) -> CompanyFacts:
    """Write the files of a company whose history ends at `end` into `folder`, which is made if need be.

    Raises:
        BadInput: no customers, no months, or an end without a time zone.
    """
    if customers < 1 or months < 1 or end.tzinfo is None:
        raise BadInput("A company needs at least one customer, one month, and an end with a time zone.")
    end = end.astimezone(UTC).replace(microsecond=0)
    first = add_months(end, -months)
    progress(f"Inventing {customers} customers and {months} months of their history.")
    people = [_person(seed, number, first, months, end) for number in range(1, customers + 1)]
    rows = Rows()
    subscriptions = _live_all(seed, people, end, rows)
    progress(f"Writing {len(rows.events)} events and {len(rows.payments)} payments.")
    counts: dict[str, int] = {}
    with disk_errors("writing the demo company"):
        folder.mkdir(parents=True, exist_ok=True)
        for name, header, cells in _tables(seed, people, rows, first, end):
            counts[name] = _write(folder / name, header, cells)
    until = end + timedelta(hours=HOURS_AHEAD)
    due_start = sum(1 for start, *_, state in rows.pauses if state == "scheduled" and start <= until)
    due_end = sum(
        1 for _, _, ends, *_, state in rows.pauses if state == "active" and ends is not None and ends <= until
    )
    return CompanyFacts(first, end, customers, subscriptions, counts, due_start, due_end)


def _person(seed: int, number: int, first: datetime, months: int, end: datetime) -> Person:
    rng = random.Random(f"{seed}:person:{number}")  # noqa: S311 - a made-up company, not a secret
    country, zone, currency, _ = rng.choices(PLACES, [share for *_, share in PLACES])[0]
    # The company opened with a crowd and has grown by 3 % a month since, with the seasons.
    crowd = [SEASON[add_months(first, month).month] * 1.03**month * (5 if month == 0 else 1) for month in range(months)]
    begins = add_months(first, rng.choices(range(months), crowd)[0])
    seconds = int((min(add_months(begins, 1), end) - begins).total_seconds())
    email = f"{rng.choice(FIRST_NAMES)}.{rng.choice(LAST_NAMES)}.{number}@example.com".lower()
    signed_up = begins + timedelta(seconds=rng.randrange(seconds))
    return Person(f"cus-{number:06d}", currency, country, email, zone, signed_up)


def _live_all(seed: int, people: Sequence[Person], end: datetime, rows: Rows) -> int:
    """Let everybody live; the number of subscriptions."""
    bookings = _bookings(seed, people, end)
    subscriptions = 0
    for person in people:
        rng = random.Random(f"{seed}:life:{person.ref}")  # noqa: S311
        mark = len(rows.payments)
        number = person.ref.removeprefix("cus-")
        booking = bookings.get(person.ref)
        Life(rng, person, ref=f"sub-{number}-1", end=end, rows=rows, booking=booking).live(person.signed_up)
        subscriptions += 1
        second = person.signed_up + timedelta(days=rng.randint(20, 200), seconds=rng.randint(0, 86_399))
        if rng.random() < SHARE_OF_SECOND_SUBSCRIPTIONS and second <= end:
            Life(rng, person, ref=f"sub-{number}-2", end=end, rows=rows, booking=None).live(second)
            subscriptions += 1
        reward(rng, person, end, rows, range(mark, len(rows.payments)))
    return subscriptions


def _bookings(seed: int, people: Sequence[Person], end: datetime) -> dict[str, Booking]:
    """For each of the hours after `end`, pauses that start and pauses that end in it; for a tenth of the people."""
    rng = random.Random(f"{seed}:bookings")  # noqa: S311
    settled = [person.ref for person in people if person.signed_up < end - timedelta(days=60)]
    chosen = iter(rng.sample(settled, min(len(settled) // 10, BOOKINGS_AN_HOUR * 2 * HOURS_AHEAD)))
    bookings: dict[str, Booking] = {}
    for place, ref in enumerate(chosen):
        due = end + timedelta(hours=place // 2 % HOURS_AHEAD, seconds=rng.randint(1, 3_600))
        if place % 2 == 0:
            # Now and then one that is over within the hours as well.
            length = (
                timedelta(hours=rng.randint(3, 12))
                if rng.random() < SHARE_OF_SHORT_PAUSES
                else timedelta(days=rng.randint(7, 60))
            )
            bookings[ref] = Booking(due, due + length)
        else:
            bookings[ref] = Booking(end - timedelta(days=rng.randint(2, 30), seconds=rng.randint(0, 86_399)), due)
    return bookings


def _tables(
    seed: int, people: Sequence[Person], rows: Rows, first: datetime, end: datetime
) -> Iterator[tuple[str, str, Iterable[Sequence[Cell]]]]:
    """Each file: name, header, rows. Events stand in the order in which they became known, the rest in that of time."""
    yield "plans.csv", "plan,name", [(plan, name) for plan, (name, _, _) in PLANS.items()]
    yield (
        "customers.csv",
        "customer_id,currency,country,email,time_zone",
        [(p.ref, p.currency, p.country, p.email, p.time_zone) for p in people],
    )
    rows.events.sort(key=lambda row: (row[9], row[2], row[0]))
    yield (
        "subscription_events.csv",
        "subscription_id,customer_id,occurred_at,event,plan,payment_frequency,amount_minor,quantity,currency,recorded_at",
        ((*row[:2], row[2].isoformat(), *row[3:9], row[9].isoformat()) for row in rows.events),
    )
    rows.payments.sort()
    yield (
        "payments.csv",
        "payment_id,subscription_id,occurred_at,amount_minor,currency,outcome,failure_class,failure_code,attempt",
        ((f"pay-{number:07d}", row[1], row[0].isoformat(), *row[2:]) for number, row in enumerate(rows.payments, 1)),
    )
    rows.pauses.sort(key=lambda row: (row[0], row[1]))
    yield (
        "pauses.csv",
        "pause_id,subscription_id,starts_at,ends_at,kind,reason,state",
        (
            (f"pause-{number:05d}", row[1], row[0].isoformat(), row[2].isoformat() if row[2] else "", *row[3:])
            for number, row in enumerate(rows.pauses, 1)
        ),
    )
    rows.rewards.sort(key=lambda row: (row[0], row[1], row[2]))
    yield (
        "rewards.csv",
        "customer_id,occurred_at,kind,amount_minor,expires_at",
        ((row[1], row[0].isoformat(), row[2], row[3], row[4].isoformat() if row[4] else "") for row in rows.rewards),
    )
    yield "fx_rates.csv", "date,currency,reporting_currency,rate", exchange_rates(seed, first.date(), end.date())


def _write(path: Path, header: str, cells: Iterable[Sequence[Cell]]) -> int:
    with path.open("w", encoding="utf-8", newline="") as text:
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(header.split(","))
        rows = 0
        for row in cells:
            writer.writerow(row)
            rows += 1
        return rows
