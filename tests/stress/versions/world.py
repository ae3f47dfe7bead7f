"""Versions of many keys, written to two targets in two orders by the product's own code, against a real PostgreSQL.

Invariant: what the histories must hold is computed from the versions alone, by `pipeline.core.ordering`. Each key is a
history of its own.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cmp_to_key
from itertools import groupby, pairwise
from typing import Any

from psycopg import Rollback, sql

from pipeline.aurora.bookkeeping import histories, loads
from pipeline.aurora.bookkeeping.watermarks import Mark
from pipeline.aurora.rows import apply, batch, build_aside, build_indexes, history_fill, history_purge, staging
from pipeline.aurora.schema import history_tables, tables
from pipeline.aurora.schema.migrate import migrate
from pipeline.aurora.sessions.connection import Connection, connect
from pipeline.core.mapping_files.mapping_file import read_mapping
from pipeline.core.model.change import Change
from pipeline.core.model.mapping import Target
from pipeline.core.ordering import Position, supersedes
from pipeline.core.streams.stream_records import DecodedBatch

_TARGET = """
  {0}:
    primary_key: [Id]
    unmapped: ignore
    history: {{keep: 20d}}
    columns: {{Id: {{attribute: Id, type: bigint}}, Name: {{attribute: Name, type: text}}}}
"""
_CHILD = """
  LeftLines:
    parent: Left
    explode: lines
    element: {line: integer}
    columns: {sku: {attribute: sku, type: text}}
"""
MAPPING = read_mapping(
    "name: versions\nsource: {table: Versions, key: {Id: N}}\ntargets:"
    + _TARGET.format("Left")
    + _CHILD
    + _TARGET.format("Right"),
    "versions.yaml",
)
ARN = "arn:aws:dynamodb:eu-west-1:111122223333:table/Versions/stream/2026-01-01T00:00:00.000"
# Some versions are older than the first partition, some fall into several, and some are ahead of the clock.
BEGIN = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0) - timedelta(days=3)
SPAN_SECONDS = 4 * 86_400
PAST_SECONDS = 2 * 86_400
KEEP = timedelta(days=20)


@dataclass(frozen=True, slots=True)
class Version:
    """A state of a key at a position: `number` 0 is a snapshot, `state` None a delete."""

    key: int
    seconds: float
    number: int
    state: str | None

    @property
    def position(self) -> Position:
        return Position(BEGIN + timedelta(seconds=self.seconds), self.number or None)

    @property
    def name(self) -> str | None:
        """The state's name; a live row may have none."""
        return None if self.state is None or self.state[0] == "-" else self.state[0]

    @property
    def lines(self) -> range:
        return range(0 if self.state is None else int(self.state[1]))

    def change(self, target: Target) -> Change:
        """Return it as a change of a target."""
        if self.state is None:
            return Change((str(self.key),), None, self.position)
        lines = ", ".join(f'["{n}", "{self.state}"]' for n in self.lines)
        row = (str(self.key), self.name, f"[{lines}]")
        return Change((str(self.key),), row[: 2 + len(target.children)], self.position)

    def shown(self, target: Target) -> tuple[str | None, Any]:
        """Return name and lines, as the view shows them; without a child target, no lines."""
        live = self.state is not None and target.children
        return self.name, [{"line": n, "sku": self.state} for n in self.lines] if live else None


class Unequal(AssertionError):  # noqa: N818 - what it says
    """A history that is not what its versions say."""


@dataclass
class Side:
    """One target, and the versions that it was given."""

    connection: Connection
    target: Target
    given: set[Version] = field(default_factory=set[Version])
    builds: int = 0
    kept_from: datetime = BEGIN - KEEP
    """Before any purge, all that a run writes is kept."""

    def __post_init__(self) -> None:
        self.writer = batch.BatchWriter(MAPPING)
        self.statement = apply.ApplyStatement(self.target, MAPPING.name, MAPPING.table)

    # The ways in which versions come.

    def stream(self, versions: Sequence[Version]) -> None:
        """Deliver a batch, as the replicator does."""
        changes = [version.change(self.target)._replace(origin=number) for number, version in enumerate(versions)]
        mark = Mark(MAPPING.name, "versions", "", None, None, len(changes), 0, 0, stream_arn=ARN)
        self.writer.write(self.connection, DecodedBatch({self.target: changes}), [{} for _ in changes], mark)
        self.given |= set(versions)

    def repair(self, versions: Sequence[Version]) -> None:
        """Apply states that were read again, or records that were replayed, as reconciliation and replay do."""
        changes = self.statement.candidates([version.change(self.target) for version in versions])
        with self.connection.transaction():
            self.statement.apply(self.connection, changes)
        self.given |= set(versions)

    def merge(self, versions: Sequence[Version], *, killed: bool = False) -> None:
        """Merge a file of a snapshot; its versions have one time. If it is killed, nothing is left of it."""
        with self.connection.transaction():
            made = staging.Staging.temporary(self.connection, self.target, deletes=True)
            made.copy(self.connection, [[made.row(version.change(self.target)) for version in versions]])
            made.merge(self.connection, MAPPING.name, versions[0].position.as_of)
            self.connection.execute(sql.SQL("DROP TABLE {}").format(made.name))
            if killed:
                raise Rollback
        self.given |= set() if killed else set(versions)

    def build_aside(self, versions: Sequence[Version], overtaking: Sequence[Version], *, killed: bool) -> None:
        """Load a snapshot aside; `overtaking` are written while it is built. If it is killed, it resumes."""
        as_of, connection, self.builds = versions[0].position.as_of, self.connection, self.builds + 1
        export = loads.Export(
            kind="full",
            location=f"{self.target.name} {self.builds}",
            snapshot_time=as_of,
            as_of=as_of,
            item_count=1,
            file_count=1,
            size_bytes=1,
        )
        record = loads.begin(connection, MAPPING.name, export, strategy="aside")
        (build,) = build_aside.create(connection, record.id, MAPPING.name, [self.target], as_of)
        rows = [change.row for version in versions if (change := version.change(self.target)).row]
        with (
            connection.cursor() as cursor,
            cursor.copy(staging.copy_statement(self.target, build.identifier, carried=False)) as copy,
        ):
            copy.write("".join("\t".join((f"{row[0]}", row[1] or r"\N")) + "\n" for row in rows))
        for child in build.children:
            copied = staging.copy_statement(child.target, child.identifier)
            with connection.cursor() as cursor, cursor.copy(copied) as copy:
                copy.write("".join(f"{v.key}\t{n}\t{v.state}\n" for v in versions for n in v.lines))
        build_indexes.build(connection, build)
        for attempt in range(1 + killed):
            history_fill.record_build(connection, build, pages=1)
            copied = build_aside.copy_over(connection, build)
            if killed and not attempt:
                continue
            if overtaking:
                self.stream(overtaking)
            build_aside.swap(connection, build, copied, stopped=threading.Event())
        connection.execute("DELETE FROM replication.exports WHERE id = %s", [record.id])
        self.given |= set(versions)

    def fill(self) -> None:
        """Fill the history from the stored rows, as `migrate` and `purge` do: nothing is missing."""
        self.connection.execute("UPDATE replication.histories SET filled_xid = NULL")
        if added := history_fill.fill(self.connection, MAPPING.name, self.target, pages=1):
            raise Unequal(f"{added} stored rows had no version")

    def purge(self, days: float) -> None:
        """Purge as of `days` after the beginning of what is kept, and check that what is shown from there on stays."""
        before = self.shown()
        now = BEGIN + timedelta(days=days) + KEEP
        for start, end in history_purge.missing(self.connection, self.target, now):
            history_purge.add_partition(self.connection, self.target, start, end)
        for partition in history_purge.expired(self.connection, self.target, now):
            history_purge.drop_partition(self.connection, self.target, partition)
        history_purge.tidy(self.connection, self.target, MAPPING.name, now)
        recorded = histories.read(self.connection, self.target)
        assert recorded
        if recorded.kept_from != (wanted := max(BEGIN + timedelta(days=int(days)), self.kept_from)):
            raise Unequal(f"{self.target.name}: kept from {recorded.kept_from} instead of {wanted}")
        self.kept_from = wanted
        self.check_base()
        if (after := self.shown()) != (expected := self.kept(before)):
            keys = [key for key in before if after.get(key) != expected.get(key)]
            raise Unequal(f"{self.target.name}: a purge changed {len(keys)} keys: {before[keys[0]]} is shown as"
                          f" {after.get(keys[0])}")  # fmt: skip

    def kept(self, shown: dict[int, list[tuple[Any, ...]]]) -> dict[int, list[tuple[Any, ...]]]:
        """What of this reaches into what is kept."""
        return {key: [row for row in rows if row[1] is None or row[1] > self.kept_from] for key, rows in shown.items()}

    def prove(self, begin: int, end: int) -> None:
        """Let a catch-up have proven that Aurora has every change made between these seconds."""
        span = [BEGIN + timedelta(seconds=begin), BEGIN + timedelta(seconds=end)]
        self.connection.execute("UPDATE replication.tables SET proven = tstzmultirange(tstzrange(%s, %s))", span)

    # What must be.

    def check(self) -> None:
        """Raise Unequal unless the versions, the view and the stored rows are what the given versions say."""
        if self.kept_from < BEGIN:
            self.check_versions()
        self.check_view()
        self.check_live()

    def check_versions(self) -> None:
        names = tables.identifiers((*self.target.stored_columns, *history_tables.children_columns(self.target)))
        found = self.connection.execute(
            sql.SQL(
                "SELECT _as_of, _version, _deleted, {names} FROM {} UNION ALL"
                " SELECT _as_of, _version, _deleted, {names} FROM {}"
            ).format(history_tables.versions(self.target), history_tables.base(self.target), names=names)
        ).fetchall()
        there = sorted(
            (key, at, int(number), deleted, _text(name, *lines)) for at, number, deleted, key, name, *lines in found
        )
        wanted = sorted(
            (v.key, v.position.as_of, v.number, v.state is None, _text(*v.shown(self.target))) for v in self.given
        )
        if there != wanted:
            raise Unequal(f"{self.target.name}: {_first_difference(there, wanted)}")

    def shown(self) -> dict[int, list[tuple[Any, ...]]]:
        """The view's rows by key, in time."""
        lines = [sql.Identifier(child.name) for child in self.target.children] or [sql.SQL("NULL")]
        found = self.connection.execute(
            sql.SQL(
                'SELECT "Id", valid_from, valid_to, is_current, deleted, source, gap, "Name", {} FROM {}'
                ' ORDER BY "Id", valid_from, valid_to'
            ).format(lines[0], history_tables.view(self.target))
        ).fetchall()
        return {key: [row[1:] for row in rows] for key, rows in groupby(found, key=lambda row: row[0])}

    def check_view(self) -> None:
        shown = self.shown()
        for key, versions in self.by_key():
            rows = shown.pop(key, [])
            self.check_intervals(key, rows)
            wanted = [row for row in intervals(versions, self.target) if row[1] is None or row[1] > self.kept_from]
            if in_order(versions) and wanted != (found := [row[:5] + row[6:] for row in rows]):
                raise Unequal(f"{self.target.name}: key {key} is shown as {found}, not as {wanted}")
        if shown:
            raise Unequal(f"{self.target.name}: {len(shown)} keys are shown and have no version")

    def check_intervals(self, key: int, rows: Sequence[tuple[Any, ...]]) -> None:
        if not rows or rows[-1][1] is not None or [row[2] for row in rows] != [False] * (len(rows) - 1) + [True]:
            raise Unequal(f"{self.target.name}: key {key} has no current version, or several")
        if any(one[1] != other[0] for one, other in pairwise(rows)):
            raise Unequal(f"{self.target.name}: the intervals of key {key} overlap or leave a hole")

    def check_live(self, *, whatever_came_late: bool = False) -> None:
        """The newest version is the stored row, also if changes came too late for that, where no time runs back."""
        lines = sql.SQL("NULL::jsonb")
        for child in self.target.children:
            lines = sql.SQL(
                "(SELECT COALESCE(jsonb_agg(jsonb_build_object('line', c.line, 'sku', c.sku) ORDER BY c.line), '[]')"
                ' FROM {} c WHERE c."Id" = p."Id")'
            ).format(tables.view(child))
        query = sql.SQL('SELECT p."Id", p."Name", {} FROM {} p').format(lines, tables.view(self.target))
        live = {key: (name, lines) for key, name, lines in self.connection.execute(query)}
        shown = self.shown()
        for key, versions in self.by_key():
            newest = shown[key][-1]
            comparable = in_order(versions) if whatever_came_late else has_newest(versions)
            if comparable and live.get(key) != (None if newest[3] else newest[6:]):
                raise Unequal(f"{self.target.name}: key {key} is {live.get(key)}, and its newest version {newest}")

    def check_ends(self) -> None:
        """What ends a version that came too late is the stored row, at a time when that was stored already."""
        found = self.connection.execute(
            sql.SQL(
                'SELECT DISTINCT "Id" FROM {} h JOIN {} k USING ("Id") WHERE k._as_of > h._as_of AND h._version = 0'
                " AND extract(microseconds FROM h._as_of)::int % 1000000 = 999999"
            ).format(history_tables.versions(self.target), tables.storage(self.target))
        )
        keys = {key for (key,) in found}
        if wrong := [key for key, versions in self.by_key() if key in keys and in_order(versions)]:
            raise Unequal(f"{self.target.name}: keys {wrong} have a version of the stored row that is older than it")

    def check_base(self) -> None:
        """The base has no more than it needs: the last version of each row, the first of its run, the one before."""
        query = sql.SQL('SELECT "Id" FROM {} GROUP BY 1 HAVING count(*) > 3').format(history_tables.base(self.target))
        keys = {key for (key,) in self.connection.execute(query)}
        if surplus := [key for key, versions in self.by_key() if key in keys and in_order(versions)]:
            raise Unequal(f"{self.target.name}: the base has more than it needs of keys {surplus}")

    def by_key(self) -> Iterator[tuple[int, list[Version]]]:
        for key, versions in groupby(sorted(self.given, key=lambda v: v.key), key=lambda version: version.key):
            yield key, list(versions)


def in_order(versions: Iterable[Version]) -> bool:
    """Whether no creation time runs back against the sequence numbers: then the ordering rule is a total order."""
    streamed = sorted((version for version in versions if version.number), key=lambda version: version.number)
    return all(one.seconds <= other.seconds for one, other in pairwise(streamed))


def has_newest(versions: Sequence[Version]) -> bool:
    """Whether one of them is newer than every other, so that the order of arrival cannot matter."""
    return any(all(v is w or supersedes(v.position, w.position) for w in versions) for v in versions)


def alike(version: Version, target: Target) -> tuple[Any, ...]:
    """Return what makes two versions one row of the view."""
    return version.state is None, *version.shown(target)


def intervals(versions: Iterable[Version], target: Target) -> list[tuple[Any, ...]]:
    """What the view must show: runs of equal states, in the order of the rule."""
    order = sorted(versions, key=cmp_to_key(lambda a, b: 1 if supersedes(a.position, b.position) else -1))
    runs = [order[0], *(new for old, new in pairwise(order) if alike(new, target) != alike(old, target))]
    ends = [*(run.position.as_of for run in runs[1:]), None]
    return [
        (
            run.position.as_of,
            end,
            end is None,
            run.state is None,
            "stream" if run.number else "snapshot",
            *run.shown(target),
        )
        for run, end in zip(runs, ends, strict=True)
    ]


def _text(name: str | None, lines: object = None) -> str:
    return json.dumps([name, lines], sort_keys=True)


def _first_difference(there: Sequence[Any], wanted: Sequence[Any]) -> str:
    extra, missing = [v for v in there if v not in wanted], [v for v in wanted if v not in there]
    return f"{len(there)} versions instead of {len(wanted)}; missing {missing[:1]}, too many {extra[:1]}"


class System:
    """One database with both targets; `reset` creates their tables again, so that mutations of them take effect."""

    def __init__(self, url: str) -> None:
        self.connection = connect(url, application_name="versions")

    def close(self) -> None:
        self.connection.close()

    def reset(self) -> tuple[Side, Side]:
        with self.connection.transaction():
            self.connection.execute(
                "DROP SCHEMA IF EXISTS replica CASCADE; DROP SCHEMA IF EXISTS replication CASCADE;"
                " CREATE SCHEMA replica"
            )
        migrate(self.connection, [MAPPING])
        left, right = (Side(self.connection, target) for target in MAPPING.targets)
        assert histories.read(self.connection, left.target)
        return left, right
