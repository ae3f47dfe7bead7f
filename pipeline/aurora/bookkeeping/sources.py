"""The source of record: the one DynamoDB table whose state may be written under a mapping's name.

Invariant: the database decides, not a mapping file, because a replicator that is still deployed has an old file. Every
statement that applies changes includes `of_record`, and jobs call `require` before they start. Only `repoint` changes
the record, and it waits for the writers.

The table's name is recorded when the mapping is registered. Its ARN, and with it account and Region, and its id are
learned from the first job that sees the table. If the table replaced another, the label of its stream is recorded too:
records of an older stream belong to that other table, even if both have one name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from psycopg import sql
from psycopg.rows import class_row

from pipeline.aurora.errors import translating
from pipeline.core.errors import ConfigurationError

if TYPE_CHECKING:
    from datetime import datetime

    from pipeline.aurora.sessions.connection import Connection

_ARN_PARTS = ((4, "account"), (3, "Region"), (1, "partition"))


@dataclass(frozen=True, slots=True)
class SourceOfRecord:
    """What is recorded about a mapping's source; `arn` and `table_id` are None until they are known."""

    table: str
    arn: str | None = None
    table_id: str | None = None
    since: datetime | None = None
    """When the mapping was last re-pointed; None: never."""
    first_label: str | None = None
    """The label of this table's oldest stream, if the table replaced another."""

    def differences(self, table: str, arn: str | None) -> list[str]:
        """Return how a table, or a stream (`arn` is of either), differs; empty if it may be this one."""
        if table != self.table:
            return [f"table {table}, not {self.table}"]
        theirs, _, label = (arn or "").partition("/stream/")
        parts, ours = theirs.split(":", 5), (self.arn or "").split(":", 5)
        if len(ours) == len(parts) and ours != parts:
            return [f"{name} {parts[at]}, not {ours[at]}" for at, name in _ARN_PARTS if parts[at] != ours[at]]
        if label and self.first_label and label < self.first_label:
            return [f"stream {label}, older than {self.first_label}, the first of the table that has this name now"]
        return []


def of_record(
    name: sql.Composable, table: sql.Composable, stream_arn: sql.Composable, protection: sql.Composable | None = None
) -> sql.Composed:
    """SQL condition: the table and the stream are of record; NULL, or a mapping that is not registered, passes.

    `protection` must be in force too, for statements that store values (`pipeline.aurora.bookkeeping.protection`).

    It is true, or it makes the statement and its transaction fail. A false condition would only skip the changes, which
    would then count as stale. Plain SQL cannot raise an error of our own, so this reads a setting that does not exist,
    whose name gives the reason in the database's log.
    """
    return sql.SQL(
        "COALESCE((SELECT CASE WHEN COALESCE(source_table = {table}, true)"
        " AND COALESCE(source_arn = split_part(stream, '/stream/', 1), true)"
        " AND COALESCE(stream_label COLLATE \"C\" <= split_part(stream, '/stream/', 2), true){protected} THEN true"
        " ELSE current_setting('dynaurora: the source of record of ' || name || ' is another, '"
        " || COALESCE(source_arn, source_table) || ', or it protects other attributes')::boolean END"
        " FROM replication.tables, (SELECT {stream_arn} AS stream) AS batch WHERE name = {name}), true)"
    ).format(
        name=name,
        table=table,
        stream_arn=stream_arn,
        protected=sql.SQL(" AND COALESCE(protection, '') = {}").format(protection) if protection else sql.SQL(""),
    )


def read(connection: Connection, name: str) -> SourceOfRecord | None:
    """Return the source of record of a mapping; None if it is not registered."""
    with (
        translating("reading the source of record", table=name),
        connection.cursor(row_factory=class_row(SourceOfRecord)) as cursor,
    ):
        return cursor.execute(
            'SELECT source_table AS "table", source_arn AS arn, source_table_id AS table_id, source_since AS since,'
            " stream_label AS first_label FROM replication.tables WHERE name = %s",
            [name],
        ).fetchone()


def refuse_batch(connection: Connection, name: str, table: str, stream_arn: str | None) -> None:
    """Raise ConfigurationError for a batch whose stream is not of the source of record."""
    record = read(connection, name)
    if record is None or not (found := record.differences(table, stream_arn)):
        return
    raise ConfigurationError(
        "replicating: the stream does not belong to the source of record of this mapping, so nothing was stored:"
        f" {'; '.join(found)}",
        table=name,
        hint=f"disable or delete the event source mapping that delivers {stream_arn or f'the stream of {table}'}; if"
        f" its table is to be the source of record, name it in the mapping file and run `dynaurora repoint {name}`",
    )


def require(
    connection: Connection,
    name: str,
    table: str,
    *,
    doing: str,
    arn: str | None = None,
    table_id: str | None = None,
) -> None:
    """Raise ConfigurationError unless `table`, with this ARN if given, is the source of record.

    `doing` starts the message. Records the ARN and the id if they were unknown. A mapping that is not registered
    passes, because any write under its name fails.
    """
    record = read(connection, name)
    if record is None:
        return
    if found := record.differences(table, arn):
        raise refusal(name, record, found, doing=doing)
    learn(connection, name, record, arn, table_id)


def refusal(name: str, record: SourceOfRecord, found: list[str], *, doing: str) -> ConfigurationError:
    """Return the error for a table that is not the source of record; `found` says how it differs."""
    what, way_out = not_of_record(name, record, found)
    return ConfigurationError(f"{doing}: {what}", table=name, hint=way_out)


def not_of_record(name: str, record: SourceOfRecord, found: list[str]) -> tuple[str, str]:
    """Return what is wrong, and the next step, if a mapping's table is not the source of record."""
    what = f"the mapping's table is not its source of record: {'; '.join(found)}"
    if found[0].startswith("table "):
        return what, (
            f"if the new table takes the place of {record.table}, run `dynaurora repoint {name}`; if it is a table of"
            f" its own, give its mapping another name and other targets"
        )
    return what, (
        "check the Region and the credentials that this runs with, and DATABASE_URL; if the table has moved there, run"
        f" `dynaurora repoint {name}`"
    )


def learn(connection: Connection, name: str, record: SourceOfRecord, arn: str | None, table_id: str | None) -> None:
    """Record the ARN and the id of the source of record, if they are not known yet."""
    if (record.arn or not arn) and (record.table_id or not table_id):
        return
    with translating("recording the source of record", table=name):
        connection.execute(
            "UPDATE replication.tables SET source_arn = COALESCE(source_arn, %(arn)s),"
            " source_table_id = COALESCE(source_table_id, %(id)s) WHERE name = %(name)s AND source_table = %(table)s"
            " AND COALESCE(source_arn = %(arn)s, true)",
            {"arn": arn, "id": table_id, "name": name, "table": record.table},
        )


def note_seen(connection: Connection, name: str, record: SourceOfRecord, stream_arn: str, table_id: str | None) -> None:
    """Record the table of record as the probe sees it, with its latest stream.

    If its id differs from the recorded one, the table was deleted and another created under its name. Records of
    earlier streams belong to the deleted table, and are refused from then on.
    """
    arn, _, label = stream_arn.partition("/stream/")
    if table_id is None or record.table_id in {None, table_id}:
        return learn(connection, name, record, arn, table_id)
    with translating("recording that the table was created again", table=name):
        connection.execute(
            "UPDATE replication.tables SET source_arn = %s, source_table_id = %s, stream_label = %s"
            " WHERE name = %s AND source_table_id = %s",
            [arn, table_id, label, name, record.table_id],
        )
    return None
