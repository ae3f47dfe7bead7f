"""Lines read by the pattern of their target: what it learns from lines that it does not match, and when it gives up.

Invariant: every line of a piece is either in the text that is returned, as the general way would write it, or handed
back.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

from pipeline.core.errors import ConversionError
from pipeline.core.line_pattern import LinePattern
from pipeline.core.plain_spelling import UNREADABLE, plain

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from pipeline.core.mapping import Target

# What is read at a time: what it becomes, several times its size, then stays in the processor's cache.
PIECE_BYTES = 64 << 10
# Names of attributes that no column takes which a pattern has alternatives for.
MOST_NAMES = 100
# Lines handed back of which the names are learnt.
_SAMPLE = 100
# Pieces in a row of which most lines were handed back, until the pattern is no longer tried.
_PATIENCE = 3
# What writing raises for a value that only the general way can judge.
_UNSURE = (ConversionError, AttributeError, KeyError, RecursionError, TypeError, ValueError)


class Read(NamedTuple):
    """Rows as COPY text, how many, and the lines that are for another way."""

    text: bytes
    rows: int
    others: list[bytes]


class LineReader:
    """Reads pieces for one target, with what it has learnt from those before."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._rest: dict[str, bool] = {}
        self._pattern = _pattern(target)
        self._columns = {column.path[0] for column in target.columns}
        self._useless = 0
        self._mixed = False

    def read(self, block: bytes) -> Read | None:
        """Read a block of whole lines; None when nothing in it is for the pattern. Raises UnicodeDecodeError."""
        if self._pattern is None:
            return None
        if not block.isascii():
            block.decode()
        texts: list[bytes] = []
        rows, others = 0, list[bytes]()
        for part, escaped in _parted(block):
            for piece in pieces(part):
                read = self._read_learning(piece, escaped=escaped)
                texts.append(read.text)
                rows += read.rows
                others += read.others
        self._useless = self._useless + 1 if len(others) > rows else 0
        if self._useless == _PATIENCE:
            self._pattern = None
        return Read(b"".join(texts), rows, others) if rows else None

    def _read_learning(self, piece: bytes, *, escaped: bool) -> Read:
        read = self._read(piece, escaped=escaped)
        if read.others and self._learn(read.others):
            again = self._read(b"\n".join([*read.others, b""]), escaped=escaped)
            read = Read(read.text + again.text, read.rows + again.rows, again.others)
        self._mixed = bool(read.others)
        return read

    def _read(self, piece: bytes, *, escaped: bool) -> Read:
        pattern, spelt = self._pattern, plain(piece)
        if pattern is None:
            return Read(b"", 0, piece.split(b"\n")[:-1])
        if not self._mixed and UNREADABLE not in spelt:
            found = pattern.find_all(spelt)
            # A match that spans lines, as one with a bare line end in a text would, makes them fewer.
            if len(found) == spelt.count(b"\n"):
                try:
                    return Read(pattern.write(found, escaped=escaped), len(found), [])
                except _UNSURE:
                    pass
        return _read_each(pattern, piece, spelt, escaped=escaped)

    def _learn(self, lines: Sequence[bytes]) -> bool:
        """Note the names in some lines that the pattern did not match; whether there was a new one."""
        known = dict(self._rest)
        if self._target.unmapped:
            for line in lines[:_SAMPLE]:
                for name, attribute in _attributes(line).items():
                    if name not in self._columns and (name in known or len(known) < MOST_NAMES):
                        known[name] = known.get(name, False) or "M" in attribute or "L" in attribute
        if known == self._rest:
            return False
        self._rest, self._pattern = known, LinePattern(self._target, known)
        return True


def _parted(block: bytes) -> Iterable[tuple[bytes, bool]]:
    """Part the lines without a backslash, mostly nearly all, from those with one, which cost more."""
    if b"\\" not in block:
        return ((block, False),)
    lines = block.split(b"\n")
    plain_lines = [line for line in lines if b"\\" not in line]  # the empty one after the last line end is the last
    return (
        (b"\n".join(plain_lines), False),
        (b"\n".join([*[line for line in lines if b"\\" in line], b""]), True),
    )


def pieces(block: bytes) -> Iterator[bytes]:
    """Cut a block at line ends into pieces of that size."""
    start = 0
    while start < len(block):
        end = block.find(b"\n", start + PIECE_BYTES) + 1 or len(block)
        yield block[start:end]
        start = end


def _pattern(target: Target) -> LinePattern | None:
    try:
        return LinePattern(target, {})
    except ValueError:
        return None


def _attributes(line: bytes) -> dict[str, Any]:
    try:
        item: dict[str, Any] = json.loads(line)["Item"]
        return {name: attribute for name, attribute in item.items() if isinstance(attribute, dict)}
    except _UNSURE:
        return {}


def _read_each(pattern: LinePattern, piece: bytes, spelt: bytes, *, escaped: bool) -> Read:
    found: list[tuple[bytes, ...]] = []
    lines: list[bytes] = []
    others: list[bytes] = []
    match = pattern.match
    for line, spelt_line in zip(piece.split(b"\n")[:-1], spelt.split(b"\n")[:-1], strict=True):
        matched = match(spelt_line) if UNREADABLE not in spelt_line else None
        if matched:
            found.append(matched.groups(b""))
            lines.append(line)
        else:
            others.append(line)
    texts = _write(pattern, found, lines, others, escaped=escaped) if found else []
    return Read(b"".join(texts), piece.count(b"\n") - len(others), others)


def _write(
    pattern: LinePattern,
    found: list[tuple[bytes, ...]],
    lines: list[bytes],
    others: list[bytes],
    *,
    escaped: bool,
) -> list[bytes]:
    """Write what was found, in halves where a value is refused, so that its line alone goes to the others."""
    try:
        return [pattern.write(found, escaped=escaped)]
    except _UNSURE:
        if len(found) == 1:
            others += lines
            return []
    middle = len(found) // 2
    first = _write(pattern, found[:middle], lines[:middle], others, escaped=escaped)
    return first + _write(pattern, found[middle:], lines[middle:], others, escaped=escaped)
