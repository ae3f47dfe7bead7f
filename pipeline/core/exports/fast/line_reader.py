"""Reads lines of a full export without parsing them, using what it learned from earlier lines.

Invariant: every line of a block is either in the returned text, as the general path would write it, or returned unread.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from operator import itemgetter
from typing import TYPE_CHECKING, Any, cast

from pipeline.core.errors import ConversionError
from pipeline.core.exports.fast.child_regex import UnreadListsError
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

# How much is read at a time. The results are several times as large, and still fit in the processor's cache.
PIECE_BYTES = 128 << 10
# The most names of unmapped attributes for which the expression has alternatives.
MOST_NAMES = 100
# Unmatched lines per piece that are sampled for new names; how often this happens, because each time needs a new
# expression; and how many names are remembered until a second line has them.
_SAMPLE, _LESSONS, _MOST_MET = 100, 10, 1000
# If more than one in this many lines has an empty text, empty texts are marked from the start.
_MANY = 4
# Number of pieces whose documents are searched for a common template.
_STUDIED = 10
# A line template pays if at most one line in this many does not fit, because cutting out the others costs as much.
_FIT = 10
# After this many blocks or pieces in a row without benefit, a method is no longer tried.
_PATIENCE = 3
# What writing raises for a value that only the general path can handle.
_UNSURE = (ConversionError, AttributeError, KeyError, RecursionError, TypeError, ValueError)
Match = tuple[bytes, ...]
_UNREAD = itemgetter(-1)
"""The last group of a match: not empty if the expression cannot read the line."""


@dataclass(slots=True)
class Reading:
    """Rows as COPY text, and those of each child; the number of rows, and the lines for another path."""

    texts: list[bytes] = field(default_factory=list[bytes])
    children: list[list[bytes]] = field(default_factory=list[list[bytes]])
    rows: int = 0
    others: list[bytes] = field(default_factory=list[bytes])

    def add(self, text: bytes, rows: int, children: list[bytes] | None = None) -> None:
        """Add rows."""
        self.texts.append(text)
        self.children.append(children or [])
        self.rows += rows


class LineReader:
    """Reads blocks for one target, learning from one to the next."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._columns = {column.path[0] for column in target.columns} | {c.explode[0] for c in target.children}
        # Unmapped attributes, and whether they may be lists or maps.
        self._names: dict[str, bool] = {}
        self._met: set[str] = set()
        self._lessons = 0
        self._marks_empties = False
        # Templates by column, for the columns whose documents were studied; None if they have none in common.
        self._documents: dict[str, DocumentTemplate | None] = {}
        self._studied = 0
        try:
            self._regex: LineRegex | None = self._made()
        except ValueError:
            self._regex = None
        self._template: LineTemplate | None = None
        # If keys must be measured, or there are child rows, only the expression can do that.
        self._useless_templates = _PATIENCE if limits_key(target) or target.children else 0
        self._useless = 0

    @property
    def templates(self) -> frozenset[str]:
        """The columns whose documents are read by a template."""
        return frozenset(self._regex.templates if self._regex else ())

    def read(self, block: bytes) -> Reading:
        """Read a block of whole lines. If the result has no rows, nothing of the block was read."""
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
        """Learn from unmatched lines and try them again; return those still unread."""
        rest = b"\n".join([*lines, b""])
        text, learnt = marked(rest), self._learn(lines)
        if learnt:
            self._regex = self._made()
        marks = with_empties(text)
        if not learnt and (self._marks_empties or marks == text):
            return lines
        before = reading.rows
        others = self._read_lines(rest, marks, reading, escaped=escaped)
        # If many lines failed only for lack of these marks, add the marks before the first try from now on.
        self._marks_empties |= not learnt and _MANY * (reading.rows - before) > of
        return others

    def _read_by_template(self, text: bytes, reading: Reading) -> bytes:
        """Read the lines that fit the template of an earlier line or of the first one; return the others."""
        template = self._template = self._template or template_of(text[: text.index(b"\n")], self._target)
        rows, count, rest = template.read(text) if template else (b"", 0, text)
        reading.add(rows, count)
        if _FIT * count_lines(rest) > count:
            self._template = None
            self._useless_templates += 1
        return rest

    def _read_lines(self, piece: bytes, text: bytes, reading: Reading, *, escaped: bool) -> list[bytes]:
        """Read those lines of a piece that the expression matches; `text` is the piece marked. Return the others."""
        regex = self._regex
        if not piece or regex is None:
            return []
        matches = regex.find_all(text)
        # There are fewer matches if one spans lines, as with a bare line end in a text.
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
        """Look for common templates in the documents of the first pieces."""
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
        """Note new names in a sample of unmatched lines; return whether there were any."""
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
        """Whether to learn a name: only once a second line has it, because names in a single line are no use."""
        if name not in self._met:
            if len(self._met) < _MOST_MET:
                self._met.add(name)
            return False
        return known < MOST_NAMES and marked_name(name) is not None


def pieces(block: bytes) -> Iterator[bytes]:
    """Cut a block at line ends into pieces of PIECE_BYTES."""
    start = 0
    while start < len(block):
        end = block.find(b"\n", start + PIECE_BYTES) + 1 or len(block)
        yield block[start:end]
        start = end


def _parted(block: bytes) -> Iterable[tuple[bytes, bool]]:
    """Separate the lines without a backslash, usually nearly all, from those with one, which are slower to read."""
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
    """Return unread the lines that marked text cannot express; return the rest, plain and marked."""
    both = list(zip(piece.split(b"\n")[:-1], text.split(b"\n")[:-1], strict=True))
    reading.others += [line for line, marks in both if UNREADABLE in marks]
    kept = [pair for pair in both if UNREADABLE not in pair[1]]
    return b"".join([line + b"\n" for line, _ in kept]), b"".join([marks + b"\n" for _, marks in kept])


def _write(regex: LineRegex, found: list[Match], reading: Reading, *, escaped: bool) -> list[Match]:
    """Write the matches, halving them when a value is refused; return the refused ones."""
    if not found:
        return []
    try:
        text, *children = regex.write(found, escaped=escaped)
        reading.add(text, len(found), children)
    except UnreadListsError as unread:
        rest = [match for number, match in enumerate(found) if number not in unread.items]
        return [found[number] for number in unread.items] + _write(regex, rest, reading, escaped=escaped)
    except _UNSURE:
        if len(found) == 1:
            return found
        half = len(found) // 2
        refused = _write(regex, found[:half], reading, escaped=escaped)
        return refused + _write(regex, found[half:], reading, escaped=escaped)
    return []
