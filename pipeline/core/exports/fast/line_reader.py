"""Lines read by the shape or the pattern of their target: what it learns from other lines, and when it gives up.

Invariant: every line of a block is either in the text that is returned, as the general way would write it, or handed
back.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from pipeline.core.errors import ConversionError
from pipeline.core.exports.fast.document_shape import common_shape
from pipeline.core.exports.fast.line_pattern import LinePattern, spelt_name
from pipeline.core.exports.fast.line_shape import LineShape, shape_of
from pipeline.core.exports.lines import count_lines
from pipeline.core.types.fast.plain_spelling import UNREADABLE, plain
from pipeline.core.types.key_length import limits_key

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from pipeline.core.exports.fast.document_shape import DocumentShape
    from pipeline.core.model.mapping import Target

# What is read at a time: what it becomes, several times its size, then stays in the processor's cache.
PIECE_BYTES = 128 << 10
# Names of attributes that no column takes which a pattern has alternatives for.
MOST_NAMES = 100
# Lines handed back of which the names are learnt.
_SAMPLE = 100
# Pieces whose documents are looked at for a shape that most of them have.
_STUDIED = 10
# Blocks or pieces in a row that something was no use for, until it is no longer tried.
_PATIENCE = 3
# An attribute value that is empty.
_EMPTY = b'":""}'
# What writing raises for a value that only the general way can judge.
_UNSURE = (ConversionError, AttributeError, KeyError, RecursionError, TypeError, ValueError)


@dataclass(slots=True)
class Reading:
    """Rows as COPY text, how many, and the lines that are for another way."""

    texts: list[bytes] = field(default_factory=list[bytes])
    rows: int = 0
    others: list[bytes] = field(default_factory=list[bytes])

    def add(self, text: bytes, rows: int) -> None:
        """Take rows up."""
        self.texts.append(text)
        self.rows += rows


class LineReader:
    """Reads blocks for one target, with what it has learnt from those before."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._columns = {column.path[0] for column in target.columns}
        self._names: dict[str, bool] = {}
        # Of the columns with documents that were looked at; None where they have none in common.
        self._shapes: dict[str, DocumentShape | None] = {}
        self._studied = 0
        try:
            self._pattern: LinePattern | None = self._made(empties=False)
        except ValueError:
            self._pattern = None
        # Takes empty texts too, for a little more; made when the first one comes.
        self._roomy: LinePattern | None = None
        self._pieces_with_empties = 0
        self._shape: LineShape | None = None
        # Where a key has to be measured, the pattern does it.
        self._useless_shapes = _PATIENCE if limits_key(target) else 0
        self._useless = 0
        self._mixed = False

    @property
    def shaped(self) -> frozenset[str]:
        """The columns whose documents are read by a shape that most of them have."""
        return frozenset(self._pattern.shapes if self._pattern else ())

    def read(self, block: bytes) -> Reading | None:
        """Read a block of whole lines; None when nothing in it can be read so."""
        if self._pattern is None:
            return None
        reading = Reading()
        for part, escaped in _parted(block):
            for piece in pieces(part):
                self._read_piece(self._pattern, piece, reading, escaped=escaped)
        self._useless = self._useless + 1 if len(reading.others) > reading.rows else 0
        if self._useless == _PATIENCE:
            self._pattern = None
        return reading if reading.rows else None

    def _read_piece(self, pattern: LinePattern, piece: bytes, reading: Reading, *, escaped: bool) -> None:
        spelt = plain(piece)
        if UNREADABLE in spelt:
            piece, spelt = _set_aside_unreadable(piece, spelt, reading)
        if piece and not escaped and self._useless_shapes < _PATIENCE:
            spelt = piece = self._read_by_shape(piece, reading)
        if not piece or (not self._mixed and self._read_whole(pattern, spelt, reading, escaped=escaped)):
            return
        others = _read_each(self._roomy_pattern(), piece, spelt, reading, escaped=escaped)
        if others and self._learn(others):
            self._pattern, self._roomy = self._made(empties=False), None
            rest = b"\n".join([*others, b""])
            others = _read_each(self._roomy_pattern(), rest, plain(rest), reading, escaped=escaped)
        reading.others += others
        self._mixed = bool(others)

    def _read_whole(self, pattern: LinePattern, spelt: bytes, reading: Reading, *, escaped: bool) -> bool:
        """Read a piece of which a pattern matches every line; False, with nothing read, when none does."""
        expects_empties = self._pieces_with_empties >= _PATIENCE and _EMPTY in spelt
        if not expects_empties:
            if found := _read_whole(pattern, spelt, reading, escaped=escaped):
                self._pieces_with_empties = 0
                self._study(pattern, found)
                return True
            if _EMPTY not in spelt:
                return False
        self._pieces_with_empties += 1
        found = _read_whole(self._roomy_pattern(), spelt, reading, escaped=escaped)
        self._study(self._roomy_pattern(), found)
        return bool(found)

    def _roomy_pattern(self) -> LinePattern:
        if self._roomy is None:
            self._roomy = self._made(empties=True)
        return self._roomy

    def _made(self, *, empties: bool) -> LinePattern:
        return LinePattern(self._target, self._names, empties=empties, shapes=self._shapes)

    def _study(self, pattern: LinePattern, found: list[tuple[bytes, ...]]) -> None:
        """Note shapes that documents of the first pieces have in common, and drop those that most no longer have."""
        changes = dict.fromkeys(pattern.useless_shapes())
        if self._studied < _STUDIED:
            self._studied += 1
            for name, documents in pattern.documents(found).items():
                if name not in self._shapes and any(documents):
                    changes[name] = common_shape(documents)
        self._shapes |= changes
        if any(changes.values()) or changes.keys() & pattern.shapes.keys():
            self._pattern, self._roomy = self._made(empties=False), None

    def _read_by_shape(self, piece: bytes, reading: Reading) -> bytes:
        """Read the lines that have the shape of the first one, or of an earlier one; returns the others."""
        shape = self._shape = self._shape or shape_of(piece[: piece.index(b"\n")], self._target)
        text, rows, rest = shape.read(piece) if shape else (b"", 0, piece)
        reading.add(text, rows)
        if count_lines(rest) > rows:
            self._shape = None
            self._useless_shapes += 1
        return rest

    def _learn(self, lines: Sequence[bytes]) -> bool:
        """Note the names in some lines that the pattern did not match; whether there was a new one."""
        known = dict(self._names)
        if self._target.unmapped:
            for line in lines[:_SAMPLE]:
                for name, attribute in _attributes(line).items():
                    if name not in self._columns and (name in known or len(known) < MOST_NAMES) and spelt_name(name):
                        known[name] = known.get(name, False) or "M" in attribute or "L" in attribute
        if known == self._names:
            return False
        self._names = known
        return True


def pieces(block: bytes) -> Iterator[bytes]:
    """Cut a block at line ends into pieces of that size."""
    start = 0
    while start < len(block):
        end = block.find(b"\n", start + PIECE_BYTES) + 1 or len(block)
        yield block[start:end]
        start = end


def _parted(block: bytes) -> Iterable[tuple[bytes, bool]]:
    """Part the lines without a backslash, mostly nearly all, from those with one, which cost more."""
    if b"\\" not in block:
        return ((block, False),)
    plain_parts: list[bytes] = []
    escaped_lines: list[bytes] = []
    done = 0
    while (at := block.find(b"\\", done)) >= 0:
        start, end = block.rfind(b"\n", done, at) + 1 or done, block.find(b"\n", at) + 1
        plain_parts.append(block[done:start])
        escaped_lines.append(block[start:end])
        done = end
    plain_parts.append(block[done:])
    return ((b"".join(plain_parts), False), (b"".join(escaped_lines), True))


def _attributes(line: bytes) -> dict[str, dict[str, Any]]:
    try:
        item = cast("dict[str, Any]", json.loads(line)["Item"])
        return {name: attribute for name, attribute in item.items() if isinstance(attribute, dict)}
    except _UNSURE:
        return {}


def _set_aside_unreadable(piece: bytes, spelt: bytes, reading: Reading) -> tuple[bytes, bytes]:
    """Hand back the lines that have no plain spelling; returns the rest, as they stand and in it."""
    kept: list[bytes] = []
    kept_spelt: list[bytes] = []
    for line, spelt_line in zip(piece.split(b"\n")[:-1], spelt.split(b"\n")[:-1], strict=True):
        if UNREADABLE in spelt_line:
            reading.others.append(line)
        else:
            kept.append(line)
            kept_spelt.append(spelt_line)
    return b"\n".join([*kept, b""]), b"\n".join([*kept_spelt, b""])


def _read_whole(pattern: LinePattern, spelt: bytes, reading: Reading, *, escaped: bool) -> list[tuple[bytes, ...]]:
    """Read a piece of which the pattern matches every line, and return what it found; nothing when it does not."""
    found = pattern.find_all(spelt)
    # A match that spans lines, as one with a bare line end in a text would, makes them fewer.
    if len(found) < count_lines(spelt):
        return []
    try:
        reading.add(pattern.write(found, escaped=escaped), len(found))
    except _UNSURE:
        return []
    return found


def _read_each(pattern: LinePattern, piece: bytes, spelt: bytes, reading: Reading, *, escaped: bool) -> list[bytes]:
    """Read the lines that the pattern matches; returns the others."""
    found: list[tuple[bytes, ...]] = []
    lines: list[bytes] = []
    others: list[bytes] = []
    match = pattern.match
    for line, spelt_line in zip(piece.split(b"\n")[:-1], spelt.split(b"\n")[:-1], strict=True):
        matched = match(spelt_line)
        if matched:
            found.append(matched.groups(b""))
            lines.append(line)
        else:
            others.append(line)
    if found:
        _write(pattern, found, lines, reading, others, escaped=escaped)
    return others


def _write(
    pattern: LinePattern,
    found: list[tuple[bytes, ...]],
    lines: list[bytes],
    reading: Reading,
    others: list[bytes],
    *,
    escaped: bool,
) -> None:
    """Write what was found, in halves where a value is refused, so that its line alone goes to the others."""
    try:
        reading.add(pattern.write(found, escaped=escaped), len(found))
    except _UNSURE:
        if len(found) == 1:
            others += lines
            return
        half = len(found) // 2
        _write(pattern, found[:half], lines[:half], reading, others, escaped=escaped)
        _write(pattern, found[half:], lines[half:], reading, others, escaped=escaped)
