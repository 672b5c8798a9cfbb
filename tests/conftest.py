"""What every test may ask for: a real PostgreSQL, and databases cloned from a migrated template."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest
from hypothesis import settings
from psycopg import sql

from flexpay_pipelines.database import BILLING, CONTROL, Connection, opened
from flexpay_pipelines.migrations import COMPONENTS, deploy
from flexpay_pipelines.sandbox import Cluster, scratch_cluster

LOG = logging.getLogger(__name__)


def pytest_configure(config: pytest.Config) -> None:
    """Say how random the random tests are, and give each run a temporary folder of its own."""
    # The sample of `make test` is the same each time; `make soak` looks for what nobody has seen yet.
    settings.register_profile("sample", derandomize=True)
    settings.load_profile("default" if config.option.markexpr == "soak" else "sample")
    # The folder that pytest shares between runs is closed to other accounts whenever a run starts, and PostgreSQL,
    # which does not run as root, would lose its data under another run's feet.
    if config.option.basetemp is None and not hasattr(config, "workerinput"):
        own = tempfile.mkdtemp(prefix="flexpay-pytest-")
        config.option.basetemp = str(Path(own) / "tmp")
        config.add_cleanup(lambda: shutil.rmtree(own, ignore_errors=True))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The demo first, then the other commands: what takes minutes must not begin when all else has ended."""
    items.sort(key=lambda item: ("test_demo" not in item.nodeid, "tests/cli" not in item.nodeid))


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """One cluster for the whole run; FLEXPAY_POSTGRES_BIN chooses another PostgreSQL than the embedded one."""
    chosen = os.environ.get("FLEXPAY_POSTGRES_BIN")
    with scratch_cluster(bin_folder=Path(chosen) if chosen else None) as running:
        yield running


def _components(database: str) -> list[str]:
    return [component.name for component in COMPONENTS.values() if component.database == database]


def make_template(cluster: Cluster, name: str, components: list[str]) -> str:
    """A new database with these components, to be filled, closed and cloned."""
    with psycopg.connect(cluster.url(), autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    done = deploy(cluster.url(name), components, record=lambda step: LOG.debug(step.title), progress=LOG.debug)
    LOG.info("template %s: %s steps", name, len(done))
    return name


def clone(cluster: Cluster, template: str) -> Iterator[str]:
    """The URL of a copy of a template, there until the iterator goes on."""
    name = f"test_{uuid4().hex}"
    identifier = sql.Identifier(name)
    with psycopg.connect(cluster.url(), autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(identifier, sql.Identifier(template)))
        yield cluster.url(name)
        connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(identifier))


@pytest.fixture(scope="session")
def billing_template(cluster: Cluster) -> str:
    """A database with every billing component at its newest revision."""
    return make_template(cluster, "billing_template", _components(BILLING))


@pytest.fixture(scope="session")
def control_template(cluster: Cluster) -> str:
    """A database with the control plane's component."""
    return make_template(cluster, "control_template", _components(CONTROL))


@pytest.fixture
def billing_url(cluster: Cluster, billing_template: str) -> Iterator[str]:
    """The URL of a fresh billing database."""
    yield from clone(cluster, billing_template)


@pytest.fixture
def control_url(cluster: Cluster, control_template: str) -> Iterator[str]:
    """The URL of a fresh control database."""
    yield from clone(cluster, control_template)


@pytest.fixture
def billing(billing_url: str) -> Iterator[Connection]:
    """A connection to a fresh billing database."""
    with opened(billing_url, purpose="test") as connection:
        yield connection


@pytest.fixture
def control(control_url: str) -> Iterator[Connection]:
    """A connection to a fresh control database."""
    with opened(control_url, purpose="test", role="control") as connection:
        yield connection
