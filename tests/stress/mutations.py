"""Mutations of the ordering contract, each a small patch at run time, that the stress run must detect.

Invariant: a mutation alters one decision. Mutations that cannot alter any outcome are in EQUIVALENT with the reason,
and are not counted. The database and the product's modules are restored when a mutation's context ends.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from unittest.mock import patch

from psycopg import sql

from pipeline.aurora.rows import apply, batch, purge, staging, upsert
from pipeline.aurora.schema import tables
from pipeline.aurora.sessions.connection import Connection, trusted
from pipeline.core import ordering
from pipeline.core.model import change
from pipeline.core.model.change import Change
from pipeline.core.model.mapping import DELETED, VERSION, Target
from pipeline.core.ordering import Position
from pipeline.core.streams import positions, record_code, stream_records
from pipeline.jobs.load import load

Patches = Callable[[], list[Any]]


@dataclass(frozen=True, slots=True)
class Mutation:
    """`patches` alters the product's modules; `trigger` is DDL on each storage table, undone afterwards."""

    name: str
    patches: Patches = list
    trigger: str | None = None

    @contextmanager
    def applied(self, connection: Connection, targets: list[Target]) -> Generator[None]:
        with ExitStack() as stack:
            for each in self.patches():
                stack.enter_context(each)
            if self.trigger:
                for target in targets:
                    _create_trigger(connection, target, self.trigger)
                    stack.callback(_drop_trigger, connection, target)
            yield


def _create_trigger(connection: Connection, target: Target, body: str) -> None:
    connection.execute(
        sql.SQL(
            "CREATE OR REPLACE FUNCTION mutation() RETURNS trigger LANGUAGE plpgsql AS {body};"
            " CREATE TRIGGER mutation AFTER INSERT OR UPDATE ON {table} FOR EACH STATEMENT EXECUTE FUNCTION mutation()"
        ).format(body=sql.Literal(body), table=tables.storage(target))
    )


def _drop_trigger(connection: Connection, target: Target) -> None:
    connection.execute(sql.SQL("DROP TRIGGER mutation ON {}").format(tables.storage(target)))


# The rule in SQL: c is the candidate, s the stored row, v the version, a the time.

_BOTH = "c.v IS NOT NULL AND s.v IS NOT NULL"
_TIE = "c.a = s.a AND c.v IS NULL AND s.v IS NOT NULL"


def _rule_sql(text: str) -> Patches:
    def supersedes(candidate: str, stored: str) -> sql.Composable:
        written = text.replace("c.", f'"{candidate}".').replace("s.", f'"{stored}".')
        return sql.SQL(trusted(written.replace(".v", '."_version"').replace(".a", '."_as_of"')))

    return lambda: [patch.object(upsert, "supersedes", supersedes)]


def _case_sql(streamed: str = "c.v > s.v", otherwise: str = f"c.a > s.a OR ({_TIE})", when: str = _BOTH) -> Patches:
    return _rule_sql(f"CASE WHEN {when} THEN {streamed} ELSE {otherwise} END")


def _new_keys_sql(text: str, where: list[Any]) -> Patches:
    def admitted(target: Target, mapping_name: str) -> sql.Composed:
        admits = sql.SQL(trusted(text)).format(
            admits=upsert.admits_new_key("c", mapping_name),
            as_of=sql.Identifier("c", "_as_of"),
            deleted=sql.Identifier("c", "_deleted"),
            mapping=sql.Literal(mapping_name),
        )
        return sql.SQL("({} OR EXISTS {})").format(admits, upsert.stored_key(target))

    names = {apply: "admitted_late", staging: "admitted"}
    return lambda: [patch.object(module, names[module], admitted) for module in where]


def _all_is_new() -> list[Any]:
    """Every change of the stream counts as newer than what was purged."""

    def newest_closed(_: str) -> sql.Composable:
        return sql.SQL("'-infinity'")

    return [patch.object(upsert, "newest_closed", newest_closed)]


_PURGED = "(SELECT purged_through FROM replication.tables WHERE name = {mapping})"


def _forgets(column: str) -> Patches:
    """The upsert does not update `column`."""
    original = upsert.on_conflict

    def on_conflict(target: Target) -> sql.Composed:
        text = original(target).as_string()
        return sql.Composed(
            [sql.SQL(trusted(text.replace(f'"{column}" = excluded."{column}"', f'"{column}" = stored."{column}"')))]
        )

    return lambda: [patch.object(upsert, "on_conflict", on_conflict)]


def _stored_rows_refused() -> list[Any]:
    """Every candidate is compared with the purge, not only those without a stored row."""
    original = upsert.on_conflict

    def on_conflict(target: Target) -> sql.Composed:
        text = original(target).as_string()
        purged = "(SELECT max(purged_through) FROM replication.tables)"
        return sql.Composed([sql.SQL(trusted(f"{text} AND excluded.\"_as_of\" > COALESCE({purged}, '-infinity')"))])

    return [patch.object(upsert, "on_conflict", on_conflict)]


# The rule in Python.


def _always(_candidate: object, _stored: object) -> bool:
    return True


def _never(_candidate: object, _stored: object) -> bool:
    return False


def _rule_python(rule: Callable[[Position, Position], bool]) -> Patches:
    return lambda: [patch.object(change, "supersedes", rule)]


def _python_case(
    streamed: Callable[[int, int], bool] = lambda c, s: c > s,
    later: Callable[[datetime, datetime], bool] = lambda c, s: c > s,
    at_tie: Callable[[bool, bool], bool] = lambda c_streamed, s_streamed: not c_streamed and s_streamed,
) -> Patches:
    def supersedes(candidate: Position, stored: Position) -> bool:
        if candidate.version is not None and stored.version is not None:
            return streamed(candidate.version, stored.version)
        if candidate.as_of != stored.as_of:
            return later(candidate.as_of, stored.as_of)
        return at_tie(candidate.streamed, stored.streamed)

    return _rule_python(supersedes)


def _coalesce(keep: Callable[[Change, Change], Change]) -> Patches:
    def coalesce(changes: list[Change]) -> list[Change]:
        kept: dict[tuple[str, ...], Change] = {}
        for candidate in changes:
            kept[candidate.key] = keep(kept[candidate.key], candidate) if candidate.key in kept else candidate
        return [kept[key] for key in sorted(kept)]

    return lambda: [patch.object(module, "coalesce", coalesce) for module in (apply, batch)]


def _versions(version: Callable[[int, str], int]) -> Patches:
    def stream_version(stream_label: str, sequence_number: str) -> int:
        return version(positions._label_milliseconds(stream_label), sequence_number)  # pyright: ignore[reportPrivateUsage] - the rule's own parts

    return lambda: [patch.object(positions, "stream_version", stream_version)]


def _margins(as_of: Callable[[datetime, timedelta], datetime]) -> Patches:
    def snapshot_position(snapshot_time: datetime, margin: timedelta = ordering.DEFAULT_MARGIN) -> Position:
        return Position(as_of(snapshot_time, margin))

    return lambda: [patch.object(module, "snapshot_position", snapshot_position) for module in (ordering, load)]


def _creation_times(as_of: Callable[[datetime], datetime]) -> Patches:
    original = positions.streamed_position

    def streamed_position(label: str, number: str, time: float | str) -> Position:
        position = original(label, number, time)
        return Position(as_of(position.as_of), position.version)

    return lambda: [
        patch.object(module, "streamed_position", streamed_position) for module in (record_code, stream_records)
    ]


def _purge(statement: str, replacement: str) -> Patches:
    """Purge with one piece of its SQL text replaced."""
    original_sql = sql.SQL

    class Altered(original_sql):
        def __init__(self, text: Any) -> None:  # noqa: ANN401 - SQL takes a LiteralString
            super().__init__(trusted(text.replace(statement, replacement)))

    return lambda: [patch.object(purge.sql, "SQL", Altered)]


def _purge_records(through: Callable[[datetime], datetime | None]) -> Patches:
    original = purge.purge_chunk

    def purge_chunk(connection: Connection, target: Target, mapping_name: str, until: datetime, *, rows: int) -> int:
        before = connection.execute("SELECT purged_through FROM replication.tables WHERE name = %s", [mapping_name])
        row = before.fetchone()
        known = row[0] if row else None
        count = original(connection, target, mapping_name, until, rows=rows)
        said = through(until)
        connection.execute(
            "UPDATE replication.tables SET purged_through = GREATEST(%s::timestamptz, %s::timestamptz) WHERE name = %s",
            [known, said, mapping_name],
        )
        return count

    return lambda: [patch.object(purge, "purge_chunk", purge_chunk)]


EQUIVALENT: dict[str, str] = {
    "SQL or Python: streamed, > becomes >=": (
        "equal versions are one record, and applying it again writes what is there"
    ),
    "SQL: whole versions compared as text": (
        "the label is 13 digits of milliseconds until the year 2286 and the number is padded to 40, so texts of one"
        " length compare as numbers; the mutations that compare the sequence numbers alone as text are caught"
    ),
    "SQL or Python: streamed, compared by time and then by version": (
        "while one key's creation times do not run back, that is the order of the versions"
    ),
    "creation time: not rounded down": "stream records carry whole seconds already (botocore: StreamRecord)",
    "merge: of a key twice in one file, another line": "a full export holds an item once; twice, no line is the better",
}
"""Alterations that cannot change an outcome under the contract's assumptions, and why."""

MUTATIONS: tuple[Mutation, ...] = (
    Mutation("SQL: streamed, > becomes <", _case_sql(streamed="c.v < s.v")),
    Mutation("SQL: streamed, always taken", _case_sql(streamed="true")),
    Mutation("SQL: streamed, never taken", _case_sql(streamed="false")),
    Mutation("SQL: streamed, compared by time alone", _rule_sql(f"c.a > s.a OR ({_TIE})")),
    Mutation("SQL: streamed, label ignored", _case_sql(streamed="mod(c.v, 1e40) > mod(s.v, 1e40)")),
    Mutation(
        "SQL: streamed, sequence numbers compared as text",
        _case_sql(streamed="(div(c.v, 1e40), mod(c.v, 1e40)::text) > (div(s.v, 1e40), mod(s.v, 1e40)::text)"),
    ),
    Mutation("SQL: otherwise, > becomes <", _case_sql(otherwise=f"c.a < s.a OR ({_TIE})")),
    Mutation("SQL: otherwise, > becomes >=", _case_sql(otherwise="c.a >= s.a")),
    Mutation("SQL: otherwise, time ignored, always taken", _case_sql(otherwise="true")),
    Mutation("SQL: otherwise, time ignored, never taken", _case_sql(otherwise="false")),
    Mutation("SQL: snapshot always beats streamed", _case_sql(otherwise="c.v IS NULL OR c.a > s.a")),
    Mutation("SQL: snapshot never beats streamed", _case_sql(otherwise="s.v IS NULL AND c.a > s.a")),
    Mutation("SQL: streamed always beats snapshot", _case_sql(otherwise=f"c.v IS NOT NULL OR c.a > s.a OR ({_TIE})")),
    Mutation("SQL: streamed never beats snapshot", _case_sql(otherwise=f"c.v IS NULL AND (c.a > s.a OR ({_TIE}))")),
    Mutation(
        "SQL: snapshot beats snapshot whatever the time",
        _case_sql(otherwise=f"(c.v IS NULL AND s.v IS NULL) OR c.a > s.a OR ({_TIE})"),
    ),
    Mutation(
        "SQL: snapshot never beats snapshot",
        _case_sql(otherwise=f"NOT (c.v IS NULL AND s.v IS NULL) AND (c.a > s.a OR ({_TIE}))"),
    ),
    Mutation(
        "SQL: tie flipped, streamed over snapshot",
        _case_sql(otherwise="c.a > s.a OR (c.a = s.a AND c.v IS NOT NULL AND s.v IS NULL)"),
    ),
    Mutation("SQL: tie dropped", _case_sql(otherwise="c.a > s.a")),
    Mutation(
        "SQL: rule for streamed taken for a streamed candidate over any row",
        _case_sql(streamed="c.v > COALESCE(s.v, 0)", when="c.v IS NOT NULL"),
    ),
    Mutation("SQL: no rule, last arrival wins", _rule_sql("true")),
    Mutation("SQL: no rule, first arrival wins", _rule_sql("false")),
    Mutation("SQL: new keys, purge ignored", _new_keys_sql("true", [apply, staging])),
    Mutation("SQL: new keys, purge ignored by the stream", _new_keys_sql("true", [apply])),
    Mutation("SQL: new keys, purge ignored by the merge", _new_keys_sql("true", [staging])),
    Mutation(
        "SQL: new keys, > becomes >=",
        _new_keys_sql("{as_of} >= COALESCE(" + _PURGED + ", '-infinity')", [apply, staging]),
    ),
    Mutation(
        "SQL: new keys, > becomes <", _new_keys_sql("{as_of} < COALESCE(" + _PURGED + ", 'infinity')", [apply, staging])
    ),
    Mutation("SQL: new keys, never where a purge was", _new_keys_sql(_PURGED + " IS NULL", [apply, staging])),
    Mutation("SQL: new keys, all the stream brings is newer than what was purged", _all_is_new),
    Mutation("SQL: purge holds against stored rows too", _stored_rows_refused),
    Mutation(
        "SQL: a delete of an unknown key leaves no tombstone", _new_keys_sql("({admits} AND NOT {deleted})", [apply])
    ),
    Mutation(
        "SQL: deletes remove the row",
        trigger="BEGIN EXECUTE format('DELETE FROM %s WHERE _deleted', TG_RELID::regclass); RETURN NULL; END",
    ),
    Mutation(
        "SQL: deletes are not applied",
        _new_keys_sql("{admits}", [apply]),
        trigger="BEGIN IF pg_trigger_depth() = 1 THEN EXECUTE"
        " format('UPDATE %s SET _deleted = false WHERE _deleted', TG_RELID::regclass); END IF; RETURN NULL; END",
    ),
    Mutation("SQL: the version is not brought along", _forgets(VERSION)),
    Mutation("SQL: the time is not brought along", _forgets("_as_of")),
    Mutation("SQL: the deleted mark is not brought along", _forgets(DELETED)),
    Mutation("purge: not recorded", _purge_records(lambda _: None)),
    Mutation("purge: recorded a second short", _purge_records(lambda until: until - timedelta(seconds=1))),
    Mutation("purge: live rows go too", _purge("{deleted} AND {as_of} <=", "{as_of} <=")),
    Mutation("purge: younger tombstones go too", _purge("{as_of} <= %(through)s", "%(through)s::text IS NOT NULL")),
    Mutation("Python: streamed, > becomes <", _python_case(streamed=lambda c, s: c < s)),
    Mutation("Python: streamed, always taken", _python_case(streamed=_always)),
    Mutation("Python: streamed, never taken", _python_case(streamed=_never)),
    Mutation("Python: otherwise, > becomes <", _python_case(later=lambda c, s: c < s)),
    Mutation("Python: otherwise, always taken", _python_case(later=_always)),
    Mutation("Python: otherwise, never taken", _python_case(later=_never)),
    Mutation("Python: tie flipped", _python_case(at_tie=lambda c, s: c and not s)),
    Mutation("Python: tie dropped", _python_case(at_tie=_never)),
    Mutation(
        "Python: times alone", _rule_python(lambda c, s: c.as_of > s.as_of or (c.as_of == s.as_of and not c.streamed))
    ),
    Mutation(
        "Python: snapshot always wins",
        _rule_python(lambda c, s: c.version is None or (s.version is not None and c.version > s.version)),
    ),
    Mutation(
        "Python: streamed always wins",
        _rule_python(lambda c, s: c.version is not None and (s.version is None or c.version > s.version)),
    ),
    Mutation(
        "coalesce: keeps the oldest",
        _coalesce(lambda kept, new: new if ordering.supersedes(kept.position, new.position) else kept),
    ),
    Mutation("coalesce: keeps the first to arrive", _coalesce(lambda kept, _: kept)),
    Mutation("coalesce: keeps the last to arrive", _coalesce(lambda _, new: new)),
    Mutation(
        "coalesce: a delete loses",
        _coalesce(
            lambda kept, new: new if new.row is not None and ordering.supersedes(new.position, kept.position) else kept
        ),
    ),
    Mutation("version: label ignored", _versions(lambda _, number: int(number))),
    Mutation(
        "version: sequence numbers sort as text",
        _versions(lambda label, number: label * 10**40 + int(number.ljust(40, "0"))),
    ),
    Mutation("version: label after the sequence number", _versions(lambda label, number: int(number) * 10**14 + label)),
    Mutation("margin: ignored", _margins(lambda time, _: time)),
    Mutation("margin: added", _margins(lambda time, margin: time + margin)),
    Mutation("margin: a second short", _margins(lambda time, margin: time - margin + timedelta(seconds=1))),
    Mutation("margin: a second long", _margins(lambda time, margin: time - margin - timedelta(seconds=1))),
    Mutation("creation time: a second late", _creation_times(lambda time: time + timedelta(seconds=1))),
    Mutation("creation time: a second early", _creation_times(lambda time: time - timedelta(seconds=1))),
)
