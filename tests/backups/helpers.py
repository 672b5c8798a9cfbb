"""A small company to back up, and the calls of the room with what each of them is always given."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from psycopg import sql

from flexpay_pipelines.backups import (
    Backup,
    Restore,
    Verification,
    create_backup,
    list_backups,
    restore_backup,
    verify_backup,
)
from flexpay_pipelines.clock import FixedClock
from flexpay_pipelines.database import Connection, opened, with_database

COMPANY = """
INSERT INTO billing.plans (plan, name) VALUES ('basic', 'Basic'), ('pro', 'Pro ✓ "quoted", with\ttab');
INSERT INTO billing.customers (customer_ref, currency, country, email)
SELECT 'c' || i, CASE WHEN i % 3 = 0 THEN 'USD' ELSE 'EUR' END, NULL, 'c' || i || '@example.com'
FROM generate_series(1, 200) AS i;
INSERT INTO billing.subscriptions
    (subscription_ref, customer_id, plan, status, amount_minor, currency, started_at, billing_anchor, payment_frequency)
SELECT 's' || customer_id, customer_id, 'basic', 'active', 990, currency, '2026-01-31 09:00+00', '2026-01-31 09:00+00',
       (ARRAY['WEEKLY', 'MONTHLY', 'YEARLY'])[1 + customer_id % 3]
FROM billing.customers;
UPDATE billing.subscriptions SET status = 'paused', changed_at = '2026-03-01 09:00+00' WHERE subscription_id % 7 = 0;
INSERT INTO billing.payments (payment_ref, subscription_id, occurred_at, amount_minor, currency, outcome, failure_class)
SELECT 'p' || i, s.subscription_id, '2026-02-28 09:00+00'::timestamptz + i * interval '1 minute', 990, s.currency,
       CASE WHEN i % 10 = 0 THEN 'failed' ELSE 'succeeded' END, CASE WHEN i % 10 = 0 THEN 'issuer_decline' END
FROM generate_series(1, 2000) AS i
JOIN billing.subscriptions AS s ON s.subscription_ref = 's' || (1 + i % 200);
INSERT INTO billing.reward_entries (customer_id, occurred_at, kind, amount_minor)
SELECT customer_id, '2026-02-01 09:00+00', 'earned', 500 FROM billing.customers;
"""


@dataclass
class Site:
    """A billing and a control database, folders, tools and a clock: what every call is given, and what it said."""

    billing_url: str
    control_url: str
    billing: Connection
    control: Connection
    home: Path
    tools: Path | None
    clock: FixedClock = field(default_factory=lambda: FixedClock(datetime(2026, 11, 22, 3, tzinfo=UTC)))
    said: list[str] = field(default_factory=list)

    @property
    def folder(self) -> Path:
        """Where backups go."""
        return self.home / "backups"

    @property
    def scratch(self) -> Path:
        """Where proofs are made."""
        return self.home / "scratch"

    @property
    def database(self) -> str:
        """The name of the billing database."""
        return self.billing_url.split("/")[3].split("?")[0]

    def backup(self, url: str | None = None, **given: Any) -> Backup:
        """Make a backup; what is given replaces the usual arguments."""
        usual: dict[str, Any] = {"folder": self.folder, "kind": "manual", "actor": "tester"}
        return create_backup(url or self.billing_url, self.control, **{**usual, **self._tools(), **given})

    def verify(self, backup: Backup) -> Verification:
        """Prove a backup."""
        return verify_backup(self.control, backup.backup_id, scratch_folder=self.scratch, **self._tools())

    def restore(self, backup_id: str | None = None, **given: Any) -> Restore:
        """Restore a backup over the billing database."""
        usual: dict[str, Any] = {"billing_url": self.billing_url, "actor": "tester", "backup_folder": self.folder}
        return restore_backup(self.control, backup_id, **{**usual, **self._tools(), **given})

    def count(self, table: str, url: str | None = None) -> int:
        """How many rows a table of the billing database, or of another one, has now."""
        counting = sql.SQL("SELECT count(*) AS n FROM {}").format(sql.Identifier(*table.split(".")))
        with opened(url or self.billing_url, purpose="test") as connection:
            row = connection.execute(counting).fetchone()
        assert row is not None
        return int(row["n"])

    def beside(self, name: str) -> str:
        """The URL of another database of the billing server."""
        return with_database(self.billing_url, name)

    def databases(self) -> set[str]:
        """The billing database, and those that restores put beside it: its name, shortened, begins theirs."""
        with opened(self.beside("postgres"), purpose="test") as connection:
            rows = connection.execute(
                "SELECT datname FROM pg_database WHERE starts_with(datname, %s)", (self.database[:18],)
            )
            return {row["datname"] for row in rows}

    def nothing_left(self, folder: Path | None = None) -> bool:
        """Whether neither the folder nor the catalog knows of a backup."""
        place = folder or self.folder
        return not (place.exists() and list(place.iterdir())) and list_backups(self.control) == ()

    def _tools(self) -> dict[str, Any]:
        return {"clock": self.clock, "progress": self.said.append, "bin_folder": self.tools}


def spoiled(site: Site) -> Backup:
    """A backup, after which a bad release loses every payment."""
    made = site.backup()
    site.billing.execute("DELETE FROM billing.payments")
    return made


def untouched(site: Site) -> bool:
    """Whether the live database is still the spoiled one, and alone."""
    return site.count("billing.payments") == 0 and site.databases() == {site.database}
