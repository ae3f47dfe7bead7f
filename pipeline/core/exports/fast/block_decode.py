"""From a block of a full export's lines to COPY text: the fast path of a load and of a reconciliation.

Most lines are read without parsing (`pipeline.core.exports.fast.line_reader`). The others are parsed, and converted by
the function generated for the target (`pipeline.core.decode.row_code`). Items that this function cannot handle take the
general path, which decides and gives the reason.

Invariant: rows and failures equal those of the general path (`decode_full` and `copy_text`), except that a value may be
spelled differently (a time, an escape, an exponent) if PostgreSQL reads it as the same value. The order of rows may
differ, and so may which of several malformed lines is named. Bytes that are not UTF-8 pass through to PostgreSQL, which
checks every byte anyway and refuses them (`pipeline.aurora.sessions.connection`); the load then tries the general path,
which names the line. In an attribute that no column takes, they go unnoticed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from pipeline.core.decode.children import child_rows
from pipeline.core.decode.row_code import WrittenDecoder
from pipeline.core.decode.row_decoder import RowDecoder
from pipeline.core.errors import TerminalError
from pipeline.core.exports.export_lines import Failure, decode_full
from pipeline.core.exports.fast.line_reader import LineReader, pieces
from pipeline.core.exports.ways import Ways
from pipeline.core.types.copy_text import copy_text

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Iterator

    from pipeline.core.model.change import Row
    from pipeline.core.model.mapping import Target


class Decoded(NamedTuple):
    """A block's rows as COPY text, how many they are, and the lines that could not be converted."""

    text: bytes
    rows: int
    failures: list[Failure]
    children: tuple[bytes, ...] = ()
    """The child rows as COPY text of their own, by child target, if asked for; otherwise the rows carry them."""


class BlockDecoder:
    """Decodes blocks for one target. Build it once: it learns from the lines it has seen."""

    def __init__(self, target: Target, settled: Counter[str] | None = None) -> None:
        """`settled` is as for RowDecoder."""
        self.rows = RowDecoder(target, settled)
        """The general path."""
        self.ways = Ways()
        self._written = WrittenDecoder(self.rows)
        self._reader = LineReader(target)

    def decode(self, block: bytes, *, file: str, first_line: int = 1) -> Decoded:
        """Convert a block of whole lines. Raises TerminalError for a line without the documented form.

        `file` and `first_line`, the number of the block's first line, are for that error's message.
        """
        read = self._reader.read(block)
        if not read.rows:
            return self._parse(block, file, first_line)
        if not read.others:
            others = Decoded(b"", 0, [])
        else:
            try:
                others = self._parse(b"\n".join([*read.others, b""]), file, first_line)
            except TerminalError:  # the others' line numbers are lost: decoding the whole block names the line
                return self._parse(block, file, first_line)
        self.ways += Ways(unparsed=read.rows)
        return Decoded(b"".join([*read.texts, others.text]), read.rows + others.rows, others.failures)

    def decode_apart(self, block: bytes, *, file: str, first_line: int = 1) -> Decoded:
        """Convert a block like `decode`, child rows apart."""
        target = self.rows.target
        if not target.children:
            return self.decode(block, file=file, first_line=first_line)
        width = len(target.stored_columns)
        texts, count, failures = list[list[bytes]](), 0, list[Failure]()
        for rows in self._rows(block, file, first_line, failures):
            children = map(copy_text, child_rows(target, rows))
            texts.append([copy_text([row[:width] for row in rows]), *children])
            count += len(rows)
        text, *children = map(b"".join, zip(*texts, strict=True))
        return Decoded(text, count, failures, tuple(children))

    def _parse(self, block: bytes, file: str, first_line: int) -> Decoded:
        texts, count, failures = list[bytes](), 0, list[Failure]()
        for rows in self._rows(block, file, first_line, failures):
            texts.append(copy_text(rows))
            count += len(rows)
        return Decoded(b"".join(texts), count, failures)

    def _rows(self, block: bytes, file: str, first_line: int, failures: list[Failure]) -> Iterator[list[Row]]:
        """Yield the rows of a block, piece by piece, and add to `failures`."""
        before, count = self._written.general_rows, 0
        for piece in pieces(block):
            rows, refused = decode_full(piece, self._written, file=file, first_line=first_line)
            yield rows
            failures += refused
            first_line += len(rows) + len(refused)
            count += len(rows) + len(refused)
        general = self._written.general_rows - before
        self.ways += Ways(parsed=count - general, general=general)
