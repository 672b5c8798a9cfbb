"""A sandbox that can be killed, and databases whose clock is the model's."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from flexpay_pipelines.database import opened
from flexpay_pipelines.sandbox import Cluster
from tests.conftest import clone
from tests.model.stand import Stand, own_clock, running_stand


@pytest.fixture(scope="module")
def model_url(cluster: Cluster, billing_template: str) -> Iterator[str]:
    """A billing database whose clock is the model's; each sequence empties it first."""
    for url in clone(cluster, billing_template):
        with opened(url, purpose="test") as connection:
            own_clock(connection)
        yield url


@pytest.fixture(scope="session")
def stand(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    """A Stripe sandbox of our own: it is killed in the middle of a sequence, and must be there again."""
    with running_stand(tmp_path_factory.mktemp("model")) as running:
        yield running
