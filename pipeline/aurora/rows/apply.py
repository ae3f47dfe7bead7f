"""Applies changes to a target: one guarded upsert for a set of changes, under the ordering rule.

Invariant: after any batch the stored row of each key is the newest state seen, whatever the order, repetition or
concurrency. The statement is `INSERT … SELECT FROM unnest(…) ON CONFLICT DO UPDATE … WHERE supersedes`: the primary key
serialises writers of one key, and PostgreSQL evaluates the condition on the row as the other writer left it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from itertools import count, islice
from typing import TYPE_CHECKING, Any, NamedTuple

from psycopg import RawCursor, sql

from pipeline.aurora.bookkeeping import watermarks
from pipeline.aurora.bookkeeping.sources import of_record
from pipeline.aurora.rows import children, history
from pipeline.aurora.rows.ordering_sql import admits_new_key
from pipeline.aurora.rows.upsert import admitted, admitted_late, stored_key, upsert
from pipeline.aurora.schema import tables
from pipeline.aurora.sessions.connection import trusted
from pipeline.core.model.change import coalesce
from pipeline.core.model.mapping import AS_OF, DELETED, VERSION
from pipeline.core.types.arrays import array_literal

if TYPE_CHECKING:
    from collections.abc import Iterable

    from psycopg import Cursor

    from pipeline.aurora.sessions.connection import Connection
    from pipeline.core.model.change import Change
    from pipeline.core.model.mapping import Target


class Applied(NamedTuple):
    """Counts of one batch for one target. `deleted` and `expired` (by time to live) are parts of `applied`.

    `refused` is the part of `stale` that had no stored row and was not newer than `purged_through`.
    """

    applied: int = 0
    stale: int = 0
    deleted: int = 0
    expired: int = 0
    refused: int = 0

    def plus(self, other: Applied) -> Applied:
        """Add two counts."""
        return Applied(*(mine + theirs for mine, theirs in zip(self, other, strict=True)))


class Sent(NamedTuple):
    """A sent apply statement, with its changes and parameters."""

    answer: Cursor[tuple[Any, ...]]
    changes: Sequence[Change]
    parameters: Sequence[str | None]


@dataclass(frozen=True)
class ApplyStatement:
    """The apply statement of one target, composed once. `parameters` fills it for a batch.

    `query` returns (applied, deleted, expired, refused); `query_with_mark` also adds these counts to the writer's
    watermark, so that a batch and its mark are one statement, one round trip and one transaction. Both fail without
    applying anything if `source_table` is not the source of record, or if the changes come from another table's stream.
    """

    target: Target
    mapping_name: str
    source_table: str
    of_rejects: bool = False
    """Whether it applies changes that were set aside as rejects: a proof that Aurora has all changes does not cover
    them."""
    protection: str = ""
    """What the mapping protects: it fails without applying anything if something else is in force."""
    query: bytes = field(init=False)
    query_with_mark: bytes = field(init=False)

    def __post_init__(self) -> None:
        upsert = _compose(
            self.target, self.mapping_name, self.source_table, self.protection, of_rejects=self.of_rejects
        )
        keys = [sql.SQL(", array_agg({})").format(sql.Identifier(f"key {i}")) for i in _key_numbers(self.target)]
        query = upsert + _COUNT.format(keys=sql.SQL("").join(keys))
        with_mark = upsert + watermarks.MARK_APPLIED + _COUNT.format(keys=sql.SQL(""))
        # As bytes, once: psycopg would otherwise join the parts for every batch. It would also look for the parameters
        # of a long statement each time, unless they are PostgreSQL's own: $1, $2, …
        object.__setattr__(self, "query", query.as_bytes())
        number = count(1)
        numbered = re.sub(rb"%s", lambda _: b"$%d" % next(number), with_mark.as_bytes())
        object.__setattr__(self, "query_with_mark", numbered)

    def send_with_mark(
        self, connection: Connection, changes: Sequence[Change], mark: watermarks.Mark
    ) -> Cursor[tuple[Any, ...]]:
        """Execute `query_with_mark`: in a pipeline this does not wait for an answer."""
        parameters = [*self.parameters(changes, mark.stream_arn), *mark.parameters()]
        return RawCursor(connection).execute(self.query_with_mark, parameters, prepare=True)

    def candidates(self, changes: Iterable[Change]) -> list[Change]:
        """Return the changes to send: the newest of each key, or all of them if every version is kept."""
        return list(changes) if self.target.history else coalesce(changes)

    def apply(
        self, connection: Connection, changes: Sequence[Change], stream_arn: str | None = None
    ) -> tuple[int, int, int, int]:
        """Apply `candidates`, children included, inside the caller's transaction.

        Returns (applied, deleted, expired, refused). Targets with children must use this: `query` alone would not
        replace the children.
        """
        return self.finish(connection, self.send(connection, changes, stream_arn))

    def send(self, connection: Connection, changes: Sequence[Change], stream_arn: str | None = None) -> Sent:
        """Begin `apply`: in a pipeline this does not wait for an answer."""
        parameters = self.parameters(changes, stream_arn)
        return Sent(connection.execute(self.query, parameters, prepare=True), changes, parameters)

    def finish(self, connection: Connection, sent: Sent) -> tuple[int, int, int, int]:
        """Finish `apply`, in the same transaction."""
        row = sent.answer.fetchone() or (0, 0, 0, 0)
        if self.target.children and row[0]:
            self._replace_children(connection, sent.changes, sent.parameters, row[4:])
        return row[0], row[1], row[2], row[3]

    def _replace_children(
        self,
        connection: Connection,
        changes: Sequence[Change],
        parameters: Sequence[str | None],
        taken: Sequence[Sequence[str]],
    ) -> None:
        target, stored = self.target, self.target.stored_columns
        if target.history:
            changes = coalesce(changes)
            parameters = self.parameters(changes)
        types = [column.type.input_sql for column in target.key_columns]
        sent = [*types, *("jsonb" for _ in target.carried), "numeric", "timestamptz"]
        names = [*target.primary_key, *target.carried, VERSION, AS_OF]
        values = [parameters[stored.index(name)] for name in target.primary_key]
        values += self._carried(changes)
        values += parameters[len(stored) : len(stored) + 2]
        named: dict[str, object] = {f"c{i}": value for i, value in enumerate(values)}
        named |= {f"t{i}": array_literal(list(texts)) for i, texts in enumerate(taken)}
        children.replace_children(
            connection,
            target,
            taken=_unnest("t", types, target.primary_key),
            candidates=_unnest("c", sent, names),
            parameters=named,
        )

    def parameters(self, changes: Sequence[Change], stream_arn: str | None = None) -> list[str | None]:
        """Return an array literal for each storage column of the changes, then their stream's ARN, and the versions of
        deletes by expiry. With a history, what the changes carry and which are the newest come before the ARN.
        """
        names = self.target.stored_columns
        # A delete has only its key.
        keys = [self.target.primary_key.index(n) if n in self.target.primary_key else None for n in names]
        rows = [[None if i is None else c.key[i] for i in keys] if c.row is None else c.row for c in changes]
        # The child rows that a row carries after its columns are sent only if the row is accepted.
        columns = islice(zip(*rows, strict=False), len(names)) if rows else [()] * len(names)
        return [
            *map(nullable_array_literal, columns),
            _bare_array(["NULL" if c.position.version is None else str(c.position.version) for c in changes]),
            _bare_array([_isoformat(c.position.as_of) for c in changes]),
            _bare_array(["t" if c.row is None else "f" for c in changes]),
            *(self._of_history(changes) if self.target.history else ()),
            stream_arn,
            _bare_array([str(c.position.version) for c in changes if c.expired]),
        ]

    def _of_history(self, changes: Sequence[Change]) -> list[str]:
        newest = {id(change) for change in coalesce(changes)}
        return [*self._carried(changes), array_literal(["t" if id(c) in newest else "f" for c in changes])]

    def _carried(self, changes: Sequence[Change]) -> list[str]:
        """Return an array literal for each child target, of the child rows that the changes carry."""
        first = len(self.target.stored_columns)
        return [
            nullable_array_literal([None if c.row is None else c.row[first + number] for c in changes])
            for number in range(len(self.target.carried))
        ]


# The records of a batch share their seconds.
_isoformat = lru_cache(maxsize=4_096)(datetime.isoformat)

_COUNT = sql.SQL(
    " SELECT count(*), count(*) FILTER (WHERE deleted), count(*) FILTER (WHERE expired),"
    " (SELECT n FROM refused){keys} FROM applied"
)


def _key_numbers(target: Target) -> range:
    """Return the indexes of the key columns whose texts the apply statement returns, to find the children by."""
    return range(len(target.primary_key) if target.children else 0)


def _unnest(prefix: str, types: Sequence[str], names: Sequence[str]) -> sql.Composed:
    """Compose a relation of the columns `names`, from the parameters prefix0, prefix1, …"""
    arrays = sql.SQL(", ").join(
        sql.SQL(trusted(f"%({prefix}{number})s::{sql_type}[]")) for number, sql_type in enumerate(types)
    )
    return sql.SQL("(SELECT * FROM unnest({}) AS u ({}))").format(arrays, tables.identifiers(names))


def nullable_array_literal(values: Sequence[str | None]) -> str:
    """Write texts and NULLs as a PostgreSQL array literal; without NULLs it is faster."""
    if None not in values:
        return array_literal(values)  # type: ignore[arg-type]  # just checked
    present = "".join([v for v in values if v is not None])
    if "\\" in present or '"' in present:
        quoted = ["NULL" if v is None else '"' + v.replace("\\", "\\\\").replace('"', '\\"') + '"' for v in values]
    else:
        quoted = ["NULL" if v is None else f'"{v}"' for v in values]
    return _bare_array(quoted)


def _bare_array(texts: list[str]) -> str:
    """Write texts that need no quotes, or NULL, as a PostgreSQL array literal."""
    return f"{{{','.join(texts)}}}"


def _compose(
    target: Target, mapping_name: str, source_table: str, protection: str, *, of_rejects: bool
) -> sql.Composed:
    types = [column.type for column in target.columns]
    sent = [t.sent_sql for t in types]
    sent += ["jsonb"] * (len(target.stored_columns) - len(types)) + ["numeric", "timestamptz", "boolean"]
    of_history = [*target.carried, history.NEWEST] if target.history else []
    sent += ["jsonb"] * (len(of_history) - 1) + ["boolean"] * bool(of_history)
    arrays = sql.SQL(", ").join(sql.SQL("%s::{}[]").format(sql.SQL(t)) for t in sent)  # type: ignore[arg-type]
    names = tables.all_columns(target)
    cast = {column.name: column.type.name for column in target.columns if column.type.is_array}

    def selected(names: Sequence[str]) -> sql.Composed:
        return sql.SQL(", ").join(
            sql.SQL("c.{}::{}").format(sql.Identifier(n), sql.SQL(cast[n]))  # type: ignore[arg-type]
            if n in cast
            else sql.SQL("c.{}").format(sql.Identifier(n))
            for n in names
        )

    newest = sql.SQL("c.{} AND ").format(sql.Identifier(history.NEWEST)) if target.history else sql.SQL("")
    condition = sql.SQL("{}{} AND {}").format(
        newest,
        of_record(sql.Literal(mapping_name), sql.Literal(source_table), sql.SQL("%s::text"), sql.Literal(protection)),
        (admitted if of_rejects else admitted_late)(target, mapping_name),
    )
    return sql.SQL(
        # The writing part comes first, because it takes the stronger lock on the table. Otherwise a writer would hold
        # the weaker lock while it waits for a swap, and the swap would wait for the writer.
        "WITH c ({names}) AS MATERIALIZED (SELECT * FROM unnest({arrays})), applied AS ({upsert}"
        " RETURNING stored.{deleted} AS deleted,"
        " stored.{deleted} AND COALESCE(stored.{version} = ANY (%s::numeric[]), false) AS expired{keys}){versions},"
        " refused AS (SELECT count(*) AS n FROM c WHERE {newest}NOT ({admits}) AND NOT EXISTS {stored_key})"
    ).format(
        keys=sql.SQL("").join(
            sql.SQL(", stored.{}::text AS {}").format(sql.Identifier(n), sql.Identifier(f"key {i}"))
            for i, n in enumerate(target.primary_key)
            if target.children
        ),
        names=tables.identifiers((*names, *of_history)),
        arrays=arrays,
        upsert=upsert(target, sql.SQL("c"), values=selected(names), condition=condition, order=_key_order(target)),
        versions=_versions(target, mapping_name, selected(target.stored_columns), of_rejects=of_rejects),
        newest=newest,
        admits=admits_new_key("c", mapping_name),
        stored_key=stored_key(target),
        deleted=sql.Identifier(DELETED),
        version=sql.Identifier(VERSION),
    )


def _versions(target: Target, mapping_name: str, values: sql.Composed, *, of_rejects: bool) -> sql.Composable:
    """Compose the parts that record every change as a version; nothing for a target without a history.

    Nothing reads them, so they run after the upsert has locked the rows (`history.record`).
    """
    if not target.history:
        return sql.SQL("")
    recorded = history.record(
        target, sql.SQL("c"), history.carried(target), values=values, condition=admitted(target, mapping_name)
    )
    parts = sql.SQL(", versions AS ({})").format(recorded)
    if of_rejects:
        return parts
    return sql.SQL("{}, late AS ({})").format(parts, history.close_late(target, mapping_name))


def _key_order(target: Target) -> sql.Composed:
    """Order by the key as its index does, and as a merge locks rows: so a load and a batch never deadlock."""
    return sql.SQL(", ").join(
        sql.SQL('c.{} COLLATE "C"' if column.type.codec.is_text else "c.{}").format(sql.Identifier(column.name))
        for column in target.key_columns
    )
