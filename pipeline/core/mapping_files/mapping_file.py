"""Reads a mapping file: from YAML text to a TableMapping that is valid by construction.

Invariant: a TableMapping from here can be created in PostgreSQL and written to without further checks, and two items
never share a row. Everything wrong with a file is reported at once, each problem with file, line, field and remedy.
docs/mapping.md is the reference; docs/mapping.schema.json is the same for editors.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING

from pipeline.core.mapping_files.child_rules import is_child, read_child
from pipeline.core.mapping_files.history_rules import check_histories
from pipeline.core.mapping_files.mapping_rules import TARGET_EXAMPLE, read_target, read_target_name
from pipeline.core.mapping_files.match_rules import MATCH_EXAMPLE, check_overlaps, read_unmatched
from pipeline.core.mapping_files.protection_rules import check_protection
from pipeline.core.mapping_files.reader_rules import READERS_EXAMPLE, read_readers, with_readers
from pipeline.core.mapping_files.yaml_fields import Document, MappingError
from pipeline.core.model.mapping import TableMapping, Unmatched
from pipeline.core.ordering import DEFAULT_MARGIN, SMALLEST_MARGIN
from pipeline.core.types.sql_types import KEY_TYPES

if TYPE_CHECKING:
    from pipeline.core.mapping_files.yaml_fields import Field
    from pipeline.core.model.mapping import Target

_ROOT = {
    "name": "name: employees",
    "source": "source: {table: Employees, key: {Id: N}}",
    "targets": "targets: {Employees: {primary_key: [Id], columns: {Id: {attribute: Id, type: bigint}}}}",
}
_ROOT_OPTIONAL = {
    "margin": "margin: 5m",
    "freshness": "freshness: {warn: 5m, fail: 30m}",
    "schedule": 'schedule: {reconcile: "0 3 * * *", timezone: UTC}',
    "unmatched": "unmatched: ignore",
    "owners": "owners: [team:people, ama@example.com]",
    "readers": READERS_EXAMPLE,
}
_SOURCE = {"table": "table: Employees", "key": "key: {Id: N}"}
_NAME = re.compile(r"[a-z][a-z0-9_]{0,62}", re.ASCII)
# DynamoDB developer guide, naming rules.
_DYNAMODB_TABLE = re.compile(r"[A-Za-z0-9_.-]{3,255}", re.ASCII)
_DURATION = re.compile(r"(\d{1,6}) *([smhd])", re.ASCII)
_DURATION_UNIT = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
_CRON = re.compile(r"@(?:hourly|daily|weekly|monthly|yearly)|[0-9A-Za-z*/,\-#?]+(?: +[0-9A-Za-z*/,\-#?]+){4}", re.ASCII)
_TIMEZONE = re.compile(r"[A-Za-z_]+(?:/[A-Za-z0-9_+\-]+)*", re.ASCII)
# What Dagster accepts as an owner.
_OWNER = re.compile(r"[A-Za-z0-9._%+-]+@[A-Za-z0-9.-]+\.[A-Za-z]{2,7}|team:[A-Za-z0-9_.-]+", re.ASCII)
_SCHEDULE = {"reconcile": 'reconcile: "0 3 * * *"', "catch_up": 'catch_up: "0 * * * *"', "timezone": "timezone: UTC"}


@dataclass(frozen=True, slots=True)
class ParsedMapping:
    """A mapping, and the line of each of its fields, for checks across files."""

    mapping: TableMapping
    lines: dict[str, int]


def read_mapping(text: str, path: str) -> TableMapping:
    """Read one mapping from YAML text; `path` names it in messages. Raises MappingError with every problem."""
    return parse_mapping(text, path).mapping


def parse_mapping(text: str, path: str) -> ParsedMapping:
    """Like read_mapping, with the lines."""
    document = Document(path)
    root = document.compose(text)
    mapping = _read_root(root, path) if root else None
    if document.problems or mapping is None:
        raise MappingError(sorted(document.problems, key=lambda problem: problem.line))
    return ParsedMapping(mapping, document.lines)


def _read_root(root: Field, path: str) -> TableMapping | None:
    fields = root.known(_ROOT, _ROOT_OPTIONAL)
    if fields is None:
        return None
    name = _read_name(fields["name"]) if "name" in fields else None
    table, key = _read_source(fields["source"]) if "source" in fields else (None, None)
    targets = _read_targets(fields["targets"], key) if "targets" in fields else None
    margin = _read_margin(fields["margin"]) if "margin" in fields else DEFAULT_MARGIN
    schedule = _read_schedule(fields["schedule"]) if "schedule" in fields else {}
    freshness = _read_freshness(fields["freshness"]) if "freshness" in fields else {}
    unmatched = read_unmatched(fields["unmatched"]) if "unmatched" in fields else Unmatched.REJECT
    owners = _read_owners(fields["owners"]) if "owners" in fields else ()
    readers = read_readers(fields["readers"]) if "readers" in fields else ()
    if name is None or table is None or not key or not targets or margin is None:
        return None  # reported
    if "unmatched" in fields and not any(target.match for target in targets):
        fields["unmatched"].problem(
            "has no effect, because no target has a match and so every item is taken; remove it, or add"
            f" {MATCH_EXAMPLE}"
        )
    check_protection(root.document, targets)
    targets = with_readers(targets, readers)
    return TableMapping(name, table, key, targets, margin, path, schedule, freshness, unmatched, owners)


def _read_name(field: Field) -> str | None:
    name = field.text()
    if name is not None and not _NAME.fullmatch(name):
        usable = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_").lstrip("0123456789_")[:63]
        field.problem(
            f'"{name}" must be lower-case letters, digits and "_", starting with a letter, at most 63;'
            f" write {usable or 'employees'}"
        )
        return None
    return name


def _read_source(field: Field) -> tuple[str | None, dict[str, str] | None]:
    fields = field.known(_SOURCE, {})
    if fields is None:
        return None, None
    table = fields["table"].text() if "table" in fields else None
    if table is not None and not _DYNAMODB_TABLE.fullmatch(table):
        fields["table"].problem(
            f'"{table}" is not a DynamoDB table name: 3 to 255 letters, digits, "_", "." and "-";'
            " give the name, not the ARN"
        )
        table = None
    return table, _read_key(fields["key"]) if "key" in fields else None


def _read_key(field: Field) -> dict[str, str] | None:
    members = field.members("{Id: N}")
    if members is None:
        return None
    if not 1 <= len(members) <= 2:
        field.problem(
            f"a DynamoDB key has one attribute or two and this has {len(members)};"
            " give the partition key, then the sort key if there is one, such as {PK: S, SK: S}"
        )
        return None
    key: dict[str, str] = {}
    for name, member in members.items():
        tag = member.text("give the attribute's type: S, N or B")
        if tag is not None and tag not in KEY_TYPES:
            member.problem(f'"{tag}" is not a key attribute type; the types are S (string), N (number) and B (binary)')
        elif not name:
            member.problem("an attribute's name cannot be empty")
        elif tag is not None:
            key[name] = tag
    return key if len(key) == len(members) else None


def _read_targets(field: Field, key: dict[str, str] | None) -> tuple[Target, ...] | None:
    members = field.members(TARGET_EXAMPLE)
    if members is None:
        return None
    if not members:
        field.problem(f"has no target; add one, such as {TARGET_EXAMPLE}")
        return None
    targets: dict[str, Target] = {}
    read: list[tuple[Field, Target]] = []
    children = {name: member for name, member in members.items() if is_child(member)}
    for name, member in members.items():
        if name in children:
            continue
        target = read_target(name, member, key)
        if target is None:
            continue
        if target.storage_name in targets:
            member.problem(f"is the view {target.view_name}, as is another target of this file; remove or rename one")
        targets[target.storage_name] = target
        read.append((member, target))
    if key:
        check_overlaps(read, key)
    return _with_children(targets, children, key, members)


def _with_children(
    targets: dict[str, Target], children: dict[str, Field], key: dict[str, str] | None, members: dict[str, Field]
) -> tuple[Target, ...]:
    """Read the child targets, and attach each to its parent."""
    parents = {target.view_name: target for target in targets.values()}
    readable = len(targets) + len(children) == len(
        members
    )  # otherwise a parent may be missing because of its own problems
    taken = set(targets)
    roots = {view: view for view in parents}
    found: dict[str, list[Target]] = {view: [] for view in parents}
    for name, member in _parents_first(children):
        schema, view = read_target_name(name, member)
        if not parents and not readable:
            continue
        child = read_child(schema, view, member, parents, key)
        if child is None or child.parent is None:
            continue
        if child.storage_name in taken:
            member.problem(f"is the view {child.view_name}, as is another target of this file; remove or rename one")
        taken.add(child.storage_name)
        roots[child.view_name] = roots[child.parent]
        found[roots[child.parent]].append(child)
        parents[child.view_name] = child
    whole = tuple(replace(parents[view], children=tuple(below)) for view, below in found.items())
    check_histories(whole, members)
    return whole


def _parents_first(children: dict[str, Field]) -> list[tuple[str, Field]]:
    """Return child targets with each after its parent; a child that leads to no target comes last."""
    waiting = dict(children)
    ordered: list[tuple[str, Field]] = []
    while waiting:
        names = {name if "." in name else f"public.{name}" for name in waiting}
        ready = [
            name
            for name, field in waiting.items()
            if names.isdisjoint(
                {parent if "." in parent else f"public.{parent}" for parent in field.values_of("parent")}
            )
        ]
        ordered += [(name, waiting.pop(name)) for name in ready or list(waiting)]
    return ordered


def _read_margin(field: Field) -> timedelta | None:
    margin = _read_duration(field)
    if margin is not None and margin < SMALLEST_MARGIN:
        field.problem("must be at least 1s, the resolution of a stream record's time; the default is 5m")
        return None
    return margin


def _read_duration(field: Field) -> timedelta | None:
    if field.tag not in {"str", "int", "float"}:
        field.problem("must be a duration, such as 90s, 5m, 2h or 1d")
        return None
    match = _DURATION.fullmatch(field.written)
    if not match:
        field.problem(f'"{field.written}" is not a duration; write a number and its unit, such as 90s, 5m, 2h or 1d')
        return None
    return timedelta(**{_DURATION_UNIT[match[2]]: int(match[1])})


def _read_freshness(field: Field) -> dict[str, timedelta]:
    fields = field.known({"fail": "fail: 30m"}, {"warn": "warn: 5m"})
    if fields is None:
        return {}
    found = {name: duration for name, member in fields.items() if (duration := _read_duration(member)) is not None}
    for name in [name for name, duration in found.items() if duration < SMALLEST_MARGIN]:
        fields[name].problem("must be at least 1s, the resolution of a stream record's time")
    if "warn" in found and "fail" in found and found["warn"] >= found["fail"]:
        fields["warn"].problem(f"must be below fail, which is {fields['fail'].written}; warn earlier or fail later")
    return found


def _read_owners(field: Field) -> tuple[str, ...]:
    found: list[str] = []
    for member in field.elements("[team:people, ama@example.com]") or []:
        owner = member.text()
        if owner is not None and not _OWNER.fullmatch(owner):
            member.problem(
                f'"{owner}" is not an owner; write an e-mail address, or team: and a name, such as team:people'
            )
        found.append(owner or "")
    return tuple(found)


def _read_schedule(field: Field) -> dict[str, str]:
    fields = field.known({}, _SCHEDULE)
    found: dict[str, str] = {}
    for name, member in (fields or {}).items():
        text = member.text()
        if text is None:
            continue
        if name == "timezone":
            if not _TIMEZONE.fullmatch(text):
                member.problem(f'"{text}" is not the name of a time zone, such as UTC or Europe/Berlin')
        elif not _CRON.fullmatch(text):
            member.problem(
                f'"{text}" is not a cron expression; write minute, hour, day, month and weekday, such as "0 3 * * *"'
            )
        found[name] = text
    return found
