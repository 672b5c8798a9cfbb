"""One customer's wishes at the terminal: pauses, and changes of plan and payment frequency."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.cli.conftest import Flexpay, Said

SUBSCRIPTIONS = {"s1": ("basic", "MONTHLY", 1000), "s2": ("basic", "YEARLY", 10_000), "s3": ("pro", "MONTHLY", 3000)}


def _company(folder: Path, began: datetime) -> None:
    folder.mkdir()
    (folder / "plans.csv").write_text("plan,name\nbasic,Basic\npro,Pro\n")
    (folder / "customers.csv").write_text("customer_id,currency,time_zone\nc1,EUR,Europe/Berlin\n")
    header = "subscription_id,customer_id,occurred_at,event,plan,payment_frequency,amount_minor,quantity,currency\n"
    rows = [
        f"{ref},c1,{began.isoformat()},started,{plan},{frequency},{amount},1,EUR\n"
        for ref, (plan, frequency, amount) in SUBSCRIPTIONS.items()
    ]
    (folder / "subscription_events.csv").write_text(header + "".join(rows))


def _done(said: Said) -> Said:
    assert said.code == 0, said.out + said.err
    assert "Traceback" not in said.err
    return said


def _refused(said: Said, *words: str) -> None:
    assert said.code == 2, said.out + said.err
    assert "Traceback" not in said.err + said.out
    for word in words:
        assert word in said.err, said.err


def test_a_customers_wishes(flexpay: Flexpay, tmp_path: Path) -> None:
    began = datetime.now(UTC).replace(microsecond=0) - timedelta(days=40)
    _company(tmp_path / "company", began)
    _done(flexpay("deploy", "--yes", "--json"))
    _done(flexpay("import", str(tmp_path / "company"), "--yes", "--json"))

    plan = _done(flexpay("pause", "schedule", "s1", "--days", "10", "--plan", "--json")).json
    assert (plan["kind"], plan["subscription_status"]) == ("customer", "paused")
    begun = _done(flexpay("pause", "schedule", "s1", "--days", "10", "--reason", "holiday", "--yes", "--json")).json
    assert (begun["state"], begun["reason"], begun["subscription_status"]) == ("active", "holiday", "paused")
    later = ("2090-03-29", "2090-04-10")
    put = _done(flexpay("pause", "schedule", "s1", "--from", later[0], "--until", later[1], "--yes", "--json")).json
    # Midnight in Berlin, before and after the clock changes.
    assert put["starts_at"].startswith("2090-03-2") and put["ends_at"] == "2090-04-09T22:00:00+00:00"
    _refused(flexpay("pause", "schedule", "s1", "--from", later[0], "--days", "3", "--yes"), put["pause_ref"])
    listed = _done(flexpay("pause", "list", "--json")).json
    assert [(row["pause_ref"], row["state"]) for row in listed] == [
        (begun["pause_ref"], "active"), (put["pause_ref"], "scheduled"),
    ]  # fmt: skip
    assert _done(flexpay("pause", "cancel", put["pause_ref"], "--yes", "--json")).json["state"] == "canceled"
    ended = _done(flexpay("pause", "end", "s1", "--yes", "--json")).json
    assert (ended["state"], ended["subscription_status"]) == ("completed", "active")

    quote = _done(flexpay("frequency", "quote", "s3", "--to", "monthly", "--to-plan", "basic", "--json")).json
    assert (quote["from_plan"], quote["to_plan"], quote["amount_minor"]) == ("pro", "basic", 1000)
    assert quote["credit_minor"] > quote["debit_minor"] > 0 > quote["net_minor"]
    changed = _done(flexpay("frequency", "change", "s3", "--to-plan", "basic", "--yes", "--json")).json
    assert (changed["to_plan"], len(changed["next_payments"])) == ("basic", 3)
    wish = ("s3", "--to", "YEARLY", "--when", "period-end")
    shown = _done(flexpay("frequency", "change", *wish, "--plan"))
    assert "100.00 EUR" in shown.out
    scheduled = _done(flexpay("frequency", "change", *wish, "--yes", "--json")).json
    assert (scheduled["credit_minor"], scheduled["debit_minor"]) == (0, 0)
    waiting = _done(flexpay("frequency", "cancel", "s3", "--plan", "--json")).json
    assert waiting["effective_at"] == scheduled["next_payments"][0]
    _done(flexpay("frequency", "cancel", "s3", "--yes", "--json"))

    trail = _done(flexpay("audit", "--subject", "s3", "--json")).json
    assert {(entry["action"], entry["outcome"]) for entry in trail} >= {
        ("change frequency", "done"), ("cancel frequency change", "done"),
    }  # fmt: skip
    for bad, words in (
        (("pause", "schedule", "s1", "--from", "2026-02-30", "--days", "3", "--yes"), ("2026-02-30",)),
        (("pause", "list", "s9"), ("s9",)),
        (("pause", "cancel", "p9", "--yes"), ("p9", "flexpay pause list")),
        (("frequency", "quote", "s2", "--to", "WEEKLY"), ("no WEEKLY price in EUR",)),
    ):
        _refused(flexpay(*bad), *words)
    _refused(flexpay("pause", "schedule", "s1", "--days", "8", "--yes", FLEXPAY_PAUSE_MAX_DAYS="7"), "at most 7 days")


@pytest.mark.parametrize("group", [("pause", "schedule"), ("frequency", "change"), ("frequency", "quote")])
def test_help_shows_examples(flexpay: Flexpay, group: tuple[str, str]) -> None:
    said = flexpay(*group, "--help")
    assert said.code == 0
    assert f"flexpay {' '.join(group)} sub-17" in said.out


def test_a_frequency_that_there_is_not(flexpay: Flexpay) -> None:
    _refused(flexpay("frequency", "quote", "s1", "--to", "DAILY"), "DAILY")
