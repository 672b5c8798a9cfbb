"""How long the demo takes from a clean state, against the two minutes that the README promises."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.bench.ratio import Ratio

PROMISED_SECONDS = 120.0


def measure() -> list[Ratio]:
    """The command as a user runs it, in a home of its own."""
    with tempfile.TemporaryDirectory(prefix="flexpay-bench-") as home:
        started = time.perf_counter()
        subprocess.run(
            [str(Path(sys.executable).with_name("flexpay")), "demo", "--json"],
            env={**os.environ, "FLEXPAY_HOME": home}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True,
        )  # fmt: skip
        taken = time.perf_counter() - started
    return [Ratio("make demo", taken, "the promise", PROMISED_SECONDS, 1.0)]
