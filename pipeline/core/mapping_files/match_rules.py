"""The rules for `match`: which items belong to a target, by patterns over the key attributes.

Invariant: an item belongs to at most one target, and a target's primary key identifies its item: every key attribute is
fixed by its pattern, or is in the primary key itself or with all its captured parts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.core.mapping_files.yaml_fields import suggestion
from pipeline.core.model.key_patterns import Pattern, PatternError, common_key, parse_pattern
from pipeline.core.model.mapping import Unmatched

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pipeline.core.mapping_files.yaml_fields import Field
    from pipeline.core.model.mapping import Column, Target

MATCH_EXAMPLE = 'match: {PK: "CUSTOMER#{customer_id}", SK: "ORDER#{order_id}"}'


def read_match(field: Field, key: dict[str, str] | None) -> tuple[tuple[str, Pattern], ...] | None:
    """Read a target's patterns. Notes problems; returns None if any cannot be used."""
    members = field.members(MATCH_EXAMPLE.removeprefix("match: "))
    if members is None:
        return None
    if not members:
        field.problem(f"has no pattern; add one, such as {MATCH_EXAMPLE}, or remove it to accept every item")
        return None
    patterns: list[tuple[str, Pattern]] = []
    for attribute, member in members.items():
        pattern = _read_pattern(attribute, member, key)
        if pattern is None:
            continue
        for name in pattern.captures:
            first = next((other for other, earlier in patterns if name in earlier.captures), None)
            if first is not None:
                member.problem(f'captures "{name}", as the pattern of {first} does; give the parts different names')
        patterns.append((attribute, pattern))
    return tuple(patterns) if len(patterns) == len(members) else None


def _read_pattern(attribute: str, field: Field, key: dict[str, str] | None) -> Pattern | None:
    if key is None:
        return None
    if attribute not in key:
        field.problem(
            f'"{attribute}" is not a key attribute, and the record of a delete carries only those, so it could not be'
            f" routed; {suggestion(attribute, key, 'the key attributes are')}"
        )
        return None
    is_number = key[attribute] == "N" and field.tag in {"int", "float"}
    text = field.written if is_number else field.text("write a pattern such as ORDER#{order_id}")
    if text is None:
        return None
    try:
        return parse_pattern(text, key[attribute])
    except PatternError as error:
        field.problem(str(error))
        return None


def read_unmatched(field: Field) -> Unmatched:
    """Read what happens to items that no target matches."""
    text = field.text("write reject or ignore")
    if text is not None and text not in set(Unmatched):
        field.problem(f'"{text}" is not a policy; {suggestion(text, list(Unmatched), "the policies are")}')
    return Unmatched(text) if text in set(Unmatched) else Unmatched.REJECT


def captures_of(match: Sequence[tuple[str, Pattern]] | None) -> dict[str, tuple[str, str]]:
    """Return the captured parts by name: their key attribute and its type."""
    return {name: (attribute, pattern.tag) for attribute, pattern in match or () for name in pattern.captures}


def missing_of_key(
    field: Field,
    names: Sequence[str],
    columns: Mapping[str, Column],
    key: Mapping[str, str],
    match: Sequence[tuple[str, Pattern]],
) -> None:
    """Note what the primary key needs to identify its item."""
    in_key = [columns[name] for name in dict.fromkeys(names)]
    whole = {column.path[0] for column in in_key if column.capture is None and len(column.path) == 1}
    captured = {column.capture for column in in_key}
    patterns = dict(match)
    for attribute in key:
        if attribute in whole:
            continue
        pattern = patterns.get(attribute)
        if pattern is None:
            field.problem(
                f'lacks the key attribute "{attribute}", without which two items could share a row;'
                f" {_add_remedy(attribute, columns)}"
            )
            continue
        for name in pattern.captures:
            if name not in captured:
                field.problem(
                    f'lacks "{name}", captured from the key attribute "{attribute}", without which two items could'
                    f" share a row; {_add_capture_remedy(name, columns)}"
                )
    if not names and all(attribute in patterns and not patterns[attribute].captures for attribute in key):
        field.problem("has no column; add one of a key attribute or of a captured part")


def _add_remedy(attribute: str, columns: Mapping[str, Column]) -> str:
    for column in columns.values():
        if column.path == (attribute,) and column.capture is None:
            return f"add its column {column.name}"
    return "add a column with that attribute to columns and here"


def _add_capture_remedy(capture: str, columns: Mapping[str, Column]) -> str:
    for column in columns.values():
        if column.capture == capture:
            return f"add its column {column.name}"
    return "add a column with that capture to columns and here"


def check_overlaps(fields: Sequence[tuple[Field, Target]], key: Mapping[str, str]) -> None:
    """Note every pair of targets that have an item in common, with such an item's key.

    Targets without `match` accept every item on purpose: several of them are several views of one kind of item.
    """
    for index, (field, target) in enumerate(fields):
        for _, earlier in fields[:index]:
            if not target.match and not earlier.match:
                continue
            shared = _shared_key(target, earlier, key)
            if shared is None:
                continue
            if target.match and earlier.match:
                remedy = "change the patterns so that they don't overlap"
            else:
                plain = target if not target.match else earlier
                remedy = f"give {plain.view_name} a match of its own"
            field.problem(f"accepts items that {earlier.view_name} accepts too, such as {shared}; {remedy}")


def _shared_key(one: Target, other: Target, key: Mapping[str, str]) -> str | None:
    ones, others = dict(one.match), dict(other.match)
    parts: list[str] = []
    for attribute, tag in key.items():
        value = common_key(ones.get(attribute), others.get(attribute), tag)
        if value is None:
            return None
        parts.append(f'{attribute} "{value}"' if tag == "S" else f"{attribute} {value}" if tag == "N" else attribute)
    return ", ".join(parts)
