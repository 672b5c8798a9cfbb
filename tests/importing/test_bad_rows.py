"""Each kind of bad row is named by file, line, column and reason, and nothing of its directory is imported."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flexpay_pipelines.billing.import_contract import BadRows
from flexpay_pipelines.billing.importing import ImportResult
from flexpay_pipelines.database import Connection
from flexpay_pipelines.errors import EXIT_BAD_INPUT, BadInput, PermanentError
from flexpay_pipelines.sql import MIGRATIONS_ROOT

Make = Callable[..., Path]
Load = Callable[..., ImportResult]
Contents = Callable[[], dict[str, list[dict[str, Any]]]]

EVENT = "s1,c1,2026-02-01T00:00:00Z,changed,pro,MONTHLY,1999,1,EUR,"
PAYMENT = "m9,s1,2026-02-01T00:00:00Z,1999,EUR,succeeded,,,1"
PAUSE = "p9,s1,2026-02-01T00:00:00Z,2026-02-05T00:00:00Z,customer,,"
REWARD = "c1,2026-02-16T00:00:00Z,earned,100,"
RATE = "2026-02-01,USD,EUR,0.92"


def bad(good: str, old: str, new: str) -> str:
    assert old in good
    return good.replace(old, new) + "\n"


# file, the row that is added to it, the column and a part of the reason
CASES = [
    ("plans", " pro,x\n", "plan", "white space"),
    ("plans", ",x\n", "plan", "is empty"),
    ("plans", "pro,Other\n", "name", "contradicts 'Pro', which line 2 has"),
    ("customers", "c3,eur,,,,\n", "currency", "'eur' is not an ISO-4217 currency"),
    ("customers", "c3,,,,,\n", "currency", "is empty"),
    ("customers", "c3,EUR,Germany,,,\n", "country", "'Germany' is not an ISO-3166 country"),
    ("customers", "c3,EUR,,,Europe/Nowhere,\n", "time_zone", "'Europe/Nowhere' is not a time zone"),
    ("customers", "c1,USD,,,,\n", "currency", "'USD' contradicts 'EUR', which line 2 has"),
    ("customers", "c3,EUR,,,,cus_2\n", "stripe_customer_id", "belongs to customer 'c2'"),
    ("customers", "c3,EUR\n", "", "has 2 values instead of 6"),
    ("subscription_events", bad(EVENT, "c1,", "c7,"), "customer_id", "'c7' is unknown"),
    ("subscription_events", bad(EVENT, "c1,", "c2,").replace("EUR", "USD"), "subscription_id", "to customer 'c1'"),
    ("subscription_events", bad(EVENT, "pro", "gold"), "plan", "'gold' is unknown"),
    ("subscription_events", bad(EVENT, "changed", "renewed"), "event", "'renewed' is none of started"),
    ("subscription_events", bad(EVENT, "MONTHLY", "DAILY"), "payment_frequency", "'DAILY' is none of WEEKLY"),
    ("subscription_events", bad(EVENT, "EUR", "USD"), "currency", "is not the currency of the customer, EUR"),
    ("subscription_events", bad(EVENT, "1999", "19.99"), "amount_minor", "has a decimal point"),
    ("subscription_events", bad(EVENT, "1999", "-1"), "amount_minor", "is too small: at least 0"),
    ("subscription_events", bad(EVENT, "1999", "1e3"), "amount_minor", "is not a whole number"),
    ("subscription_events", bad(EVENT, "1999", "99999999999999999999999"), "amount_minor", "is too big"),
    ("subscription_events", bad(EVENT, "1999,1,", "900000000000,900000,"), "amount_minor", "amount times quantity"),
    ("subscription_events", bad(EVENT, ",1,", ",0,"), "quantity", "is too small: at least 1"),
    ("subscription_events", bad(EVENT, ",1,", ",3000000000,"), "quantity", "is too big"),
    ("subscription_events", bad(EVENT, "2026-02-01T", "2026-02-30T"), "occurred_at", "is not a day of the calendar"),
    ("subscription_events", bad(EVENT, "2026-02-01T", "2100-02-29T"), "occurred_at", "is not a day of the calendar"),
    ("subscription_events", bad(EVENT, "2026-02-01T", "0026-02-01T"), "occurred_at", "is not between the years"),
    ("subscription_events", bad(EVENT, "00:00:00Z", "00:00:00"), "occurred_at", "has no offset from UTC"),
    ("subscription_events", bad(EVENT, "00:00:00Z", "25:00:00Z"), "occurred_at", "is not an ISO-8601 time"),
    ("subscription_events", bad(EVENT, "2026-02-01T00:00:00Z", "01/02/2026"), "occurred_at", "is not an ISO-8601 time"),
    ("subscription_events", bad(EVENT, "2026-02-01T00:00:00Z", ""), "occurred_at", "is empty"),
    ("subscription_events", EVENT + "yesterday\n", "recorded_at", "is not an ISO-8601 time"),
    ("pauses", bad(PAUSE, "s1", "s9"), "subscription_id", "'s9' is unknown"),
    ("pauses", bad(PAUSE, "2026-02-05", "2026-01-05"), "ends_at", "is not after starts_at"),
    ("pauses", bad(PAUSE, "2026-02-05", "2026-02-01"), "ends_at", "is not after starts_at"),
    ("pauses", bad(PAUSE, "customer", "holiday"), "kind", "'holiday' is none of customer"),
    ("pauses", bad(PAUSE, ",,", ",,over"), "state", "'over' is none of scheduled"),
    ("pauses", "p9,s1,2026-02-01T00:00:00Z,,payment_failure,,\n", "ends_at", "needs the end of its grace period"),
    ("pauses", bad(PAUSE, "2026-02-05", "2026-04-05"), "starts_at", "overlaps pause 'p2'"),
    ("pauses", bad(PAUSE, "p9", "p1"), "subscription_id", "contradicts what line 2 has"),
    ("payments", bad(PAYMENT, "s1", "s9"), "subscription_id", "'s9' is unknown"),
    ("payments", bad(PAYMENT, "EUR", "USD"), "currency", "is not the currency of the customer, EUR"),
    ("payments", bad(PAYMENT, "1999", "19,99").replace("19,99", '"19,99"'), "amount_minor", "has a decimal point"),
    ("payments", bad(PAYMENT, "succeeded", "ok"), "outcome", "'ok' is none of succeeded, failed"),
    ("payments", bad(PAYMENT, "succeeded,", "succeeded,block"), "failure_class", "a payment that succeeded"),
    ("payments", bad(PAYMENT, "succeeded,,", "succeeded,,code"), "failure_code", "a payment that succeeded"),
    ("payments", bad(PAYMENT, ",,,1", ",,,0"), "attempt", "is too small: at least 1"),
    ("payments", bad(PAYMENT, "m9", "m3"), "subscription_id", "contradicts what line 4 has"),
    ("rewards", bad(REWARD, "c1", "c9"), "customer_id", "'c9' is unknown"),
    ("rewards", bad(REWARD, "100", "0"), "amount_minor", "is too small: at least 1"),
    ("rewards", bad(REWARD, "earned", "given"), "kind", "'given' is none of earned"),
    ("rewards", bad(REWARD, "earned", "spent").replace("100", "201"), "amount_minor", "would fall below zero"),
    ("rewards", "c2,2026-01-01T00:00:00Z,expired,1,\n", "amount_minor", "customer 'c2' would fall below zero"),
    ("rewards", REWARD + "2026-02-16T00:00:00Z\n", "expires_at", "is not after occurred_at"),
    ("rewards", "c1,2026-02-16T00:00:00Z,spent,1,2027-01-01T00:00:00Z\n", "expires_at", "was not earned here"),
    ("fx_rates", bad(RATE, "0.92", "0"), "rate", "is too small"),
    ("fx_rates", bad(RATE, "0.92", "-1"), "rate", "is not a rate"),
    ("fx_rates", bad(RATE, "0.92", "99999999999"), "rate", "is too big"),
    ("fx_rates", bad(RATE, "2026-02-01", "2026-13-01"), "date", "is not a day of the calendar"),
    ("fx_rates", bad(RATE, "2026-02-01", "1.2.2026"), "date", "is not a date"),
    ("fx_rates", bad(RATE, "2026-02-01,USD,EUR,0.92", "2026-01-31,USD,EUR,0.93"), "rate", "contradicts 0.9215"),
    ("fx_rates", bad(RATE, "USD", "EUR"), "rate", "a currency is worth 1 of itself"),
    ("payments", b'm9,s1,"2026-02-01T00:00:00Z,1999,EUR,succeeded,,,1\n', "", "has no closing"),
    ("payments", b'm9,s1,"2026"-02-01,1999,EUR,succeeded,,,1\n', "", "followed by more text"),
    ("payments", b"m9,s1,2026-02-01T00:00:00Z,1999,EUR,failed,\xff\xfe,,1\n", "", "is not UTF-8: '\\xff\\xfe'"),
    ("payments", b"m9,s1,2026-02-01T00:00:00Z,1999,EUR,failed,a\0b,,1\n", "", "holds a NUL byte"),
    ("payments", b"m9,s1,2026-02-01T00:0", "", "it was probably cut short"),
    ("payments", b"m9,s1,2026-02-01T00:00:00Z,1999,EUR,succeeded,,,1", "attempt", "it was probably cut short"),
    ("fx_rates", b"2026-02-01,USD,EUR,0.9", "rate", "it was probably cut short"),
]  # fmt: skip


@pytest.mark.parametrize(("stem", "row", "column", "reason"), CASES)
def test_a_bad_row_is_named_and_nothing_is_imported(
    make: Make, load: Load, contents: Contents, *, stem: str, row: str | bytes, column: str, reason: str
) -> None:
    folder = make(**{f"{stem}_more": row})
    line = len((make() / f"{stem}.csv").read_text().splitlines()) + 1
    before = contents()
    with pytest.raises(BadRows) as error:
        load(folder)
    assert {(problem.file, problem.line) for problem in error.value.problems} == {(f"{stem}.csv", line)}
    named = [problem for problem in error.value.problems if problem.column == column and reason in problem.reason]
    assert len(named) == 1, error.value.problems
    assert str(named[0]) in str(error.value)
    assert error.value.exit_code == EXIT_BAD_INPUT
    assert contents() == before
    assert not any(before.values())


@pytest.mark.parametrize(
    ("text", "column", "reason"),
    [
        ("", "", "the file is empty"),
        ("plan,nmae\n", "'nmae'", "the column is unknown; known are plan, name"),
        ("plan,plan\n", "'plan'", "stands twice"),
        ("name\n", "plan", "is missing from the header"),
        (b"\x89PNG\r\n\x1a\n", "'\\x89PNG'", "the column is unknown"),
    ],
)
def test_a_bad_header_is_named(make: Make, load: Load, text: str | bytes, column: str, reason: str) -> None:
    with pytest.raises(BadRows) as error:
        load(make(plans=text))
    found = error.value.problems[0]
    assert (found.file, found.line, found.column) == ("plans.csv", 1, column)
    assert reason in found.reason


def test_all_faults_of_all_files_are_named_at_once_and_the_rest_counted(make: Make, load: Load) -> None:
    rows = "".join(f"m{number},s1,2026-02-01T00:00:00Z,1.5,EUR,won,,,1\n" for number in range(100, 180))
    with pytest.raises(BadRows) as error:
        load(make(plans_more=",\n", payments_more=rows))
    assert error.value.total == 161
    assert len(error.value.problems) == 100
    assert error.value.problems[0].file == "plans.csv"
    assert str(error.value).splitlines()[0] == "Nothing was imported: mend 161 faults and import again."
    assert str(error.value).endswith("… and 61 more.")
    assert len(str(error.value).splitlines()) == 102


def test_a_file_of_rubbish_does_not_fill_the_memory(make: Make, load: Load) -> None:
    with pytest.raises(BadRows) as error:
        load(make(payments_more="rubbish\n" * 20_000))
    assert error.value.total == 1_001


def test_a_line_is_counted_as_an_editor_counts_it(make: Make, load: Load) -> None:
    more = 'x,"two\nlines"\n\n,none\n'
    with pytest.raises(BadRows) as error:
        load(make(plans_more=more))
    assert [problem.line for problem in error.value.problems] == [7]


@pytest.mark.parametrize("what", ["missing", "file", "empty", "other"])
def test_a_folder_without_the_contract(tmp_path: Path, load: Load, what: str) -> None:
    folder = tmp_path / "input"
    if what == "file":
        folder.write_text("plan\n")
    elif what != "missing":
        folder.mkdir()
        if what == "other":
            (folder / "payment.csv").write_text("payment_id\n")
    with pytest.raises(BadInput) as error:
        load(folder)
    expected = {"missing": "does not exist", "file": "is not a folder", "empty": "holds none of the files"}
    assert expected.get(what, "(found: payment.csv)") in str(error.value)


def test_a_file_that_is_a_folder(make: Make, load: Load) -> None:
    folder = make(plans=None)
    (folder / "plans.csv").mkdir()
    with pytest.raises(PermanentError, match=r"Failed while reading plans\.csv"):
        load(folder)


@pytest.mark.parametrize(
    ("component", "undo", "sentence"),
    [
        ("pauses", "pauses/0001_pauses.revert.sql", "pauses.csv needs the component pauses"),
        ("rewards", "rewards/0001_reward_ledger.revert.sql", "rewards.csv needs the component rewards"),
        ("frequencies", "frequencies/0001_payment_frequency.revert.sql", "need the component frequencies"),
    ],
)
def test_a_component_that_is_not_deployed(
    billing: Connection, make: Make, load: Load, *, component: str, undo: str, sentence: str
) -> None:
    billing.execute((MIGRATIONS_ROOT / undo).read_bytes())
    with pytest.raises(BadInput, match=sentence):
        load(make())
    monthly = make()
    without: dict[str, dict[str, str | None]] = {
        "pauses": {"pauses": None},
        "rewards": {"rewards": None},
        "frequencies": {
            "subscription_events": (monthly / "subscription_events.csv").read_text().replace("WEEKLY", "MONTHLY")
        },
    }
    assert load(make(**without[component])).files["payments.csv"].new == 3


def test_a_database_without_core(billing: Connection, make: Make, load: Load) -> None:
    billing.execute("DROP SCHEMA billing CASCADE")
    with pytest.raises(PermanentError, match="run flexpay deploy first"):
        load(make())
