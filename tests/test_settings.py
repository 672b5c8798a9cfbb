"""Settings: every malformed variable is named with what is expected; the template holds them all and can be loaded."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from flexpay_pipelines.errors import EXIT_BAD_INPUT, ConfigurationError
from flexpay_pipelines.settings import CHECKOUT, PREFIX, Settings, load_settings, template, variable


@pytest.fixture(autouse=True)
def _nothing_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An environment without our variables, and a working folder without a .env file."""
    for name in os.environ:
        if name.upper().startswith(PREFIX):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def _defaults() -> dict[str, object]:
    return {name: getattr(load_settings(), name) for name in Settings.model_fields}


def test_everything_has_a_default() -> None:
    settings = load_settings()
    assert settings.home.is_absolute()
    assert settings.billing_url is None
    assert settings.environment == "development"


def test_a_database_that_is_not_set_is_asked_for_by_name() -> None:
    with pytest.raises(ConfigurationError, match=r"FLEXPAY_BILLING_URL is not set: .*postgresql://"):
        _ = load_settings().billing
    with pytest.raises(ConfigurationError, match="FLEXPAY_CONTROL_URL is not set"):
        _ = load_settings().control


MALFORMED = {
    "billing_url": "mysql://localhost/billing",
    "control_url": "billing",
    "environment": "prod",
    "stripe_requests_per_second": "fast",
    "stripe_endpoint_requests_per_second": "0",
    "stripe_pause_mode": "stop",
    "pause_grace_days": "1.5",
    "pause_moves_next_payment": "perhaps",
    "loyalty_rewards": "12",
    "loyalty_since": "2026-01-01T00:00:00",
    "referral_reward_minor": "0",
    "referral_months": "-1",
    "reward_lifetime_days": "a year",
    "reporting_currency": "euro",
    "backup_retention_days": "thirty",
    "payment_failure_threshold": "5",
    "system_error_threshold": "nan",
    "database_slowdown_threshold": "inf",
    "churn_alert_threshold": "1",
    "high_risk_alert_threshold": "-1",
    "api_response_alert_seconds": "0",
}


@pytest.mark.parametrize(("field", "value"), MALFORMED.items())
def test_a_malformed_variable_is_named_with_what_is_expected(
    monkeypatch: pytest.MonkeyPatch, field: str, value: str
) -> None:
    monkeypatch.setenv(variable(field), value)
    with pytest.raises(ConfigurationError) as caught:
        load_settings()
    sentence = str(caught.value)
    assert sentence.startswith(f"{variable(field)} is malformed: ")
    assert sentence.endswith(f"Expected: {Settings.model_fields[field].description}")
    assert caught.value.exit_code == EXIT_BAD_INPUT


@pytest.mark.parametrize(
    "value",
    [
        "500",
        "12:5.5",
        "12:0",
        "0:5",
        "-1:5",
        "a:1",
        "12:5,",
        "12:5,12:6",
        "12=5",
        "1000:5",
        "EURO:12:5",
        "eur:12:5",
        "EUR:12:5,EUR:12:6",
        "EUR:5",
        "12:EUR:5",
        "none,12:5",
    ],
)
def test_loyalty_rewards_that_cannot_be_are_told_how_they_should_look(
    monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("FLEXPAY_LOYALTY_REWARDS", value)
    with pytest.raises(ConfigurationError, match="months:amount pairs are expected, such as 12:500,24:1000"):
        load_settings()


def test_loyalty_rewards_are_read_by_months(monkeypatch: pytest.MonkeyPatch) -> None:
    for text, rewards in (
        (" 6 : 250, 120:10000 ", {"": {6: 250, 120: 10000}}),
        ("12:500,JPY:12:800, JPY : 24:1600", {"": {12: 500}, "JPY": {12: 800, 24: 1600}}),
        ("EUR:12:500", {"EUR": {12: 500}}),
        ("none", {}),
    ):
        monkeypatch.setenv("FLEXPAY_LOYALTY_REWARDS", text)
        assert load_settings().loyalty_rewards == rewards


@pytest.mark.parametrize(
    "value", ["0", "-5", "5.5", "EUR", "EURO:5", "500,600", "500,", "JPY:1,JPY:2", "12:500", "none"]
)
def test_referral_rewards_that_cannot_be_are_told_how_they_should_look(
    monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("FLEXPAY_REFERRAL_REWARD_MINOR", value)
    with pytest.raises(ConfigurationError, match="amounts are expected, such as 500,JPY:800"):
        load_settings()


def test_referral_rewards_are_read_by_currency(monkeypatch: pytest.MonkeyPatch) -> None:
    for text, amounts in (("700", {"": 700}), (" 700 , JPY : 900", {"": 700, "JPY": 900}), ("EUR:5", {"EUR": 5})):
        monkeypatch.setenv("FLEXPAY_REFERRAL_REWARD_MINOR", text)
        assert load_settings().referral_reward_minor == amounts


def test_every_malformed_variable_is_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for field, value in MALFORMED.items():
        monkeypatch.setenv(variable(field), value)
    with pytest.raises(ConfigurationError) as caught:
        load_settings()
    assert [field for field in MALFORMED if f"{variable(field)} is malformed" in str(caught.value)] == list(MALFORMED)


def test_a_secret_is_not_in_the_complaint_about_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLEXPAY_BILLING_URL", "mysql://root:hunter2@localhost/billing")
    with pytest.raises(ConfigurationError) as caught:
        load_settings()
    assert "hunter2" not in str(caught.value)


def test_a_secret_is_not_shown_by_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLEXPAY_BILLING_URL", "postgresql://root:hunter2@localhost/billing")
    monkeypatch.setenv("FLEXPAY_SLACK_TOKEN", "xoxb-hunter2")
    assert "hunter2" not in repr(load_settings()) + str(load_settings())
    assert load_settings().billing == "postgresql://root:hunter2@localhost/billing"


def test_an_empty_variable_is_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = _defaults()
    for field in Settings.model_fields:
        monkeypatch.setenv(variable(field), "")
    assert _defaults() == expected


def test_home_is_made_absolute_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FLEXPAY_HOME", "state")
    settings = load_settings()
    monkeypatch.chdir("/")
    assert settings.home == tmp_path / "state"
    assert settings.backups == tmp_path / "state" / "backups"
    assert settings.backups_offsite == tmp_path / "state" / "backups-offsite"


def test_the_template_documents_every_variable_once() -> None:
    lines = template().splitlines()
    for name, field in Settings.model_fields.items():
        assert field.description, f"{name} is not described"
        places = [place for place, line in enumerate(lines) if line.removeprefix("# ").startswith(f"{variable(name)}=")]
        assert len(places) == 1, f"{variable(name)} stands {len(places)} times in the template"
        assert lines[places[0] - 1] == f"# {field.description}"


def test_the_template_loads_as_the_defaults(tmp_path: Path) -> None:
    expected = _defaults() | {"environment": "production"}
    (tmp_path / ".env").write_text(template())
    assert _defaults() == expected


def test_the_template_with_every_line_filled_in_loads_what_was_filled_in(tmp_path: Path) -> None:
    filled = {
        "billing_url": "postgresql://u:p%23@h:5432/b", "control_url": "postgresql://u@h2/c",
        "postgres_bin": "/opt/pg/bin",
        "stripe_api_key": "sk_test_x", "stripe_api_base": "http://127.0.0.1:12111",
        "backup_folder": "/backups", "backup_offsite_folder": "/mnt/backups", "slack_token": "xoxb-x",
        "home": str(tmp_path / "home"),
    }  # fmt: skip
    text = template()
    for name, value in filled.items():
        unset, given = f"# {variable(name)}=", f"{variable(name)}={value}"
        assert unset in text
        text = text.replace(f"{unset}\n", f"{given}\n")
    (tmp_path / ".env").write_text(text)
    settings = load_settings()
    for name, value in filled.items():
        found = getattr(settings, name)
        assert (found.get_secret_value() if hasattr(found, "get_secret_value") else str(found)) == value


def test_the_environment_wins_over_the_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("FLEXPAY_REPORTING_CURRENCY=USD\nFLEXPAY_PAUSE_GRACE_DAYS=10\n")
    monkeypatch.setenv("FLEXPAY_REPORTING_CURRENCY", "GBP")
    assert load_settings().reporting_currency == "GBP"
    assert load_settings().pause_grace_days == 10


def test_the_shell_reads_the_template_as_we_do(tmp_path: Path) -> None:
    (tmp_path / "template").write_text(template())
    code = "from flexpay_pipelines.settings import load_settings as s; print(s().model_dump_json(exclude={'home'}))"
    ours = load_settings().model_copy(update={"environment": "production"}).model_dump_json(exclude={"home"})
    shell = subprocess.run(
        ["/bin/sh", "-ec", 'set -a; . ./template; exec "$0" -c "$1"', sys.executable, code],
        capture_output=True, text=True, check=True, timeout=60,
        env={"PYTHONPATH": str(Path(__file__).parents[1]), "PATH": os.environ["PATH"]},
    )  # fmt: skip
    assert shell.stdout.strip() == ours


def test_the_committed_template_is_the_newest() -> None:
    assert (CHECKOUT / ".env.production.template").read_text(encoding="utf-8") == template(), (
        "run: flexpay env template > .env.production.template"
    )
