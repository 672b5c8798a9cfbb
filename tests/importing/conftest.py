"""A small directory of the data contract, of which each test spoils or adds what it is about."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from flexpay_pipelines.billing.importing import ImportResult, import_directory
from flexpay_pipelines.clock import FixedClock
from flexpay_pipelines.database import Connection

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
TABLES = (
    "plans", "customers", "plan_prices", "subscriptions", "subscription_events", "subscription_pauses", "payments",
    "reward_entries", "fx_rates",
)  # fmt: skip
FILES = {
    "plans.csv": "plan,name\npro,Pro\nbasic,\n",
    "customers.csv": (
        "customer_id,currency,country,email,time_zone,stripe_customer_id\n"
        "c1,EUR,DE,one@example.com,Europe/Berlin,\n"
        "c2,USD,,,,cus_2\n"
    ),
    "subscription_events.csv": (
        "subscription_id,customer_id,occurred_at,event,plan,payment_frequency,amount_minor,quantity,currency,recorded_at\n"
        "s1,c1,2026-01-31T09:00:00+01:00,started,pro,MONTHLY,1999,1,EUR,2026-01-31T09:00:05+01:00\n"
        "s2,c2,2026-01-10T00:00:00Z,trial_started,basic,WEEKLY,250,3,USD,\n"
        "s2,c2,2026-01-24T00:00:00Z,started,basic,WEEKLY,250,3,USD,\n"
        "s2,c2,2026-02-20T00:00:00Z,paused,basic,WEEKLY,250,3,USD,\n"
    ),
    "pauses.csv": (
        "pause_id,subscription_id,starts_at,ends_at,kind,reason,state\n"
        "p1,s2,2026-02-20T00:00:00Z,2026-03-20T00:00:00Z,customer,holiday,\n"
        "p2,s1,2026-04-01T00:00:00Z,,admin,,\n"
    ),
    "payments.csv": (
        "payment_id,subscription_id,occurred_at,amount_minor,currency,outcome,failure_class,failure_code,attempt\n"
        "m1,s1,2026-01-31T08:00:00Z,1999,EUR,failed,issuer_decline,insufficient_funds,1\n"
        "m2,s1,2026-02-01T08:00:00Z,1999,EUR,succeeded,,,2\n"
        "m3,s2,2026-01-24T00:00:00Z,750,USD,succeeded,,,\n"
    ),
    "rewards.csv": (
        "customer_id,occurred_at,kind,amount_minor,expires_at\n"
        "c1,2026-02-01T00:00:00Z,earned,500,2027-02-01T00:00:00Z\n"
        "c1,2026-02-01T00:00:00Z,earned,500,2027-02-01T00:00:00Z\n"
        "c1,2026-02-15T00:00:00Z,spent,800,\n"
    ),
    "fx_rates.csv": "date,currency,reporting_currency,rate\n2026-01-31,USD,EUR,0.9215\n",
}


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Path]:
    """Write the small directory; a keyword replaces a file's text (`payments="…"`), adds rows (`payments_more="…"`) or,
    as None, leaves the file out."""

    def write(**changes: str | bytes | None) -> Path:
        folder = tmp_path / f"directory-{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        for name, text in FILES.items():
            stem = name.removesuffix(".csv")
            wanted = changes.get(stem, text)
            more = changes.get(f"{stem}_more", "")
            if wanted is not None:
                data = wanted if isinstance(wanted, bytes) else wanted.encode()
                (folder / name).write_bytes(data + (more if isinstance(more, bytes) else (more or "").encode()))
        return folder

    return write


@pytest.fixture
def load(billing: Connection) -> Callable[..., ImportResult]:
    """Import a directory at NOW."""

    def run(folder: Path, *, now: datetime = NOW, dry_run: bool = False) -> ImportResult:
        return import_directory(billing, folder, clock=FixedClock(now), progress=lambda _: None, dry_run=dry_run)

    return run


@pytest.fixture
def contents(billing: Connection) -> Callable[[], dict[str, list[dict[str, Any]]]]:
    """Every row of every table that an import fills, identities left out."""

    def read() -> dict[str, list[dict[str, Any]]]:
        found = {}
        for table in TABLES:
            rows = billing.execute(f"SELECT * FROM billing.{table}").fetchall()  # noqa: S608
            found[table] = sorted(rows, key=repr)
        return found

    return read
