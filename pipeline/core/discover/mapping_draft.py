"""A mapping file written from profiles: what a person would write after looking at the table, with the evidence.

Invariant: the file can be read as a mapping, and accepts every item that was seen. No comment contains a value.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.core.discover.key_kinds import told_apart, with_captures
from pipeline.core.discover.observations import spell
from pipeline.core.discover.profile import AttributeProfile, evidence, propose, share
from pipeline.core.mapping_files.column_rules import name_problem
from pipeline.core.mapping_files.mapping_rules import MOST_COLUMNS
from pipeline.core.model.attributes import parse_path
from pipeline.core.names import fitting, with_digest

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from pipeline.core.discover.key_kinds import ItemKind

# An attribute that fewer of the items have stays in the jsonb column; its line becomes a comment.
COLUMN_PRESENCE = 0.25
# A map with more members than this is a collection with changing names, not a record.
MOST_MEMBERS = 30
_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*", re.ASCII)
_YAML_WORDS = frozenset({"y", "n", "yes", "no", "on", "off", "true", "false", "null"})
_WIDTH = 110


@dataclass(frozen=True, slots=True)
class Discovered:
    """What a sample of a table showed."""

    table: str
    key: Mapping[str, str]
    sample: str
    """Where the items came from, in words."""
    profiles: tuple[AttributeProfile, ...]
    kinds: tuple[ItemKind, ...] = ()
    by_kind: Mapping[int, tuple[AttributeProfile, ...]] | None = None
    """Profiles of each kind's own items, by the kind's index."""


def mapping_name(table: str, *, distinct: bool = False) -> str:
    """Return the identifier for a table's mapping: `Shop.Orders-v2` → `shop_orders_v2`.

    `distinct` adds a digest of the table's name, for tables whose names differ only in characters that are replaced.
    """
    snake = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", table)
    name = re.sub(r"[^a-z0-9]+", "_", snake.lower()).strip("_").lstrip("0123456789_") or "table_1"
    return with_digest(name, table) if distinct else fitting(name)


def view_name(table: str, *, distinct: bool = False) -> str:
    """Return the view's name: the table's, without the characters that would split it; see `mapping_name`."""
    name = re.sub(r"[.-]", "_", table)
    return with_digest(name, table) if distinct else fitting(name)


def draft(
    found: Discovered, *, presence: float = COLUMN_PRESENCE, schema: str | None = None, distinct: bool = False
) -> str:
    """Return the mapping file's text. `schema` is where editors find the JSON Schema. `distinct`: `mapping_name`."""
    lines = [f"# yaml-language-server: $schema={schema}"] if schema else []
    lines += [
        f"# From {found.sample}: what was seen is beside each column.",
        "# Read it, name the columns as people should see them, and remove what nobody needs.",
        f"name: {mapping_name(found.table, distinct=distinct)}",
        f"source: {{table: {_scalar(found.table)}, key: {_flow(found.key)}}}",
        "targets:",
        f"  {_scalar(view_name(found.table, distinct=distinct))}:",
        f"    primary_key: [{', '.join(map(_scalar, _key_columns(found.key)))}]",
        "    columns:",
    ]
    taken, left = _columns(found, presence)
    lines += taken
    if left:
        lines += [
            f"      # Left in the jsonb column: in under {100 * presence:.0f} % of the items, within a map, or without",
            "      # a usable name or type. `dynaurora promote` can add one later from there, without a load.",
        ]
        lines += left
    lines.append(f"    unmapped: {_unmapped(found.profiles)}")
    lines += _kinds(found)
    return "\n".join(lines) + "\n"


def column_line(profile: AttributeProfile, *, key_tag: str | None = None) -> str | None:
    """Return an attribute's column line, `name: {attribute: …, type: …}`; None if it cannot be written."""
    proposal = propose(profile, key_tag=key_tag)
    name = column_name(profile.path)
    if proposal.type is None or name is None:
        return None
    epoch = f", epoch: {proposal.epoch}" if proposal.epoch else ""
    return f"{_scalar(name)}: {{attribute: {_scalar(profile.path)}, type: {_type(proposal.type)}{epoch}}}"


def column_name(path: str) -> str | None:
    """Return a column name for an attribute; a path's parts are joined. None if PostgreSQL cannot use the name."""
    name = "_".join(map(str, parse_path(path)))
    return None if name_problem(name, column=True) else name


def _key_columns(key: Mapping[str, str]) -> list[str]:
    # A key attribute whose name cannot be a column name still needs a column.
    return [column_name(spell(name)) or f"key_{index}" for index, name in enumerate(key, 1)]


def _columns(found: Discovered, presence: float) -> tuple[list[str], list[str]]:
    by_path = {profile.path: profile for profile in found.profiles}
    taken: list[str] = []
    for name, tag, column in zip(found.key, found.key.values(), _key_columns(found.key), strict=True):
        profile = by_path.pop(spell(name), None) or AttributeProfile(spell(name), 0, {tag: 0})
        proposal = propose(profile, key_tag=tag)
        seen = f"key, {evidence(profile)}" if profile.items else "key, no item was seen"
        line = f"{_scalar(column)}: {{attribute: {_scalar(spell(name))}, type: {_type(proposal.type or 'text')}}}"
        taken += [*_comment("; ".join((seen, *proposal.remarks))), f"      {line}"]
    left: list[str] = []
    names = set(_key_columns(found.key))
    for profile in _by_presence(by_path.values()):
        nested = len(parse_path(profile.path)) > 1
        if nested and _is_collection(profile, found.profiles):
            continue
        line, name = column_line(profile), column_name(profile.path)
        kept = not nested and profile.presence >= presence and line and name not in names and len(names) < MOST_COLUMNS
        remarks = [evidence(profile), *propose(profile).remarks]
        if kept and name and line:
            names.add(name)
            taken += [*_comment("; ".join(remarks)), f"      {line}"]
        else:
            left += _comment("; ".join(remarks if line else [_shown(profile.path), *remarks]))
            left += [f"      # {line}"] if line else []
    return taken, left


def _is_collection(profile: AttributeProfile, profiles: Sequence[AttributeProfile]) -> bool:
    parent = profile.path[: -len(spell(str(parse_path(profile.path)[-1])))]
    return sum(other.path.startswith(parent) for other in profiles) > MOST_MEMBERS


def _by_presence(profiles: Iterable[AttributeProfile]) -> list[AttributeProfile]:
    return sorted(profiles, key=lambda profile: (-profile.present, profile.path))


def _unmapped(profiles: Sequence[AttributeProfile]) -> str:
    names = {column_name(profile.path) for profile in profiles}
    return next(name for name in ("attributes", "other_attributes", "unmapped_attributes_1") if name not in names)


def _kinds(found: Discovered) -> list[str]:
    """Describe each kind of item as a target of its own, in comments, so that the person decides."""
    if not told_apart(found.kinds):
        return []
    total = sum(kind.items for kind in found.kinds)
    count = len(found.kinds)
    lines = ["", f"# The keys show {count} kind{'' if count == 1 else 's'} of items. As targets of their own:"]
    for index, kind in enumerate(found.kinds):
        patterns = with_captures(kind)
        lines += [f"#   # {share(kind.items, total)} of the items", f"#   {_scalar(_kind_name(kind))}:"]
        lines.append(f"#     match: {{{', '.join(f'{_scalar(n)}: {_quoted(p)}' for n, p in patterns.items())}}}")
        captures = re.findall(r"{(\w+)}", " ".join(patterns.values()))
        lines += [f"#     primary_key: [{', '.join(captures)}]", "#     columns:"]
        own = (found.by_kind or {}).get(index, ())
        shown = [p for p in _by_presence(own) if p.path not in map(spell, found.key) and len(parse_path(p.path)) == 1]
        for profile in shown:
            line = column_line(profile)
            lines.append(f"#       {line}" if line else f"#       # {_shown(profile.path)}")
            lines[-1] += f"  # {evidence(profile)}"
    return lines


def _kind_name(kind: ItemKind) -> str:
    words = re.findall(r"[A-Za-z]+", " ".join(pattern.replace("{}", " ") for pattern in kind.patterns.values()))
    return "".join(word.capitalize() for word in words) or "Others"


def _comment(text: str) -> list[str]:
    lines, line = list[str](), "      #"
    for word in text.split(" "):
        if len(line) + len(word) >= _WIDTH and line != "      #":
            lines.append(line)
            line = "      #"
        line += f" {word}"
    return [*lines, line]


def _type(name: str) -> str:
    return _quoted(name) if "," in name or "[" in name else name


def _flow(members: Mapping[str, str]) -> str:
    return f"{{{', '.join(f'{_scalar(name)}: {value}' for name, value in members.items())}}}"


def _shown(path: str) -> str:
    return f"attribute {_quoted(path)}"


def _scalar(text: str) -> str:
    return text if _PLAIN.fullmatch(text) and text.lower() not in _YAML_WORDS else _quoted(text)


def _quoted(text: str) -> str:
    return json.dumps(text)  # every JSON string is one of YAML's in double quotes
