"""The demo company: the same bytes for the same seed, a history that holds together, an import that takes it whole."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path

import pytest

from flexpay_pipelines.billing.importing import import_directory
from flexpay_pipelines.clock import FixedClock
from flexpay_pipelines.database import Connection
from flexpay_pipelines.errors import BadInput
from flexpay_pipelines.sandbox.company import CompanyFacts, write_company
from tests.importing.replay import Replayed, instant, read, replay_file

END = datetime(2026, 11, 21, 10, tzinfo=UTC)


@pytest.fixture(scope="module")
def company(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, CompanyFacts]:
    folder = tmp_path_factory.mktemp("company")
    return folder, write_company(folder, seed=7, end=END, customers=1_000)


@pytest.fixture(scope="module")
def states(company: tuple[Path, CompanyFacts]) -> dict[str, Replayed]:
    return replay_file(company[0] / "subscription_events.csv", END)


def digests(folder: Path) -> dict[str, str]:
    return {path.name: sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def test_the_same_seed_and_end_give_the_same_bytes(tmp_path: Path) -> None:
    for name, seed, end in (
        ("one", 3, END), ("two", 3, END), ("seed", 4, END), ("end", 3, END + timedelta(hours=1)),
    ):  # fmt: skip
        write_company(tmp_path / name, seed=seed, end=end, customers=60, months=6)
    assert digests(tmp_path / "one") == digests(tmp_path / "two")
    one = digests(tmp_path / "one")
    assert {name for name, digest in digests(tmp_path / "seed").items() if one[name] == digest} == {"plans.csv"}
    for name in ("subscription_events.csv", "payments.csv", "pauses.csv"):
        assert digests(tmp_path / "end")[name] != one[name]


def test_all_that_people_do_is_there(company: tuple[Path, CompanyFacts]) -> None:
    folder, facts = company
    events = read(folder / "subscription_events.csv")
    assert {row["event"] for row in events} == {
        "started", "trial_started", "changed", "paused", "resumed", "past_due", "recovered", "suspended", "canceled",
    }  # fmt: skip
    assert {row["payment_frequency"] for row in events} == {"WEEKLY", "BIWEEKLY", "MONTHLY", "QUARTERLY", "YEARLY"}
    assert {row["currency"] for row in events} == {"EUR", "USD", "GBP", "JPY"}
    assert {(row["kind"], row["state"]) for row in read(folder / "pauses.csv")} >= {
        ("customer", "scheduled"), ("customer", "active"), ("customer", "completed"), ("customer", "canceled"),
        ("admin", "completed"), ("payment_failure", "completed"),
    }  # fmt: skip
    assert {row["kind"] for row in read(folder / "rewards.csv")} == {"earned", "spent", "expired", "reversed"}
    late = [row for row in events if instant(row["recorded_at"]) - instant(row["occurred_at"]) > timedelta(days=1)]
    assert 0.01 < len(late) / len(events) < 0.06
    per_customer = Counter(ref.rsplit("-", 1)[0] for ref in {row["subscription_id"] for row in events})
    assert max(per_customer.values()) == 2
    assert facts.rows["subscription_events.csv"] == len(events)
    first = [row for row in read(folder / "payments.csv") if row["attempt"] == "1"]
    declined = [row for row in first if row["failure_class"] == "issuer_decline"]
    assert 0.015 < len(declined) / len(first) < 0.035
    assert all(row["email"].endswith("@example.com") for row in read(folder / "customers.csv"))


def test_nothing_happens_after_the_end(company: tuple[Path, CompanyFacts]) -> None:
    folder, facts = company
    for name, column in (
        ("subscription_events.csv", "occurred_at"), ("subscription_events.csv", "recorded_at"),
        ("payments.csv", "occurred_at"), ("rewards.csv", "occurred_at"),
    ):  # fmt: skip
        moments = [instant(row[column]) for row in read(folder / name)]
        assert facts.first_day <= min(moments) <= max(moments) <= END


def test_pauses_agree_with_events_and_status(company: tuple[Path, CompanyFacts], states: dict[str, Replayed]) -> None:
    folder, _ = company
    pauses = [row for row in read(folder / "pauses.csv") if row["kind"] != "payment_failure"]
    begun = {(row["subscription_id"], row["starts_at"]) for row in pauses if row["state"] in ("active", "completed")}
    events = read(folder / "subscription_events.csv")
    assert begun == {(row["subscription_id"], row["occurred_at"]) for row in events if row["event"] == "paused"}
    active = {row["subscription_id"] for row in pauses if row["state"] == "active"}
    assert active == {ref for ref, state in states.items() if state.status == "paused"}
    graces = [
        row for row in read(folder / "pauses.csv") if row["kind"] == "payment_failure" and row["state"] == "active"
    ]
    assert {row["subscription_id"] for row in graces} == {
        ref for ref, state in states.items() if state.status == "past_due"
    }
    for row in pauses:
        starts, ends = instant(row["starts_at"]), instant(row["ends_at"]) if row["ends_at"] else None
        if row["state"] == "scheduled":
            assert starts > END
            assert states[row["subscription_id"]].status == "active"
        if row["state"] == "active":
            assert starts <= END
            assert ends is None or ends > END


def test_nobody_pays_while_paused_or_gone(company: tuple[Path, CompanyFacts]) -> None:
    folder, _ = company
    moments: dict[str, list[tuple[datetime, int, str]]] = {}
    for row in read(folder / "subscription_events.csv"):
        # At the same instant the payment comes after a start and before whatever else it caused.
        rank = 0 if row["event"] == "started" else 2
        moments.setdefault(row["subscription_id"], []).append((instant(row["occurred_at"]), rank, row["event"]))
    for row in read(folder / "payments.csv"):
        moments[row["subscription_id"]].append((instant(row["occurred_at"]), 1, "payment"))
    for ref, timeline in moments.items():
        paying = False
        for _, _, what in sorted(timeline):
            if what == "payment":
                assert paying, ref
            elif what in ("started", "resumed", "recovered"):
                paying = True
            elif what in ("paused", "canceled", "trial_started"):
                paying = False


def test_every_hour_after_the_end_has_pauses_that_start_and_that_end(tmp_path: Path) -> None:
    facts = write_company(tmp_path, seed=1, end=END)
    assert facts.customers == 5_000
    hours: dict[str, Counter[int]] = {"starts_at": Counter(), "ends_at": Counter()}
    for row in read(tmp_path / "pauses.csv"):
        column = {"scheduled": "starts_at", "active": "ends_at"}.get(row["state"])
        if column and row[column] and instant(row[column]) <= END + timedelta(hours=24):
            hours[column][int((instant(row[column]) - END).total_seconds() - 1) // 3600] += 1
    assert set(hours["starts_at"]) == set(hours["ends_at"]) == set(range(24))
    assert sum(hours["starts_at"].values()) == facts.pauses_due_to_start
    assert sum(hours["ends_at"].values()) == facts.pauses_due_to_end
    assert facts.rows["pauses.csv"] > 500


def test_it_imports_whole_and_today_is_what_its_events_amount_to(
    billing: Connection, company: tuple[Path, CompanyFacts], states: dict[str, Replayed]
) -> None:
    folder, facts = company
    result = import_directory(billing, folder, clock=FixedClock(END), progress=lambda _: None)
    assert {name: count.new for name, count in result.files.items()} == facts.rows
    rows = billing.execute("SELECT * FROM billing.subscriptions").fetchall()
    assert len(rows) == facts.subscriptions
    for row in rows:
        replayed = states[row["subscription_ref"]]
        assert {key: row[key] for key in vars(replayed)} == vars(replayed)
        assert (row["next_payment_at"] is None) == (row["status"] in ("canceled", "suspended"))
    again = import_directory(billing, folder, clock=FixedClock(END + timedelta(days=2)), progress=lambda _: None)
    assert {count.new for count in again.files.values()} == {0}


@pytest.mark.parametrize("wrong", [{"customers": 0}, {"months": 0}, {"end": datetime(2026, 1, 1)}])  # noqa: DTZ001
def test_an_impossible_company_is_refused(tmp_path: Path, wrong: dict[str, int | datetime]) -> None:
    arguments = {"seed": 1, "end": END, **wrong}
    with pytest.raises(BadInput, match="at least one customer"):
        write_company(tmp_path, **arguments)  # type: ignore[arg-type]
