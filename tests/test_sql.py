"""The SQL catalogue: every file loads, every statement is named, described, and declares what it takes."""

from __future__ import annotations

import re

import pytest

from flexpay_pipelines.sql import QUERIES_ROOT, queries

DOMAINS = sorted(path.stem for path in QUERIES_ROOT.glob("*.sql"))
# A script (#) takes no parameters, so it declares none.
_NAME = re.compile(r"^-- name: *(\w+)(?:\(([^)]*)\)([!$^]?)|#)$", re.MULTILINE)


def _text(domain: str) -> str:
    return (QUERIES_ROOT / f"{domain}.sql").read_text()


def _names(domain: str) -> list[str]:
    return [found.group(1) for found in _NAME.finditer(_text(domain))]


def test_there_is_a_catalogue() -> None:
    assert {"alerts", "health", "security"} <= set(DOMAINS)


@pytest.mark.parametrize("domain", DOMAINS)
def test_every_statement_is_named_once_with_its_parameters_and_described(domain: str) -> None:
    names = _names(domain)
    assert len(names) == _text(domain).count("-- name:")
    assert len(names) == len(set(names))
    for name in names:
        statement = getattr(queries(domain), name)
        assert statement.__doc__, f"{domain}.{name} is not described"
        assert statement.sql


@pytest.mark.parametrize("domain", DOMAINS)
def test_every_parameter_that_is_declared_is_used(domain: str) -> None:
    blocks = _NAME.split(_text(domain))[1:]
    for name, declared, _, body in zip(*[iter(blocks)] * 4, strict=True):
        used = set(re.findall(r"(?<!:):([a-z_]\w*)", re.sub(r"'[^']*'|--.*", "", body)))
        assert used == {each.strip() for each in (declared or "").split(",") if each.strip()}, f"{domain}.{name}"


def test_a_domain_is_read_once() -> None:
    assert queries("health") is queries("health")
