"""The system under test: the product's own code against a real PostgreSQL, on two connections.

Invariant: every change of a row goes through the product. This module only calls it, holds a transaction open, or reads
the view.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from unittest.mock import patch

from psycopg import Rollback, sql

from pipeline.aurora.bookkeeping import bookkeeping
from pipeline.aurora.bookkeeping.loads import OlderSnapshotError
from pipeline.aurora.bookkeeping.watermarks import Mark
from pipeline.aurora.rows import purge
from pipeline.aurora.rows.batch import BatchWriter
from pipeline.aurora.rows.staging import Staging
from pipeline.aurora.schema import tables
from pipeline.aurora.sessions.connection import Connection, connect
from pipeline.core.model.change import Change
from pipeline.core.model.mapping import VERSION, Column, TableMapping, Target
from pipeline.core.ordering import Position
from pipeline.core.streams.stream_records import DecodedBatch, StreamDecoder, stream_source
from pipeline.core.types.sql_types import SqlType
from pipeline.jobs.load import way
from pipeline.jobs.load.load import load
from pipeline.jobs.replicate import Replicator
from pipeline.jobs.services import Services
from pipeline.settings import Settings
from tests.stress.source import SECOND, moment

MARGIN_SECONDS = 5
MARGIN = timedelta(seconds=MARGIN_SECONDS)
MARGIN_MICROSECONDS = MARGIN_SECONDS * SECOND

Rows = list[tuple[int, str]]


def _mapping(name: str, views: Sequence[str]) -> TableMapping:
    columns = (Column("Id", "Id", ("Id",), SqlType("bigint")), Column("Name", "Name", ("Name",), SqlType("text")))
    targets = tuple(Target("public", view, ("Id",), columns) for view in views)
    return TableMapping(name, name.title(), {"Id": "N"}, targets, margin=MARGIN)


ONE_TARGET = _mapping("one", ["One"])
TWO_TARGETS = _mapping("two", ["First", "Second"])


class Interrupted(Exception):  # noqa: N818 - a signal of ours, not an error
    """Represents a kill: whatever was not committed is gone."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """An export: its nominal time, its rows by file, and what distinguishes it from another of the same time."""

    number: int
    time: int
    files: list[Rows]


class TargetSystem:
    """One database with both mappings' tables. `reset` empties it between runs."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.connections = [connect(url, application_name=f"stress {n}") for n in (1, 2)]
        self.watching = connect(url, application_name="stress watch")
        self.mapping = ONE_TARGET
        bookkeeping.install(self.connections[0])
        for mapping in (ONE_TARGET, TWO_TARGETS):
            bookkeeping.register_table(self.connections[0], mapping.name, mapping.table)
            for target in mapping.targets:
                self.connections[0].execute(tables.create_storage(target))
                self.connections[0].execute(tables.create_view(target))

    def close(self) -> None:
        for connection in (*self.connections, self.watching):
            connection.close()

    def reset(self, mapping: TableMapping) -> None:
        """Empty tables and bookkeeping; compose the statements again, so that a mutation of them takes effect."""
        self.mapping = mapping
        self._decoder = StreamDecoder(mapping)
        self._writer = BatchWriter(mapping)
        self._replicators = [
            Replicator([mapping], self._opened(connection), writer=f"writer {n}")
            for n, connection in enumerate(self.connections)
        ]
        connection = self.connections[0]
        for target in mapping.targets:
            connection.execute(sql.SQL("DELETE FROM {}").format(tables.storage(target)))
        connection.execute("UPDATE replication.tables SET purged_through = NULL")
        connection.execute("DELETE FROM replication.exports")

    @staticmethod
    def _opened(connection: Connection) -> Callable[[], Connection]:
        def hand_over() -> Connection:
            if connection.closed:
                raise RuntimeError("the replicator gave its connection up: a deadlock or a lost server")
            return connection

        return hand_over

    def replicate(self, records: list[dict[str, Any]], lane: int = 0) -> None:
        """Deliver an event, as Lambda does."""
        self._replicators[lane].replicate({"Records": records}, deadline=time.monotonic() + 60)

    def apply_mixed(self, records: list[dict[str, Any]], states: list[tuple[Change, ...]]) -> None:
        """Apply stream records and snapshot states of the same keys as one batch, in the order given."""
        batch = DecodedBatch({target: [] for target in self.mapping.targets})
        for record in records:
            decoded = self._decoder.decode([record], stream_source(record["eventSourceARN"]).stream_label)  # type: ignore[list-item]
            for target, changes in decoded.changes.items():
                batch.changes[target] += changes
        for number, target in enumerate(self.mapping.targets):
            batch.changes[target] += [state[number] for state in states]
        mark = Mark(self.mapping.name, "mixed", "", None, None, len(records), 0, 0)
        self._writer.write(self.connections[0], batch, records, mark)  # type: ignore[arg-type]

    def absent(self, key: int, as_of: datetime) -> tuple[Change, ...]:
        """Return the changes that a repair applies to each target when it finds no item."""
        return tuple(Change((str(key),), None, Position(as_of)) for _ in self.mapping.targets)

    def merge(self, rows: Rows, as_of: datetime, lane: int = 0) -> None:
        """Load one file of an export in one transaction, as the load does."""
        connection = self.connections[lane]
        with connection.transaction():
            for target in self.mapping.targets:
                staging = Staging.temporary(connection, target)
                staging.copy(connection, [[(str(key), state) for key, state in rows]])
                staging.merge(connection, self.mapping.name, as_of)
                connection.execute(sql.SQL("DROP TABLE {}").format(staging.name))

    def load(self, snapshot: Snapshot, folder: Path, *, interrupt_after: int | None) -> None:
        """Load a whole export with the load job; kill it after `interrupt_after` files.

        An export older than one that was loaded whole is refused, and changes nothing.
        """

        def watch(progress: Any) -> None:  # noqa: ANN401 - LoadProgress
            if interrupt_after is not None and progress.files_done >= interrupt_after:
                raise Interrupted

        location = write_export(snapshot, folder, self.mapping.table)
        services = Services(Settings(Path(), database_url=self.url))
        try:
            # Alternately merged and built aside, however few of the rows it has: only speed speaks against that.
            aside_from = 0 if snapshot.time // SECOND % 2 else 10**9
            with patch.object(way, "ASIDE_FROM_SHARE", 0):
                load(services, self.mapping, location, workers=1, on_progress=watch, aside_from=aside_from)
        except (Interrupted, OlderSnapshotError):
            return

    def purge(self, through: datetime, lane: int = 0) -> None:
        for target in self.mapping.targets:
            while purge.purge_chunk(self.connections[lane], target, self.mapping.name, through, rows=50):
                pass

    def race(self, first: Callable[[int], None], second: Callable[[int], None], *, commit: bool) -> None:
        """Run `second` while the transaction of `first` is open; commit or roll back once `second` ends or waits."""
        failures: list[BaseException] = []

        def run() -> None:
            try:
                second(1)
            except BaseException as error:  # noqa: BLE001 - raised again below, in the caller's thread
                failures.append(error)

        thread = threading.Thread(target=run)
        with self.connections[0].transaction():
            first(0)
            thread.start()
            self.wait_until_waiting(thread, 1)
            if not commit:
                raise Rollback
        thread.join()
        if failures:
            raise failures[0]

    def stored_keys(self) -> set[int]:
        """Keys with a row, live or tombstone, in every target."""
        found = [
            {key for (key,) in self.watching.execute(sql.SQL('SELECT "Id" FROM {}').format(tables.storage(target)))}
            for target in self.mapping.targets
        ]
        return set[int].intersection(*found)

    def shown(self) -> list[dict[int, str]]:
        """The rows that each view shows."""
        return [
            dict(
                self.watching.execute(
                    sql.SQL('SELECT "Id", COALESCE("Name", \'(null)\') FROM {}').format(tables.view(target))
                ).fetchall()
            )
            for target in self.mapping.targets
        ]

    def streamed(self) -> list[dict[int, str | None]]:
        """Return the stored rows, tombstones included, that the stream brought: each key's state."""
        return [
            dict(
                self.watching.execute(
                    sql.SQL('SELECT "Id", "Name" FROM {} WHERE {} IS NOT NULL').format(
                        tables.storage(target), sql.Identifier(VERSION)
                    )
                ).fetchall()
            )
            for target in self.mapping.targets
        ]

    def wait_until_waiting(self, thread: threading.Thread, lane: int) -> None:
        """Return once the thread's connection waits for a lock that another holds, or the thread has ended."""
        backend = self.connections[lane].info.backend_pid
        waits = "SELECT cardinality(pg_blocking_pids(%s)) > 0"
        while thread.is_alive() and self.watching.execute(waits, [backend]).fetchone() != (True,):
            time.sleep(0.001)


def write_export(snapshot: Snapshot, folder: Path, table: str) -> str:
    """Write a full export as DynamoDB lays it out (DynamoDB guide, S3DataExport.Output); returns its location."""
    export_id = f"{snapshot.time}-{snapshot.number}"
    root = folder / "AWSDynamoDB" / export_id
    (root / "data").mkdir(parents=True, exist_ok=True)
    lines: list[str] = []
    for number, rows in enumerate(snapshot.files):
        items = [{"Item": {"Id": {"N": str(key)}, "Name": {"S": state}}} for key, state in rows]
        content = gzip.compress("".join(json.dumps(item) + "\n" for item in items).encode(), 1, mtime=0)
        (root / "data" / f"{number}.json.gz").write_bytes(content)
        digest = base64.b64encode(hashlib.md5(content, usedforsecurity=False).digest()).decode()
        key = f"AWSDynamoDB/{export_id}/data/{number}.json.gz"
        lines.append(
            json.dumps({"itemCount": len(rows), "md5Checksum": digest, "etag": "", "dataFileS3Key": key}) + "\n"
        )
    (root / "manifest-files.json").write_text("".join(lines))
    summary = {
        "version": "2020-06-30",
        "exportArn": f"arn:aws:dynamodb:eu-west-1:111122223333:table/{table}/export/{export_id}",
        "tableArn": f"arn:aws:dynamodb:eu-west-1:111122223333:table/{table}",
        "tableId": "00000000-0000-0000-0000-000000000000",
        "startTime": moment(snapshot.time).isoformat(),
        "endTime": moment(snapshot.time).isoformat(),
        "exportTime": moment(snapshot.time).isoformat(),
        "s3Bucket": "bucket",
        "s3Prefix": None,
        "s3SseAlgorithm": "AES256",
        "manifestFilesS3Key": f"AWSDynamoDB/{export_id}/manifest-files.json",
        "billedSizeBytes": 1,
        "itemCount": sum(map(len, snapshot.files)),
        "outputFormat": "DYNAMODB_JSON",
    }
    (root / "manifest-summary.json").write_text(json.dumps(summary))
    return f"file://{root}/manifest-summary.json"
