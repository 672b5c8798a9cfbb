"""How long the code location takes to load, against a bare `import dagster`."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

from tests.bench.ratio import Ratio

PAIRS = 7
LIMIT = 1.6


def _seconds(code: str) -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)
    return time.perf_counter() - started


def measure() -> list[Ratio]:
    """Whole processes, in turn, so that a machine that slows down slows both."""
    loads = "import flexpay_pipelines.definitions as d; d.defs.get_repository_def()"
    pairs = [(_seconds(loads), _seconds("import dagster")) for _ in range(PAIRS + 1)][1:]
    ours, floor = (statistics.median(side) for side in zip(*pairs, strict=True))
    return [Ratio("code location loads", ours, "import dagster", floor, LIMIT)]
