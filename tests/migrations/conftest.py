"""What the migration tests share: empty databases, and components written on the spot."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest
from psycopg import sql

from flexpay_pipelines.sandbox import Cluster

Write = Callable[..., Path]


@pytest.fixture
def empty_url(cluster: Cluster) -> Iterator[str]:
    """The URL of a database in which nothing was ever deployed."""
    name = f"test_{uuid4().hex}"
    with psycopg.connect(cluster.url(), autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        yield cluster.url(name)
        connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write one migration below a folder of its own; returns that folder, the `root` of the engine's calls."""

    def write_one(
        component: str = "core",
        number: int = 1,
        *,
        deploy: str = "CREATE SCHEMA IF NOT EXISTS billing; CREATE TABLE billing.first (id bigint PRIMARY KEY);",
        revert: str = "DROP TABLE billing.first;",
        verify: str = "SELECT id FROM billing.first;",
    ) -> Path:
        folder = tmp_path / "migrations" / component
        folder.mkdir(parents=True, exist_ok=True)
        for kind, text in (("deploy", deploy), ("revert", revert), ("verify", verify)):
            (folder / f"{number:04}_step.{kind}.sql").write_text(text)
        return tmp_path / "migrations"

    return write_one
