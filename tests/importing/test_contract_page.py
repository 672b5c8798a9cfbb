"""docs/data-contract.md is followed word for word: its example imports, its columns are those of the code."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from flexpay_pipelines.billing.import_contract import CONTRACT
from flexpay_pipelines.billing.importing import ImportResult

PAGE = Path(__file__).parents[2] / "docs" / "data-contract.md"


def test_the_example_directory_imports(tmp_path: Path, load: Callable[..., ImportResult]) -> None:
    examples = re.findall(r"^`(\w+\.csv)`\n```\n(.*?)```", PAGE.read_text(), re.S | re.M)
    assert [name for name, _ in examples] == [file.name for file in CONTRACT]
    for name, text in examples:
        (tmp_path / name).write_text(text)
    result = load(tmp_path)
    assert {name: count.new for name, count in result.files.items()} == {
        name: len(text.splitlines()) - 1 for name, text in examples
    }


def test_the_columns_are_those_of_the_code() -> None:
    page = PAGE.read_text()
    for file in CONTRACT:
        row = next(line for line in page.splitlines() if line.startswith(f"| `{file.name}` | `"))
        required, _, optional = row.split("|")[2].partition("[")
        assert tuple(re.findall(r"`(\w+)`", required)) == file.required
        assert tuple(re.findall(r"`(\w+)`", optional)) == file.optional
