"""`flexpay rewards` as its users run it: credit given, spent, taken back, settled; each a run with an audit entry."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.cli.conftest import Flexpay
from tests.commands import Said


def _done(said: Said) -> Said:
    assert said.code == 0, said.out + said.err
    assert "Traceback" not in said.err
    return said


def _refused(said: Said, sentence: str) -> None:
    assert said.code == 2, said.out + said.err
    assert sentence in said.err
    assert "Traceback" not in said.err


@pytest.mark.usefixtures("kept_running")
def test_a_customers_credit_at_the_terminal(flexpay: Flexpay, tmp_path: Path) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    # A customer for a year and a month.
    since = datetime.now(UTC) - timedelta(days=400)
    (folder / "plans.csv").write_text("plan,name\npro,Pro\n")
    (folder / "customers.csv").write_text("customer_id,currency\nc1,EUR\nc2,EUR\n")
    (folder / "subscription_events.csv").write_text(
        "subscription_id,customer_id,occurred_at,event,plan,payment_frequency,amount_minor,quantity,currency\n"
        f"s1,c1,{since.isoformat()},started,pro,MONTHLY,1000,1,EUR\n"
    )
    (folder / "rewards.csv").write_text(
        "customer_id,occurred_at,kind,amount_minor,expires_at\n"
        f"c2,{since.isoformat()},earned,70,{(since + timedelta(days=30)).isoformat()}\n"
    )
    _done(flexpay("deploy", "--yes", "--json"))
    _done(flexpay("import", str(folder), "--yes", "--json"))

    earned = ("rewards", "earn", "c1", "--amount", "500", "--reason", "sorry")
    assert _done(flexpay(*earned, "--plan", "--json")).json == {
        "customer": "c1", "amount_minor": 500, "balance_minor": 500,
    }  # fmt: skip
    _refused(flexpay(*earned), "add --yes")
    credit = _done(flexpay(*earned, "--yes", "--json")).json["entry_id"]
    referral = ("rewards", "earn", "c1", "--referred", "c2", "--reason", "brought c2", "--yes", "--json")
    assert _done(flexpay(*referral)).json["balance_minor"] == 1000
    _refused(flexpay(*referral), "'c2' was referred already, by 'c1'")
    spent = ("rewards", "spend", "c1", "--reason", "invoice 17", "--yes", "--json", "--amount")
    assert _done(flexpay(*spent, "200")).json["balance_minor"] == 800
    _refused(flexpay(*spent, "801"), "has 800 minor units of credit left")
    back = ("rewards", "reverse", str(credit), "--reason", "a mistake", "--yes", "--json")
    assert _done(flexpay(*back)).json["amount_minor"] == 300
    _refused(flexpay("rewards", "earn", "c1", "--reason", "?", "--yes"), "Name the amount")
    listed = _done(flexpay("rewards", "list", "c1", "--json")).json
    assert [(row["kind"], row["source"], row["amount_minor"], row["left_minor"]) for row in listed] == [
        ("earned", "bonus", 500, 0), ("earned", "referral", 500, 500), ("spent", None, 200, None),
        ("reversed", None, 300, None),
    ]  # fmt: skip

    programme = {"FLEXPAY_LOYALTY_SINCE": since.isoformat()}
    would = _done(flexpay("rewards", "settle", "--plan", "--json", **programme)).json
    assert (would["granted"]["amount_minor"], would["expired"]["amount_minor"]) == ({"EUR": 500}, {"EUR": 70})
    settled = _done(flexpay("rewards", "settle", "--yes", "--json", **programme)).json
    assert (settled["enabled"], settled["granted"], settled["reversed"], settled["expired"]) == (True, 1, 0, 1)
    assert settled["granted_minor"] == {"EUR": 500}
    again = _done(flexpay("rewards", "settle", "--yes", "--json", **programme)).json
    assert (again["granted"], again["expired"]) == (0, 0)
    assert _done(flexpay("rewards", "balance", "c1", "--json")).json["balance_minor"] == 1000

    _done(flexpay("rollback", "rewards", "--yes", "--json"))
    _refused(flexpay(*spent, "1"), "'rewards' is off")
    assert _done(flexpay("rewards", "settle", "--yes", "--json")).json["enabled"] is False
    trail = {(entry["action"], entry["outcome"]) for entry in _done(flexpay("audit", "--json")).json}
    assert trail >= {
        ("earn reward", "done"), ("spend reward", "done"), ("reverse reward", "done"), ("settle rewards", "done"),
    }  # fmt: skip
