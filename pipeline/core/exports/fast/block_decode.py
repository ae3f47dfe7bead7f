"""From a block of a full export's lines to COPY text: the load's fast way, in three steps from fast to general.

1. Most lines are read by a pattern made for the target, without parsing them
   (`pipeline.core.exports.fast.line_reader`).
2. What that hands back is parsed, and converted by a function written for the target, here. It writes out the cases
   that most values are: an attribute of the expected type whose text needs no change. Whatever else a column meets goes
   to that column's general converter.
3. A line in which anything at all goes wrong goes to the general way whole, which then decides and says why.

Invariant: the rows are those of the general way, `decode_full` and `copy_text`, failures included: a value may be
spelt otherwise (a time, an escape, an exponent) where PostgreSQL reads the same. Only the order of rows may differ,
and of several malformed lines another may be named. Bytes that are no UTF-8 go through to PostgreSQL, which looks at
each anyway, and refuses them (`pipeline.aurora.sessions.connection`): the general way, tried next, then names the
line. In an attribute that no column takes they go unseen.

Two facts make the plain cases plain. A line of JSON without a backslash has no quote, control character or lone
surrogate in any text, so that neither JSON nor arrays nor COPY text need escapes. And `join` refuses whatever is not a
text, so that a malformed value cannot slip through.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, NamedTuple

from pipeline.core.decode.row_code import compiled, row_code
from pipeline.core.decode.row_decoder import RowDecoder
from pipeline.core.errors import TerminalError
from pipeline.core.exports.export_lines import Failure, decode_full
from pipeline.core.exports.fast.line_reader import LineReader, pieces
from pipeline.core.exports.lines import count_lines
from pipeline.core.model.attributes import a_list, number, sort_numbers, to_json
from pipeline.core.types.arrays import array_literal
from pipeline.core.types.copy_text import copy_text, escape, field
from pipeline.core.types.fast.fast_form import Spelling, fast_forms
from pipeline.core.types.fast.value_patterns import NUMBER

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable, Sequence

    from pipeline.core.model.attributes import AttributeValue
    from pipeline.core.model.change import Row
    from pipeline.core.model.mapping import Target


_is_number = re.compile(NUMBER, re.ASCII).fullmatch
# Digits that a float holds exactly, so that they sort as numbers do.
_EXACT_AS_FLOAT = 15
# What parsing a block in one go raises when it is not what it should be; the general way then finds the line.
_UNREADABLE = (KeyError, RecursionError, TypeError, ValueError)


class Decoded(NamedTuple):
    """A block's rows as COPY text, how many they are, and the lines that could not be converted."""

    text: bytes
    rows: int
    failures: list[Failure]


class BlockDecoder:
    """Decodes blocks for one target. Build it once; `source` is the function that was written, for people to read."""

    def __init__(self, target: Target, settled: Counter[str] | None = None) -> None:
        """`settled` is as for RowDecoder."""
        self.rows = RowDecoder(target, settled)
        self._is_general = fast_forms(target) is None
        self.source, self._plain = _compiled(self.rows, _PLAIN, "COPY rows")
        _, self._escaped = _compiled(self.rows, _ESCAPED, "COPY rows with escapes")
        self._lines = LineReader(target)

    def decode(self, block: bytes, *, file: str, first_line: int = 1) -> Decoded:
        """Convert a block of whole lines. Raises TerminalError for a line that is not of the form.

        `file` and `first_line`, the number of the block's first line, are for that error's message.
        """
        if self._is_general:
            rows, failures = decode_full(block, self.rows, file=file, first_line=first_line)
            return Decoded(copy_text(rows), len(rows), failures)
        return self._decode_by_pattern(block) or self._decode_parsing(block, file, first_line)

    def _decode_by_pattern(self, block: bytes) -> Decoded | None:
        """Convert without parsing; None when that is not for these lines, or one of them is not of the form."""
        try:
            read = self._lines.read(block)
            if read is None:
                return None
            if not read.others:
                return Decoded(b"".join(read.texts), read.rows, [])
            # The others keep no count of their lines: should one be malformed, the whole block tells which.
            others = self._decode_parsing(b"\n".join([*read.others, b""]), "", 1)
        except TerminalError:
            return None
        return Decoded(b"".join([*read.texts, others.text]), read.rows + others.rows, others.failures)

    def _decode_parsing(self, block: bytes, file: str, first_line: int) -> Decoded:
        """Convert by the function written for the target, a piece at a time."""
        texts: list[bytes] = []
        rows, failures = 0, list[Failure]()
        for piece in pieces(block):
            decoded = self._decode_piece(piece, file, first_line)
            texts.append(decoded.text)
            rows += decoded.rows
            failures += decoded.failures
            first_line += count_lines(piece)
        return Decoded(b"".join(texts), rows, failures)

    def _decode_piece(self, block: bytes, file: str, first_line: int) -> Decoded:
        """Convert by the function written for the target, and what that leaves by the general way."""
        lines = block.split(b"\n")
        lines.pop()
        written: list[str] = []
        slow: list[int] = []
        try:
            if b"\\" not in block:
                parsable = block.decode().removesuffix("\n").replace("\n", ",")
                _write(self._plain, parsable, None, len(lines), written, slow)
            else:
                self._decode_mixed(lines, written, slow)
        except _UNREADABLE:
            written, slow = [], list(range(len(lines)))
        failures: list[Failure] = []
        text = "\n".join([*written, ""]).encode() if written else b""
        count = len(written)
        if slow:
            rows, failures = self._decode_generally([lines[index] for index in slow], slow, file, first_line)
            text += copy_text(rows)
            count += len(rows)
        return Decoded(text, count, failures)

    def _decode_generally(
        self, lines: Sequence[bytes], indexes: Sequence[int], file: str, first_line: int
    ) -> tuple[list[Row], list[Failure]]:
        """Convert lines in one go; one by one only when one of them is not of the form, for the error to name it."""
        try:
            return decode_full(b"\n".join([*lines, b""]), self.rows, file=file, first_line=first_line)
        except TerminalError:
            for index, line in zip(indexes, lines, strict=True):
                decode_full(line + b"\n", self.rows, file=file, first_line=first_line + index)
            raise

    def _decode_mixed(self, lines: list[bytes], written: list[str], slow: list[int]) -> None:
        """Part the lines: without a backslash, with one, and with the escape that can spell any character."""
        plain = [index for index, line in enumerate(lines) if b"\\" not in line]
        escaped = [index for index, line in enumerate(lines) if b"\\" in line and b"\\u" not in line]
        for rows, indexes in ((self._plain, plain), (self._escaped, escaped)):
            text = b",".join([lines[index] for index in indexes]).decode()
            _write(rows, text, indexes, len(indexes), written, slow)
        slow += [index for index, line in enumerate(lines) if b"\\u" in line]


def _write(
    rows: Callable[[Sequence[Any], list[int]], list[str]],
    text: str,
    indexes: list[int] | None,
    count: int,
    written: list[str],
    slow: list[int],
) -> None:
    parsed = json.loads(f"[{text}]")
    if len(parsed) != count:
        raise ValueError("a line is not one JSON value")
    missed: list[int] = []
    written += rows(parsed, missed)
    slow += missed if indexes is None else [indexes[index] for index in missed]


_HEAD = """\
def rows(lines, slow):
    out = []
    append = out.append
    for index, line in enumerate(lines):
        try:
            item = line["Item"]
            get = item.get
"""
# Every exception: the general way meets the same line next, and raises what is to be raised.
_TAIL = """\
            append(tab(({fields},)))
        except Exception:
            slow.append(index)
    return out
"""


def _compiled(decoder: RowDecoder, spelling: Spelling, what: str) -> tuple[str, Any]:
    """Return the source and the function for a target; none where the target is for the general way."""
    code = row_code(decoder, spelling)
    if code is None:
        return "", None
    body = "".join(f"{' ' * 12}{statement}\n" for statement in code.statements)
    source = _HEAD + body + _TAIL.format(fields=", ".join(code.variables))
    names = compiled(source, f"<{what} of {decoder.target.view_name}>", {**code.names, "tab": "\t".join})
    return source, names["rows"]


def _escaped_array(values: list[str]) -> str:
    if values.__class__ is not list:
        a_list(values)  # which refuses it
    return escape(array_literal(sorted(values)))


def _escaped_json(attribute: AttributeValue) -> str:
    return escape(to_json(attribute))


# Plain: texts without a quote, a backslash or a control character.


def _plain_array(values: list[str]) -> str:
    if values.__class__ is not list:
        a_list(values)  # which refuses it
    return '{"' + '","'.join(sorted(values)) + '"}' if values else "{}"


def _plain_json(attribute: AttributeValue) -> str:  # noqa: PLR0911  one return a tag is the fastest
    """Write what `to_json` writes."""
    ((tag, value),) = attribute.items()
    if tag == "M":
        return _plain_map(value)
    if tag == "L":
        return _plain_list(value)
    if tag == "S":
        return '"' + value + '"'
    if tag == "N":
        return value if _is_number(value) else number(value)
    if tag in {"SS", "BS"}:
        return '["' + '","'.join(sorted(a_list(value))) + '"]' if value else "[]"
    if tag == "NS":
        return "[" + ",".join(_sorted_numbers(value)) + "]"
    return to_json(attribute)


def _plain_map(members: dict[str, AttributeValue]) -> str:
    """Write a map; texts and numbers, most of what there is, without a call for each."""
    parts: list[str] = []
    append = parts.append
    for name, member in members.items():
        if len(member) == 1:
            if "S" in member:
                append('"' + name + '":"' + member["S"] + '"')
                continue
            if "N" in member and _is_number(member["N"]):
                append('"' + name + '":' + member["N"])
                continue
        append('"' + name + '":' + _plain_json(member))
    return "{" + ",".join(parts) + "}"


def _plain_list(elements: list[AttributeValue]) -> str:
    parts: list[str] = []
    append = parts.append
    if elements.__class__ is not list:
        a_list(elements)  # which refuses it
    for element in elements:
        if len(element) == 1:
            if "S" in element:
                append('"' + element["S"] + '"')
                continue
            if "N" in element and _is_number(element["N"]):
                append(element["N"])
                continue
        append(_plain_json(element))
    return "[" + ",".join(parts) + "]"


def _sorted_numbers(values: list[str]) -> list[str]:
    if values.__class__ is not list:
        a_list(values)  # which refuses it
    if all(map(_is_number, values)) and max(map(len, values), default=0) <= _EXACT_AS_FLOAT:
        return sorted(values, key=float)
    return sort_numbers(values)


_ESCAPED = Spelling(field, r"\\x", "text({0})", {"text": escape, "text_array": _escaped_array, "jsonb": _escaped_json})
# Plain texts are taken as they are.
_PLAIN = Spelling(field, r"\\x", "{0}", {"text_array": _plain_array, "jsonb": _plain_json})
