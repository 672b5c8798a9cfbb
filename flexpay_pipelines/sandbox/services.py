"""The services that settings leave unset: two PostgreSQL clusters and a Stripe server, there while they are needed.

What belongs here: filling the gaps of the settings. What does not: what the services do.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from pydantic import SecretStr

from flexpay_pipelines.database import BILLING, CONTROL, connect
from flexpay_pipelines.errors import ConfigurationError
from flexpay_pipelines.sandbox.postgres import Cluster, in_use
from flexpay_pipelines.sandbox.stripe_server import running_stripe_server

if TYPE_CHECKING:
    from flexpay_pipelines.settings import Settings

ROLES = (BILLING, CONTROL)


@contextmanager
def local_services(
    settings: Settings, *, databases: tuple[str, ...] = ROLES, stripe: bool = False
) -> Iterator[Settings]:
    """Settings in which the named services are all set: those of the environment, the others embedded.

    What is already running for another process is joined, and stopped by whoever leaves last.

    Raises:
        ConfigurationError: production, where nothing may be embedded.
        PermanentError, TransientError: a service does not start.
    """
    with ExitStack() as stack:
        found: dict[str, object] = {}
        for role in databases:
            if getattr(settings, f"{role}_url") is None:
                _refuse_in_production(settings, f"FLEXPAY_{role.upper()}_URL")
                found[f"{role}_url"] = SecretStr(stack.enter_context(_embedded_database(settings, role)))
        if stripe and settings.stripe_api_key is None:
            _refuse_in_production(settings, "FLEXPAY_STRIPE_API_KEY")
            sandbox = stack.enter_context(running_stripe_server(settings.home / "stripe"))
            found |= {"stripe_api_key": SecretStr(sandbox.api_key), "stripe_api_base": sandbox.api_base}
        yield settings.model_copy(update=found)


def _refuse_in_production(settings: Settings, variable: str) -> None:
    if settings.environment == "production":
        raise ConfigurationError(
            f"{variable} is not set, and FLEXPAY_ENVIRONMENT is production: nothing is embedded there."
        )


@contextmanager
def _embedded_database(settings: Settings, role: str) -> Iterator[str]:
    cluster = Cluster(settings.home / "postgres" / role, bin_folder=settings.postgres_bin)
    with in_use(cluster):
        with connect(cluster.url(), purpose="create database", role=role) as connection:
            missing = connection.execute(
                "SELECT NOT EXISTS (SELECT 1 FROM pg_database WHERE datname = %s) AS it", (role,)
            )
            if (row := missing.fetchone()) and row["it"]:
                # ROLES is ours: the name of the database is never input.
                connection.execute(f"CREATE DATABASE {role}".encode())
        yield cluster.url(role)
