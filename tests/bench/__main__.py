"""Measure everything (or what is named: loading, sweep, …), print the ratios, append them to docs/benchmarks.md."""

from __future__ import annotations

import platform
import sys
from datetime import UTC, datetime
from pathlib import Path

from tests.bench import analytics, delivery, demo, loading, reconciliation, report, sweep
from tests.bench.ratio import Ratio

BENCHES = {
    "loading": loading,
    "sweep": sweep,
    "delivery": delivery,
    "reconciliation": reconciliation,
    "analytics": analytics,
    "report": report,
    "demo": demo,
}
PAGE = Path(__file__).resolve().parents[2] / "docs" / "benchmarks.md"


def _row(ratio: Ratio, day: str) -> str:
    verdict = "holds" if ratio.holds else "MISSED"
    return (
        f"| {day} | {ratio.what} | {ratio.ours:.2f} {ratio.unit} | {ratio.floor_is} {ratio.floor:.2f} {ratio.unit} "
        f"| {ratio.times:.3g} | {ratio.limit:.3g} | {verdict} |"
    )


def main(names: list[str]) -> int:
    """Exit code 1 where a promise is missed."""
    unknown = set(names) - set(BENCHES)
    if unknown:
        sys.stderr.write(f"No such bench: {', '.join(sorted(unknown))}; choose from {', '.join(BENCHES)}.\n")
        return 2
    day = f"{datetime.now(UTC):%Y-%m-%d} {platform.machine()} {platform.python_version()}"
    missed = 0
    for name in names or BENCHES:
        for ratio in BENCHES[name].measure():
            row = _row(ratio, day)
            sys.stdout.write(row + "\n")
            with PAGE.open("a", encoding="utf-8") as page:
                page.write(row + "\n")
            missed += not ratio.holds
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
