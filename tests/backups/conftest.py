"""The site that every test of backups works on."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from flexpay_pipelines.database import Connection
from tests.backups.helpers import COMPANY, Site


@pytest.fixture
def site(billing_url: str, control_url: str, billing: Connection, control: Connection, tmp_path: Path) -> Site:
    """A company to back up; FLEXPAY_POSTGRES_BIN chooses tools and server."""
    billing.execute(COMPANY)
    chosen = os.environ.get("FLEXPAY_POSTGRES_BIN")
    return Site(billing_url, control_url, billing, control, tmp_path, Path(chosen) if chosen else None)
