"""The settings: the only reader of the environment.

What belongs here: every FLEXPAY_ variable, what it means, what it may be. What does not: opening anything.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal
from zoneinfo import available_timezones

from pydantic import AwareDatetime, Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from flexpay_pipelines.errors import ConfigurationError

CHECKOUT = Path(__file__).resolve().parents[1]
PREFIX = "FLEXPAY_"
# A currency or none, up to 999 months, and an amount that PostgreSQL's bigint holds.
MILESTONE = re.compile(r"(?:([A-Z]{3})\s*:\s*)?([1-9][0-9]{0,2})\s*:\s*([1-9][0-9]{0,17})", re.ASCII)
AMOUNT = re.compile(r"(?:([A-Z]{3})\s*:\s*)?([1-9][0-9]{0,17})", re.ASCII)
# Stands for every currency that is not named.
OTHERS = ""


class Settings(BaseSettings):
    """Every setting of the product. Unset databases and an unset Stripe are served by the embedded sandbox."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_file=".env", env_ignore_empty=True, allow_inf_nan=False, extra="ignore", frozen=True
    )

    home: Path = Field(
        default=CHECKOUT / ".flexpay", description="Folder of all local state: clusters, backups, reports."
    )
    environment: Literal["development", "staging", "production"] = Field(
        default="development", description="Where this runs; production refuses the embedded sandbox."
    )

    billing_url: SecretStr | None = Field(
        default=None, description="PostgreSQL URL of the billing database, postgresql://user:password@host:5432/name."
    )
    control_url: SecretStr | None = Field(
        default=None,
        description="PostgreSQL URL of the control database (Dagster, alerts, audit, backup catalog); another server.",
    )
    postgres_bin: Path | None = Field(
        default=None, description="Folder of pg_dump, pg_restore, initdb; unset: the embedded PostgreSQL 18."
    )

    stripe_api_key: SecretStr | None = Field(default=None, description="Stripe secret or restricted key.")
    stripe_api_base: str | None = Field(
        default=None, description="Where Stripe answers; unset without a key: the embedded sandbox server."
    )
    stripe_requests_per_second: float | None = Field(
        default=None,
        gt=0,
        le=1000,
        description="Pace of all requests to Stripe together; unset: 25 with a test key, 100 with a live one.",
    )
    stripe_endpoint_requests_per_second: float | None = Field(
        default=None,
        gt=0,
        le=1000,
        description="Pace of the requests to one endpoint (method and path) of Stripe; unset: that of all together.",
    )
    stripe_webhook_secret: SecretStr | None = Field(
        default=None,
        description="Signing secret of the webhook endpoint (whsec_…); while it is replaced: both, a comma between.",
    )
    stripe_pause_mode: Literal["collection", "subscription"] = Field(
        default="collection", description="How a pause is made at Stripe: pause_collection, or /pause and /resume."
    )

    pause_grace_days: int = Field(
        default=7, ge=1, description="Days from a failed payment until the subscription is suspended."
    )
    pause_max_days: int = Field(default=90, ge=1, description="Days that a pause of a customer's may last at most.")
    pause_max_per_year: int = Field(default=4, ge=1, description="Pauses that a customer may begin within 365 days.")
    pause_moves_next_payment: bool = Field(
        default=True, description="Whether the next payment date moves by the time a subscription was paused."
    )

    loyalty_rewards: Annotated[dict[str, dict[int, int]], NoDecode] = Field(
        default={OTHERS: {12: 500, 24: 1000, 36: 1500}, "JPY": {12: 800, 24: 1600, 36: 2400}},
        description="Credit by months of tenure, minor units: 12:500,24:1000 in each currency but those that have "
        "their own, JPY:12:800,JPY:24:1600; or none.",
    )
    loyalty_since: AwareDatetime | None = Field(
        default=None,
        description="Milestones of tenure before this time (ISO-8601 with offset) are not rewarded; "
        "unset: since the rewards were deployed.",
    )
    referral_reward_minor: Annotated[dict[str, int], NoDecode] = Field(
        default={OTHERS: 500, "JPY": 800},
        description="Credit for bringing a customer, where no other amount is named; minor units: 500 in each currency "
        "but those that have their own, JPY:800.",
    )
    referral_months: int = Field(
        default=3,
        ge=0,
        le=120,
        description="Months within which a referral is taken back if its customer leaves; 0: never.",
    )
    reward_lifetime_days: int = Field(
        default=365, ge=0, le=36_500, description="Days until credit that names no other expiry runs out; 0: never."
    )

    reporting_currency: str = Field(
        default="EUR", pattern="^[A-Z]{3}$", description="Currency of converted figures, ISO 4217."
    )

    reporting_time_zone: str = Field(
        default="UTC",
        description="Time zone whose midnights part the days of the figures, IANA name such as Europe/Berlin; "
        "under another one than before the stored days are forgotten and computed anew when they are asked for.",
    )

    backup_folder: Path | None = Field(default=None, description="Where backups are kept; unset: below FLEXPAY_HOME.")
    backup_offsite_folder: Path | None = Field(
        default=None, description="Where copies of backups go: a mount of another machine; unset: below FLEXPAY_HOME."
    )
    backup_retention_days: int = Field(default=30, ge=1, description="Days for which a backup is kept.")

    advisories_file: Path | None = Field(
        default=None,
        description="File of known vulnerabilities: JSON lines with id, package, affected, severity.",
    )

    slack_token: SecretStr | None = Field(default=None, description="Slack bot token (xoxb-…).")
    slack_channel: str = Field(default="#flexpay-alerts", description="Slack channel of alerts.")
    slack_api_base: str = Field(default="https://slack.com/api/", description="Where Slack's Web API answers.")

    payment_failure_threshold: float = Field(
        default=0.05, gt=0, lt=1, description="Payment failure rate above which a release is rolled back."
    )
    system_error_threshold: float = Field(
        default=0.01, gt=0, lt=1, description="System error rate above which a release is rolled back."
    )
    database_slowdown_threshold: float = Field(
        default=0.5, gt=0, description="Rise of database time (0.5: half as slow again) that rolls a release back."
    )
    churn_alert_threshold: float = Field(
        default=0.10, gt=0, lt=1, description="Customer churn of 30 days that raises an alert."
    )
    high_risk_alert_threshold: int = Field(
        default=50, ge=0, description="Customers at high risk of leaving (score 0.7 and above) that raise an alert."
    )
    api_response_alert_seconds: float = Field(
        default=2.0, gt=0, description="Response time of Stripe's API, in seconds, that raises an alert."
    )

    @field_validator("loyalty_rewards", mode="before")
    @classmethod
    def _milestones(cls, value: object) -> object:
        # Not JSON: its quotes and braces do not survive a shell that reads the file.
        if not isinstance(value, str):
            return value
        texts = [] if value.strip() == "none" else value.split(",")
        found = [pair for text in texts if (pair := MILESTONE.fullmatch(text.strip()))]
        rewards: dict[str, dict[int, int]] = {}
        for pair in found:
            rewards.setdefault(pair[1] or OTHERS, {})[int(pair[2])] = int(pair[3])
        if sum(map(len, rewards.values())) < len(texts):
            raise ValueError(
                "months:amount pairs are expected, such as 12:500,24:1000,JPY:12:800, each month once, all above 0"
            )
        return rewards

    @field_validator("referral_reward_minor", mode="before")
    @classmethod
    def _amounts(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        texts = value.split(",")
        found = [pair for text in texts if (pair := AMOUNT.fullmatch(text.strip()))]
        amounts = {pair[1] or OTHERS: int(pair[2]) for pair in found}
        if len(amounts) < len(texts):
            raise ValueError("amounts are expected, such as 500,JPY:800, each currency once, all above 0")
        return amounts

    @field_validator("reporting_time_zone")
    @classmethod
    def _known_time_zone(cls, value: str) -> str:
        # Not ZoneInfo(value): that opens a file of this name, whatever its letters' case on some machines.
        if value not in _time_zones():
            raise ValueError("a name of the IANA time zone database is expected, such as Europe/Berlin")
        return value

    @field_validator("billing_url", "control_url")
    @classmethod
    def _postgresql_url(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not value.get_secret_value().startswith(
            ("postgresql://", "postgresql+", "postgres://")
        ):
            raise ValueError("a URL that begins with postgresql:// is expected")
        return value

    @property
    def backups(self) -> Path:
        """Where backups are kept."""
        return self.backup_folder or self.home / "backups"

    @property
    def backups_offsite(self) -> Path:
        """Where the copies of backups go."""
        return self.backup_offsite_folder or self.home / "backups-offsite"

    @property
    def billing(self) -> str:
        """The URL of the billing database.

        Raises:
            ConfigurationError: unset (the embedded clusters were not started).
        """
        return self._required("billing_url", self.billing_url)

    @property
    def control(self) -> str:
        """The URL of the control database.

        Raises:
            ConfigurationError: unset (the embedded clusters were not started).
        """
        return self._required("control_url", self.control_url)

    @property
    def webhook_secrets(self) -> tuple[str, ...]:
        """The signing secrets of the webhook endpoint: one, or two while it is replaced.

        Raises:
            ConfigurationError: unset.
        """
        written = self._required("stripe_webhook_secret", self.stripe_webhook_secret)
        return tuple(secret.strip() for secret in written.split(",") if secret.strip())

    @staticmethod
    def _required(name: str, value: SecretStr | None) -> str:
        if value is None:
            raise ConfigurationError(f"{variable(name)} is not set: {Settings.model_fields[name].description}")
        return value.get_secret_value()


@cache
def _time_zones() -> set[str]:
    """All that there are: hundreds of files are looked at to find them."""
    return available_timezones()


def variable(field: str) -> str:
    """The environment variable of a setting."""
    return f"{PREFIX}{field.upper()}"


def load_settings() -> Settings:
    """Read the environment (and `.env`, where there is one).

    Raises:
        ConfigurationError: one sentence for each variable that is malformed, with what is expected.
    """
    try:
        settings = Settings()
    except ValidationError as error:
        raise ConfigurationError(
            " ".join(_complaint(detail["loc"], detail["msg"]) for detail in error.errors())
        ) from None
    # A relative home would move with the working folder of whichever process reads it.
    return settings.model_copy(update={"home": settings.home.expanduser().resolve()})


def _complaint(location: tuple[int | str, ...], message: str) -> str:
    field = str(location[0]).lower().removeprefix(PREFIX.lower())
    about = Settings.model_fields[field].description if field in Settings.model_fields else ""
    return f"{variable(field)} is malformed: {message}. Expected: {about}"


def template() -> str:
    """The text of `.env.production.template`: every variable, what it means, its default."""
    lines = [
        "# Settings of FlexPay Pipelines. Made by `flexpay env template`; a line without a value is optional.",
        "# Keep secrets out of version control: copy this file to .env, or set the variables in the service manager.",
    ]
    for name, field in Settings.model_fields.items():
        default = field.default
        shown = "" if default is None or name == "home" else default
        # The template is for production, where the default (a laptop) would embed its own databases.
        shown = "production" if name == "environment" else shown
        shown = str(shown).lower() if isinstance(shown, bool) else shown
        shown = ",".join(_pairs(shown)) if isinstance(shown, dict) else shown
        lines += ["", f"# {field.description}", f"{variable(name)}={shown}" if shown != "" else f"# {variable(name)}="]
    return "\n".join(lines) + "\n"


def _pairs(amounts: Mapping[str | int, Any]) -> Iterator[str]:
    """What the validators read: the amounts of a mapping, each with the keys that lead to it."""
    for key, item in amounts.items():
        inner = _pairs(item) if isinstance(item, dict) else [str(item)]
        yield from (text if key == OTHERS else f"{key}:{text}" for text in inner)


def export(name: str, value: str) -> None:
    """Hand a value to libraries and child processes that read the environment themselves (Dagster, libpq)."""
    os.environ[name] = value
