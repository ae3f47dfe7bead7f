"""The rules for protected attributes: `protect` of a column, and the paths that `unmapped` protects.

Invariant: an attribute that is protected in one place is protected in every place that the same items fill, or the file
is refused. A key attribute is never protected, because items are read again and deleted by their keys.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.core.mapping_files.yaml_fields import suggestion
from pipeline.core.model.attributes import parse_path
from pipeline.core.model.protection import (
    ANY,
    HASH_DIGITS,
    MASKED,
    Protect,
    Rule,
    generalized,
    overlap,
    remainders,
    spelled,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pipeline.core.mapping_files.yaml_fields import Document, Field
    from pipeline.core.model.attributes import PathPart
    from pipeline.core.model.mapping import Column, Target
    from pipeline.core.types.sql_types import SqlType

UNMAPPED_EXAMPLE = 'unmapped: {column: attributes, drop: [ssn, "card.*"]}'
PATHS_EXAMPLE = '[ssn, "card.*"]'
_KEY_REMEDY = (
    "which must stay readable: rows are found and items are read again by it; keep personal data out of keys, or let"
    " the source store a hash of it as the key"
)
_TEXT_LENGTHS = {Protect.HASH: HASH_DIGITS, Protect.MASK: len(MASKED)}


def read_protect(
    field: Field, path: tuple[PathPart, ...] | None, sql_type: SqlType | None, key: dict[str, str] | None
) -> Protect | None:
    """Read a column's `protect`; notes problems."""
    text = field.text("write hash, mask or drop")
    if text is None:
        return None
    if text not in set(Protect):
        field.problem(f'"{text}" is not a protection; {suggestion(text, list(Protect), "write one of")}')
        return None
    how = Protect(text)
    if path and key and path[0] in key:
        field.problem(f"{path[0]} is a key attribute, {_KEY_REMEDY}")
    length = _TEXT_LENGTHS.get(how)
    if sql_type is not None and length and not _holds_text(sql_type, length):
        field.problem(
            f"{sql_type.sql} cannot hold what is stored with {how}, a text of {length} characters; use text"
            + (f", or varchar({length}) or longer" if how is Protect.HASH else "")
        )
    return how


def _holds_text(sql_type: SqlType, length: int) -> bool:
    return sql_type.name == "text" or (sql_type.name == "varchar" and sql_type.params[0] >= length)


def check_options(fields: dict[str, Field]) -> None:
    """Note options of a column that make no sense together with `protect`."""
    if "protect" in fields and "default" in fields:
        fields["default"].problem(
            "would stand beside protected values as a value in clear; remove it: a missing attribute is NULL"
        )


def read_unmapped_rules(fields: dict[str, Field], key: dict[str, str] | None) -> tuple[Rule, ...]:
    """Read the paths that `unmapped` protects; notes problems."""
    found: list[Rule] = []
    for how in Protect:
        if how not in fields:
            continue
        for element in fields[how].elements(PATHS_EXAMPLE) or ():
            path = _read_path(element, key)
            if path is not None:
                found.append(Rule(path, how))
    return tuple(found)


def _read_path(field: Field, key: dict[str, str] | None) -> tuple[str, ...] | None:
    text = field.text("name an attribute, such as ssn")
    if text is None:
        return None
    try:
        parts = parse_path(text)
    except ValueError as error:
        field.problem(f'{error}; "*" stands for each member of a map and each element of a list: "card.*"')
        return None
    if any(isinstance(part, int) for part in parts):
        field.problem(f'"{text}" names one element of a list, whose place may change; write * for all: lines.*.card')
    elif parts[0] == ANY:
        field.problem('"*" at the beginning names every attribute; name them, or write `unmapped: ignore`')
    elif key and parts[0] in key:
        field.problem(f"{parts[0]} is a key attribute, {_KEY_REMEDY}")
    else:
        return generalized(parts)
    return None


@dataclass(frozen=True, slots=True)
class _Place:
    """Something that takes an attribute, or protects it: its path in the item, and its field in the file."""

    path: tuple[str, ...]
    how: Protect | None
    field: str
    what: str
    holds_any: bool = True
    """Whether it can hold a value with replaced parts."""
    remedy: str = ""
    """What to do, if it is no column."""


def check_protection(document: Document, targets: Sequence[Target]) -> None:
    """Note each place where a protected attribute would be stored in clear, or protected in two ways."""
    groups = [[target] for target in targets if target.match] or [list(targets)]
    for group in groups:
        places = [place for target in group for place in _places(target, document)]
        rules = [place for place in places if place.how]
        for number, rule in enumerate(rules):
            _check_rules(document, rule, rules[:number])
        for place in places:
            if not place.how:
                _check_place(document, place, rules)


def _check_rules(document: Document, rule: _Place, before: Iterable[_Place]) -> None:
    other = next((one for one in before if overlap(one.path, rule.path)), None)
    if other is None or (other.path == rule.path and other.how is rule.how):
        return
    _problem(
        document,
        rule,
        f'protects "{spelled(rule.path)}" ({rule.how}), and {other.what} protects "{spelled(other.path)}"'
        f" ({other.how}): the same value in two ways; keep one of them, or write the same in both",
    )


def _check_place(document: Document, place: _Place, rules: Iterable[_Place]) -> None:
    for rule in rules:
        left = remainders(rule.path, place.path)
        if not left:
            continue
        if () not in left:  # it holds a map or list with the protected value inside, replaced
            if not place.holds_any:
                _problem(
                    document,
                    place,
                    f'holds "{spelled(rule.path)}", which {rule.what} protects ({rule.how}); use type jsonb or text[]',
                )
            continue
        shown = f'"{spelled(place.path)}"'
        if place.remedy:
            remedy = place.remedy
        elif place.path == rule.path:
            remedy = f"add protect: {rule.how} here too, or remove the column"
        else:
            remedy = f'protect {shown} instead of "{spelled(rule.path)}", or remove the column'
        _problem(document, place, f"takes {shown}, which {rule.what} protects ({rule.how}); {remedy}")


def _problem(document: Document, place: _Place, what: str) -> None:
    document.problem(document.lines.get(place.field, 1), place.field, what)


def _places(target: Target, document: Document, above: tuple[str, ...] = ()) -> Iterable[_Place]:
    root = _field(target, document)
    for column in target.own_columns if target.parent else target.columns:
        if column.capture is None:
            yield _column_place(column, above, f"{root}.columns.{column.name}", target)
    for rule in target.protect:
        field = f"{root}.unmapped.{rule.how}"
        yield _Place(rule.path, rule.how, field, f"unmapped of {target.view_name}")
    for child in target.children:
        inside = (*above, *generalized(child.explode))
        field, remedy = _field(child, document), "protect the columns of the child instead"
        if child.member:
            inside, remedy = (*inside, ANY), "the members of a set are keys of its rows: remove the child"
        yield _Place(inside, None, field, child.view_name, remedy=remedy)
        yield from _places(child, document, (*inside, ANY))


def _field(target: Target, document: Document) -> str:
    """Return the target's field: its name may be written with schema public or without."""
    name = f"targets.{target.name}"
    return name if name in document.lines else f"targets.{target.view_name}"


def _column_place(column: Column, above: tuple[str, ...], field: str, target: Target) -> _Place:
    path = (*above, *generalized(column.path))
    holds_any = column.type.name in {"jsonb", "text[]"}
    return _Place(path, column.protect, field, f'column "{column.name}" of {target.view_name}', holds_any)
