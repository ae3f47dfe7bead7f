"""A mapping's digest: what changes it, what does not, and that digests stored before are recognised."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.core.mapping_files.mapping_file import read_mapping
from pipeline.core.model.mapping import Column, OnError, TableMapping, Target
from pipeline.core.model.mapping_digest import digests
from pipeline.core.types.sql_types import parse_sql_type

ROOT = Path(__file__).parents[3]


def mapping_in(path: str) -> TableMapping:
    return read_mapping((ROOT / path).read_text(), path)


EMPLOYEES, SHOP = "tables/employees.yaml", "examples/shop/tables/shop.yaml"


@pytest.mark.parametrize(
    ("path", "now", "first"),
    [(EMPLOYEES, "2:0f04e1a8c4897fd2", "198b159810d90c88"), (SHOP, "2:b773e1fd8d845e87", "6458edfd49c4b336")],
)
def test_digests_are_what_they_were_when_they_were_stored(path: str, now: str, first: str) -> None:
    """Never edit these: databases hold them."""
    assert digests(mapping_in(path)) == [now, first]


@dataclass(frozen=True, slots=True)
class LaterColumn(Column):
    """A column of a later version, with an option more."""

    mask: str | None = None
    tags: tuple[str, ...] = field(default_factory=tuple)


@dataclass(frozen=True, slots=True)
class LaterTarget(Target):
    """A target of a later version, with an option more."""

    retention: bool = False


def later(mapping: TableMapping, column: dict[str, Any] | None = None, **target: Any) -> TableMapping:  # noqa: ANN401
    """The mapping as a later version reads it."""

    def of(old: Target) -> LaterTarget:
        columns = tuple(LaterColumn(**values(each), **(column or {})) for each in old.columns)
        children = tuple(map(of, old.children))
        return LaterTarget(**{**values(old), "columns": columns, "children": children}, **target)

    return replace(mapping, targets=tuple(map(of, mapping.targets)))


def values(old: Column | Target) -> dict[str, Any]:
    return {name: getattr(old, name) for name in old.__dataclass_fields__}


@pytest.mark.parametrize("path", [EMPLOYEES, SHOP])
def test_an_option_that_a_later_version_adds_changes_no_digest_until_it_is_set(path: str) -> None:
    mapping = mapping_in(path)
    assert digests(later(mapping)) == digests(mapping)
    for changed in (later(mapping, {"mask": "x"}), later(mapping, {"tags": ("x",)}), later(mapping, retention=True)):
        assert len(digests(changed)) == 1, "older versions had no such mapping"
        assert digests(changed)[0] not in digests(mapping)


def test_words_and_the_order_of_targets_change_no_digest() -> None:
    mapping = mapping_in(SHOP)
    described = [
        replace(target, columns=tuple(replace(column, description="words") for column in target.columns))
        for target in reversed(mapping.targets)
    ]
    assert digests(replace(mapping, targets=tuple(described), name="other", path="other", owners=("a@b",))) == digests(
        mapping
    )


COLUMN = Column("c", "a", ("a",), parse_sql_type("text"))
TARGET = Target("public", "t", ("c",), (COLUMN,))


@pytest.mark.parametrize(
    "changed",
    [{"name": "d"}, {"attribute": "b", "path": ("b",)}, {"path": ("a", 0)}, {"type": parse_sql_type("varchar(3)")},
     {"default": ""}, {"on_error": OnError.NULL}, {"epoch": "seconds"}, {"json": "parse"}, {"capture": "a"}],
)  # fmt: skip
def test_whatever_changes_a_row_changes_the_digest(changed: dict[str, Any]) -> None:
    mapping = TableMapping("t", "t", {"a": "S"}, (TARGET,))
    others = replace(mapping, targets=(replace(TARGET, columns=(replace(COLUMN, **changed),)),))
    assert not set(digests(others)) & set(digests(mapping))


@pytest.mark.parametrize("changed", [{"name": "u"}, {"schema": "s"}, {"primary_key": ()}, {"unmapped": "rest"},
    {"unmapped_on_error": OnError.NULL}, {"parent": "p"}, {"explode": ("l",)}, {"children": (TARGET,)}])  # fmt: skip
def test_whatever_changes_a_target_changes_the_digest(changed: dict[str, Any]) -> None:
    mapping = TableMapping("t", "t", {"a": "S"}, (TARGET,))
    others = replace(mapping, targets=(replace(TARGET, **changed),))
    assert not set(digests(others)) & set(digests(mapping))


def test_a_pattern_changes_the_digest() -> None:
    mapping = mapping_in(SHOP)
    (name, pattern), *rest = mapping.targets[0].match
    changed = ((name, replace(pattern, texts=("CLIENT#", *pattern.texts[1:]))), *rest)
    others = replace(mapping, targets=(replace(mapping.targets[0], match=changed), *mapping.targets[1:]))
    assert not set(digests(others)) & set(digests(mapping))
    assert not set(digests(replace(mapping, key={"SK": "S", "PK": "S"}))) & set(digests(mapping))
