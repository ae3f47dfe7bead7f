"""Read one file of an export, for a load, a catch-up or a reconciliation, and give each line to its targets.

Invariant: every line is counted, and a line that gives no row is kept whole with the reason. When `read_file` returns,
the whole file was read and verified. The caller owns the transaction.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Protocol, TypeVar

from psycopg import sql

from pipeline.aurora.bookkeeping.loads import Export, FileCounts
from pipeline.aurora.errors import translating
from pipeline.aurora.rows.isolating import copied_types, refused_values, store_isolating
from pipeline.aurora.rows.staging import copy_statement
from pipeline.core.decode.children import child_rows
from pipeline.core.decode.routing import MATCHES_NO_TARGET, NO_TARGET
from pipeline.core.errors import DataError
from pipeline.core.model.reject import Reject
from pipeline.core.types.copy_text import copy_text
from pipeline.dynamodb.exports.export_files import check_count, read_lines
from pipeline.dynamodb.exports.objects import join_location

if TYPE_CHECKING:
    from psycopg import Copy

    from pipeline.aurora.sessions.connection import Connection
    from pipeline.core.exports.export_lines import Failure
    from pipeline.core.exports.export_routing import Part, RoutedBlock
    from pipeline.core.exports.fast.block_decode import Decoded
    from pipeline.core.model.change import Row
    from pipeline.core.model.mapping import Target
    from pipeline.core.ordering import Position
    from pipeline.dynamodb.exports.manifest import ExportFile, ExportManifest
    from pipeline.dynamodb.exports.objects import ObjectStore

OnLines = Callable[[int, int], None]
"""Gets the number of lines of each block that was read, and its size in bytes."""

_COPYING = "copying rows"
_Line = tuple["Row", bytes]
"""A row, and the line that it came from."""


class Protect(Protocol):
    """Returns a block of whole lines as they may be stored; `first_line` is as for Route."""

    def __call__(self, block: bytes, *, file: str, first_line: int) -> bytes: ...


class Route(Protocol):
    """Divides a block of whole lines; `first_line` is the number of its first line in the file, for errors."""

    def __call__(self, block: bytes, *, file: str, first_line: int) -> RoutedBlock: ...


_Decoded_co = TypeVar("_Decoded_co", covariant=True)


class Decode(Protocol[_Decoded_co]):
    """Converts a block of whole lines; `file` and `first_line` are for errors."""

    def __call__(self, block: bytes, *, file: str, first_line: int) -> _Decoded_co: ...


@dataclass
class FileReading:
    """One reading of a file, block by block, and the outcome of its lines."""

    store: ObjectStore
    bucket: str
    file: ExportFile
    route: Route
    on_lines: OnLines
    rejects_unmatched: bool
    protect: Protect | None = None
    """Replaces protected values in a block, before anything else reads it."""
    working: Callable[[], AbstractContextManager[None]] = nullcontext
    """Entered while each block is worked on."""
    lines: int = 0
    size_bytes: int = 0
    rows: int = 0
    """Lines times their targets, including the lines rejected because they have no target."""
    applied: int = 0
    ignored: int = 0
    refused: list[tuple[str, bytes, str]] = field(default_factory=list[tuple[str, bytes, str]])
    """Lines that give no row: the target's view, the line, the reason."""

    @property
    def location(self) -> str:
        """The file's location, for messages."""
        return join_location(self.bucket, self.file.key)

    def parts(self) -> Iterator[tuple[Target, Part]]:
        """Yield each target's lines, block by block. Raises ExportFileError if the manifest says otherwise."""
        for block in read_lines(self.store, self.bucket, self.file):
            with self.working():
                size_bytes = len(block)
                if self.protect:
                    block = self.protect(block, file=self.location, first_line=self.lines + 1)  # noqa: PLW2901
                routed = self.route(block, file=self.location, first_line=self.lines + 1)
                if self.rejects_unmatched:
                    self.refused += [(NO_TARGET, line, MATCHES_NO_TARGET) for line in routed.unmatched]
                    self.rows += len(routed.unmatched)
                else:
                    self.ignored += len(routed.unmatched)
                self.rows += routed.covered + sum(len(part.numbers) for part in routed.parts.values())
                yield from routed.parts.items()
                self.lines += routed.lines
                self.size_bytes += size_bytes
                self.on_lines(routed.lines, size_bytes)
        check_count(self.file, self.bucket, self.lines)

    def refuse(self, target: Target, failures: Sequence[Failure]) -> None:
        """Note lines that could not be converted."""
        self.refused += [(target.view_name, line, error.message) for line, error in failures]

    def rejects(self, position: Position) -> list[Reject]:
        """Return the refused lines as rejects."""
        return [Reject(view_name, reason, line, position) for view_name, line, reason in self.refused]

    def counts(self) -> FileCounts:
        """Return the outcome of the lines."""
        stale = self.rows - self.applied - len(self.refused)
        return FileCounts(self.lines, self.applied, stale, len(self.refused), self.size_bytes, self.ignored)


@dataclass
class Destination:
    """Where a target's rows go: the table where they stay, or a staging table from which they are merged."""

    target: Target
    table: sql.Identifier
    decode: Decode[Decoded]
    """Converts lines to COPY text, the fast path."""
    decode_each: Decode[tuple[list[Row], list[Failure]]]
    """Converts lines to rows in their order, the general path."""
    merge: Callable[[], int] | None = None
    """Merges the staging table and returns the rows taken."""
    deletes: bool = False
    """Whether the table's last column marks deletes, as in `Staging`."""
    children: tuple[sql.Identifier, ...] = ()
    """The tables where the child rows stay; empty if the rows carry them."""
    copied: int = 0
    merged_before: bool = False
    """Whether the staging table holds rows that were merged already."""

    def opened(self, connection: Connection) -> AbstractContextManager[Copy]:
        """Begin a COPY to the table."""
        carried = not self.children
        return connection.cursor().copy(copy_statement(self.target, self.table, deletes=self.deletes, carried=carried))

    def copy(self, connection: Connection, text: bytes, children: Sequence[bytes] = ()) -> None:
        """Copy rows, and child rows apart: a connection runs one COPY at a time."""
        with self.opened(connection) as copy:
            copy.write(text)
        for child, table, rows in zip(self.target.children, self.children, children, strict=False):
            if rows:
                with connection.cursor().copy(copy_statement(child, table)) as copy:
                    copy.write(rows)

    def settle(self) -> int:
        """Merge what was copied, if it has to be merged; return the number of rows taken."""
        return self.merge() if self.merge else self.copied

    def store(self, connection: Connection, rows: Sequence[Row]) -> int:
        """Copy rows, and merge them if they have to be merged, under the caller's savepoint."""
        if self.merge and self.merged_before:  # a refused row is rolled back: one TRUNCATE for each would cost more
            connection.execute(sql.SQL("TRUNCATE {}").format(self.table))
        with translating(_COPYING):
            if self.children:
                width = len(self.target.stored_columns)
                apart = list(map(copy_text, child_rows(self.target, rows)))
                self.copy(connection, copy_text([row[:width] for row in rows]), apart)
            else:
                self.copy(connection, copy_text(rows))
        taken = self.merge() if self.merge else len(rows)
        self.copied += len(rows)
        self.merged_before = True
        return taken


def recorded(manifest: ExportManifest, position: Position, *, is_seam: bool = False) -> Export:
    """Return the record of an export whose rows have the position `position`."""
    return Export(
        kind="incremental" if manifest.from_time else "scan" if manifest.scanned else "full",
        location=manifest.location,
        export_arn=manifest.export_arn,
        snapshot_time=manifest.snapshot_time,
        as_of=position.as_of,
        from_time=manifest.from_time,
        is_seam=is_seam,
        item_count=manifest.item_count,
        file_count=len(manifest.files),
        size_bytes=manifest.billed_size_bytes,
    )


def read_file(
    connection: Connection, reading: FileReading, destinations: Mapping[Target, Destination], *, isolate: bool
) -> None:
    """Store all rows of a file. Raises DataError when PostgreSQL refuses a value.

    The caller then reads it again with `isolate`: blocks are stored under savepoints, and only what is refused is set
    aside.
    """
    if isolate:
        for target, part in reading.parts():
            _store_isolating(connection, reading, destinations[target], part)
        return
    with ExitStack() as stack:
        # A connection can run one COPY at a time: one for each file if there is a single table, else for each block.
        only = next(iter(destinations.values())) if len(destinations) == 1 else None
        only = None if only and only.children else only
        copying = stack.enter_context(only.opened(connection)) if only else None
        for target, part in reading.parts():
            destination = destinations[target]
            decoded = part.decode(partial(destination.decode, file=reading.location))
            destination.copied += decoded.rows
            reading.refuse(target, decoded.failures)
            if copying:
                copying.write(decoded.text)
            else:
                destination.copy(connection, decoded.text, decoded.children)
    reading.applied = sum(destination.settle() for destination in destinations.values())


def count_nothing(_lines: int, _size_bytes: int) -> None:
    """Report nothing: the first reading has counted these lines."""


def _store_isolating(connection: Connection, reading: FileReading, destination: Destination, part: Part) -> None:
    target = destination.target
    rows, failures = part.decode(partial(destination.decode_each, file=reading.location))
    reading.refuse(target, failures)
    failed = {line for line, _ in failures}  # equal lines fail alike
    lines = [line for line in part.block.split(b"\n")[:-1] if line not in failed]
    types = copied_types(target)

    def store(some: Sequence[_Line]) -> int:
        return destination.store(connection, [row for row, _ in some])

    def judge(some: Sequence[_Line]) -> dict[int, DataError]:
        return refused_values(connection, types, [row for row, _ in some], _COPYING)

    def refuse(refused: _Line, error: DataError) -> None:
        reading.refused.append((target.view_name, refused[1], error.message))

    reading.applied += store_isolating(connection, list(zip(rows, lines, strict=True)), store, refuse, judge)
