"""Unmapped: which attributes no column takes, and the mapping lines that would take them.

Invariant: every attribute in a jsonb column is in the report once: as one without a column, or as one that has a column
by now and waits to be promoted.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from itertools import groupby
from typing import TYPE_CHECKING

from pipeline.aurora.bookkeeping import unmapped as landing
from pipeline.core.discover.mapping_draft import column_line
from pipeline.core.discover.observations import DECIMAL, WHOLE, spell
from pipeline.core.discover.profile import AttributeProfile, evidence, propose

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pipeline.aurora.bookkeeping.unmapped import Landed, Look
    from pipeline.aurora.sessions.connection import Connection
    from pipeline.core.model.mapping import TableMapping, Target
    from pipeline.jobs.services import Services

_TIMEOUT_SECONDS = 120.0
# JSON itself distinguishes four types. A string may be S or B, an array a list or a set: the more common one is
# assumed.
_TAGS = {"string": "S", "number": "N", "boolean": "BOOL", "null": "NULL", "array": "L", "object": "M"}


class State(StrEnum):
    """Why an attribute is in the jsonb column."""

    NEW = "new"
    """No column takes it."""
    IN_PART = "in part"
    """Columns take parts of it by path; the whole stays in the jsonb column, as it should."""
    WAITING = "waiting"
    """The mapping has a column for it: rows that still have it here wait for `dynaurora promote`."""


@dataclass(frozen=True, slots=True)
class UnmappedAttribute:
    """One attribute that was found in a target's jsonb column."""

    target: str
    attribute: str
    state: State
    rows: int
    since: datetime
    """At least this old: the oldest `_as_of` among the rows that have it."""
    types: dict[str, int]
    """Rows by JSON type."""
    evidence: str
    line: str | None
    """The line for the mapping's columns, where one is proposed."""
    remarks: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class UnmappedReport:
    """What is in one target's jsonb column. `estimated`: a sample of the table was read, and counts are scaled."""

    target: str
    rows: int
    estimated: bool
    sampled_fraction: float
    attributes: tuple[UnmappedAttribute, ...]


def unmapped(services: Services, mapping: TableMapping) -> list[UnmappedReport]:
    """Report on each target that has a jsonb column. Raises TransientError, TerminalError (not migrated)."""
    with services.connect("dynaurora unmapped", statement_timeout_seconds=_TIMEOUT_SECONDS) as connection:
        return unmapped_of(connection, mapping)


def unmapped_of(
    connection: Connection, mapping: TableMapping, *, sampled_from_bytes: int = landing.SAMPLED_FROM_BYTES
) -> list[UnmappedReport]:
    """Like `unmapped`, on a connection of the caller's."""
    reports: list[UnmappedReport] = []
    for target in mapping.targets:
        if target.unmapped is None:
            continue
        look, landed = landing.look(connection, target, sampled_from_bytes=sampled_from_bytes)
        reports.append(
            UnmappedReport(
                target.view_name, look.rows, look.fraction < 1, look.fraction, tuple(_attributes(target, look, landed))
            )
        )
    return reports


def _attributes(target: Target, look: Look, landed: Iterable[Landed]) -> list[UnmappedAttribute]:
    whole = {column.path[0] for column in target.columns if len(column.path) == 1}
    in_part = {column.path[0] for column in target.columns} - whole
    found: list[UnmappedAttribute] = []
    for name, group in groupby(landed, key=lambda one: one.attribute):
        types = list(group)
        profile = _profile(name, look, types)
        state = State.WAITING if name in whole else State.IN_PART if name in in_part else State.NEW
        new = state is State.NEW
        found.append(
            UnmappedAttribute(
                target=target.view_name,
                attribute=profile.path,
                state=state,
                rows=profile.present,
                since=min(one.since for one in types),
                types={one.json_type: one.rows for one in types},
                evidence=evidence(profile),
                line=column_line(profile) if new else None,
                remarks=propose(profile).remarks if new else (),
            )
        )
    return sorted(found, key=lambda attribute: (-attribute.rows, attribute.attribute))


def _profile(name: str, look: Look, types: list[Landed]) -> AttributeProfile:
    numbers = next((one for one in types if one.json_type == "number"), None)
    return AttributeProfile(
        path=spell(name),
        items=max(look.rows, sum(one.rows for one in types)),
        tags={_TAGS[one.json_type]: one.rows for one in types},
        forms=_forms(types, look.fraction),
        longest=max(one.longest for one in types),
        smallest=numbers.smallest if numbers else None,
        largest=numbers.largest if numbers else None,
        whole_digits=_whole_digits(numbers) if numbers else 0,
        fraction_digits=numbers.fraction_digits if numbers else 0,
    )


def _whole_digits(numbers: Landed) -> int:
    return max(
        len(f"{abs(n):f}".partition(".")[0].lstrip("0")) for n in (numbers.smallest, numbers.largest) if n is not None
    )


def _forms(types: list[Landed], fraction: float) -> dict[str, int]:
    forms: dict[str, int] = {}
    for one in types:
        if one.json_type not in {"string", "number"}:
            continue
        forms |= {form: round(count / fraction) for form, count in one.forms.items()}
        rest = one.rows - sum(forms[form] for form in one.forms)
        if rest > 0:
            other = "" if one.json_type == "string" else DECIMAL if one.fraction_digits else WHOLE
            forms[other] = rest
    return forms
