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

    def __init__(self, target: Target, settled: Counter[str] | None = None, *, apart: bool = False) -> None:
        """`settled` is as for RowDecoder. `apart`: child rows are texts of their own, and rows do not carry them."""
        self.rows = RowDecoder(target, settled)
        """The general path."""
        self.ways = Ways()
        self._written = WrittenDecoder(self.rows)
        self._apart = apart and bool(target.children)
        self._reader = LineReader(target) if self._apart or not target.children else None

    def decode(self, block: bytes, *, file: str, first_line: int = 1) -> Decoded:
        """Convert a block of whole lines. Raises TerminalError for a line without the documented form.

        `file` and `first_line`, the number of the block's first line, are for that error's message.
        """
        read = self._reader.read(block) if self._reader else None
        if read is None or not read.rows:
            return self._parse(block, file, first_line)
        texts = [[text, *children] for text, children in zip(read.texts, read.children, strict=True)]
        failures, rows = list[Failure](), read.rows
        if read.others:
            try:
                others = self._parse(b"\n".join([*read.others, b""]), file, first_line)
            except TerminalError:  # the others' line numbers are lost: decoding the whole block names the line
                return self._parse(block, file, first_line)
            texts.append([others.text, *others.children])
            failures, rows = others.failures, rows + others.rows
        self.ways += Ways(unparsed=read.rows)
        return _decoded(texts, rows, failures)

    def _parse(self, block: bytes, file: str, first_line: int) -> Decoded:
        target, width = self.rows.target, len(self.rows.target.stored_columns)
        texts = [[b""] * (1 + len(target.children) if self._apart else 1)]
        count, failures = 0, list[Failure]()
        for rows in self._rows(block, file, first_line, failures):
            if self._apart:
                children = map(copy_text, child_rows(target, rows))
                texts.append([copy_text([row[:width] for row in rows]), *children])
            else:
                texts.append([copy_text(rows)])
            count += len(rows)
        return _decoded(texts, count, failures)

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


def _decoded(texts: list[list[bytes]], rows: int, failures: list[Failure]) -> Decoded:
    text, *children = map(b"".join, zip(*texts, strict=True))
    return Decoded(text, rows, failures, tuple(children))
