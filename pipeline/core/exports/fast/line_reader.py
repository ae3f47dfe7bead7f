"""Lines of a full export read without parsing them, by what was learnt from those before.

Invariant: every line of a block is either in the text that is returned, as the general way would write it, or handed
back.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from operator import itemgetter
from typing import TYPE_CHECKING, Any, cast

from pipeline.core.errors import ConversionError
from pipeline.core.exports.fast.document_template import common_template
from pipeline.core.exports.fast.line_regex import LineRegex, marked_name
from pipeline.core.exports.fast.line_template import LineTemplate, template_of
from pipeline.core.exports.lines import count_lines
from pipeline.core.types.fast.marked_text import EMPTY, UNREADABLE, marked, with_empties
from pipeline.core.types.key_length import limits_key

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from pipeline.core.exports.fast.document_template import DocumentTemplate
    from pipeline.core.model.mapping import Target

# What is read at a time: what it becomes, several times its size, then stays in the processor's cache.
PIECE_BYTES = 128 << 10
# Names of attributes that no column takes which the expression has alternatives for.
MOST_NAMES = 100
# Unread lines of a piece of which the names are learnt; how often they are, each time for a new expression; and names
# that are remembered until a second line has them.
_SAMPLE, _LESSONS, _MOST_MET = 100, 10, 1000
# One in so many lines that have an empty text are many.
_MANY = 4
# Pieces whose documents are looked at for a template that most of them fill.
_STUDIED = 10
# Blocks or pieces in a row that something was no use for, until it is no longer tried.
_PATIENCE = 3
# What writing raises for a value that only the general way can judge.
_UNSURE = (ConversionError, AttributeError, KeyError, RecursionError, TypeError, ValueError)
Match = tuple[bytes, ...]
_UNREAD = itemgetter(-1)
"""The last group of a match: not empty where the line is none that the expression reads."""


@dataclass(slots=True)
class Reading:
    """Rows as COPY text, how many, and the lines that are for another way."""

    texts: list[bytes] = field(default_factory=list[bytes])
    rows: int = 0
    others: list[bytes] = field(default_factory=list[bytes])

    def add(self, text: bytes, rows: int) -> None:
        """Add rows."""
        self.texts.append(text)
        self.rows += rows


class LineReader:
    """Reads blocks for one target, with what it has learnt from those before."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._columns = {column.path[0] for column in target.columns}
        # Attributes that no column takes, and whether they may be lists or maps.
        self._names: dict[str, bool] = {}
        self._met: set[str] = set()
        self._lessons = 0
        self._marks_empties = False
        # Of the columns with documents that were looked at; None where they have none in common.
        self._documents: dict[str, DocumentTemplate | None] = {}
        self._studied = 0
        try:
            self._regex: LineRegex | None = self._made()
        except ValueError:
            self._regex = None
        self._template: LineTemplate | None = None
        # Where a key has to be measured, the expression does it.
        self._useless_templates = _PATIENCE if limits_key(target) else 0
        self._useless = 0

    @property
    def templates(self) -> frozenset[str]:
        """The columns whose documents are read by a template that most of them fill."""
        return frozenset(self._regex.templates if self._regex else ())

    def read(self, block: bytes) -> Reading:
        """Read a block of whole lines. A reading without rows stands for a block of which nothing was read."""
        reading = Reading()
        if self._regex is None:
            return reading
        for part, escaped in _parted(block):
            for piece in pieces(part):
                self._read_piece(piece, reading, escaped=escaped)
        self._useless = self._useless + 1 if len(reading.others) > reading.rows else 0
        if self._useless == _PATIENCE:
            self._regex = None
        return reading

    def _read_piece(self, piece: bytes, reading: Reading, *, escaped: bool) -> None:
        text = marked(piece)
        if UNREADABLE in text:
            piece, text = _without_unreadable(piece, text, reading)
        if self._marks_empties:
            text = with_empties(text)
        if not escaped and self._useless_templates < _PATIENCE and text:
            text = self._read_by_template(text, reading)
            piece = text.replace(EMPTY, b"")
        others = self._read_lines(piece, text, reading, escaped=escaped)
        if others:
            others = self._read_again(others, reading, count_lines(piece), escaped=escaped)
        reading.others += others

    def _read_again(self, lines: list[bytes], reading: Reading, of: int, *, escaped: bool) -> list[bytes]:
        """Read unread lines with what is learnt from them; returns the others."""
        rest = b"\n".join([*lines, b""])
        text, learnt = marked(rest), self._learn(lines)
        if learnt:
            self._regex = self._made()
        marks = with_empties(text)
        if not learnt and (self._marks_empties or marks == text):
            return lines
        before = reading.rows
        others = self._read_lines(rest, marks, reading, escaped=escaped)
        # From now on before they are read at all, where it was for these marks that many were not.
        self._marks_empties |= not learnt and _MANY * (reading.rows - before) > of
        return others

    def _read_by_template(self, text: bytes, reading: Reading) -> bytes:
        """Read the lines that fill the template of the first one, or of an earlier one; returns the others."""
        template = self._template = self._template or template_of(text[: text.index(b"\n")], self._target)
        rows, count, rest = template.read(text) if template else (b"", 0, text)
        reading.add(rows, count)
        if count_lines(rest) > count:
            self._template = None
            self._useless_templates += 1
        return rest

    def _read_lines(self, piece: bytes, text: bytes, reading: Reading, *, escaped: bool) -> list[bytes]:
        """Read the lines of a piece, given its marked text too, that the expression reads; returns the others."""
        regex = self._regex
        if not piece or regex is None:
            return []
        matches = regex.find_all(text)
        # One that spans lines, as it would with a bare line end in a text, makes them fewer.
        if len(matches) < count_lines(text):
            return piece.split(b"\n")[:-1]
        unread = any(map(_UNREAD, matches))
        found = [match for match in matches if not match[-1]] if unread else matches
        self._study(regex, found)
        refused = _write(regex, found, reading, escaped=escaped)
        if not unread and not refused:
            return []
        handed_back = {id(match) for match in refused}
        lines = zip(piece.split(b"\n"), matches, strict=False)
        return [line for line, match in lines if match[-1] or id(match) in handed_back]

    def _made(self) -> LineRegex:
        return LineRegex(self._target, self._names, self._documents)

    def _study(self, regex: LineRegex, found: list[Match]) -> None:
        """Look for templates that documents of the first pieces have in common."""
        if self._studied == _STUDIED:
            return
        self._studied += 1
        new = {
            name: common_template(documents)
            for name, documents in regex.documents(found).items()
            if name not in self._documents and any(documents)
        }
        self._documents |= new
        if any(new.values()):
            self._regex = self._made()

    def _learn(self, lines: Sequence[bytes]) -> bool:
        """Note names in some lines that were not read; whether there was a new one."""
        if not self._target.unmapped or self._lessons == _LESSONS:
            return False
        known = dict(self._names)
        for line in lines[:_SAMPLE]:
            for name, attribute in _attributes(line).items():
                if name in self._columns or (name not in known and not self._is_new(name, len(known))):
                    continue
                known[name] = known.get(name, False) or "M" in attribute or "L" in attribute
        if known == self._names:
            return False
        self._names = known
        self._lessons += 1
        return True

    def _is_new(self, name: str, known: int) -> bool:
        """Whether to learn a name, of which another line may have told: those that one line has alone are no use."""
        if name not in self._met:
            if len(self._met) < _MOST_MET:
                self._met.add(name)
            return False
        return known < MOST_NAMES and marked_name(name) is not None


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
    without: list[bytes] = []
    escaped: list[bytes] = []
    done = 0
    while (at := block.find(b"\\", done)) >= 0:
        start, end = block.rfind(b"\n", done, at) + 1 or done, block.find(b"\n", at) + 1
        without.append(block[done:start])
        escaped.append(block[start:end])
        done = end
    without.append(block[done:])
    return ((b"".join(without), False), (b"".join(escaped), True))


def _attributes(line: bytes) -> dict[str, dict[str, Any]]:
    try:
        item = cast("dict[str, Any]", json.loads(line)["Item"])
        return {name: attribute for name, attribute in item.items() if isinstance(attribute, dict)}
    except _UNSURE:
        return {}


def _without_unreadable(piece: bytes, text: bytes, reading: Reading) -> tuple[bytes, bytes]:
    """Hand back the lines that marks cannot stand for; returns the rest, as they are and as marked text."""
    both = list(zip(piece.split(b"\n")[:-1], text.split(b"\n")[:-1], strict=True))
    reading.others += [line for line, marks in both if UNREADABLE in marks]
    kept = [pair for pair in both if UNREADABLE not in pair[1]]
    return b"".join([line + b"\n" for line, _ in kept]), b"".join([marks + b"\n" for _, marks in kept])


def _write(regex: LineRegex, found: list[Match], reading: Reading, *, escaped: bool) -> list[Match]:
    """Write what was found, in halves where a value is refused; returns what was refused."""
    if not found:
        return []
    try:
        reading.add(regex.write(found, escaped=escaped), len(found))
    except _UNSURE:
        if len(found) == 1:
            return found
        half = len(found) // 2
        refused = _write(regex, found[:half], reading, escaped=escaped)
        return refused + _write(regex, found[half:], reading, escaped=escaped)
    return []
