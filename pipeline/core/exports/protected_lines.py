"""Lines of an export's files as they may be stored.

Invariant: every line stays one line, in the form in which DynamoDB writes it, so that all readers of lines read these
too. An old image is left out.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from pipeline.core.exports.export_lines import parse_full, parse_incremental
from pipeline.core.exports.fast.protected_text import ProtectedText

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from pipeline.core.decode.protect import Protector

_write = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False).encode
_write_ascii = json.JSONEncoder(separators=(",", ":")).encode


class FullProtector:
    """Protects blocks of a full export's lines for one mapping. Build it once."""

    def __init__(self, protector: Protector) -> None:
        self._protector = protector
        self._text = ProtectedText(protector)

    def __call__(self, block: bytes, *, file: str, first_line: int) -> bytes:
        """Return a block of whole lines, protected. Raises as `protected_full` does.

        Line by line where the block as a whole cannot be read as text.
        """
        if not self._text.usable:
            return protected_full(block, self._protector, file=file, first_line=first_line)
        if (text := self._text.read(block)) is not None:
            return text
        return b"".join(
            self._text.read(line) or protected_full(line, self._protector, file=file, first_line=number)
            for number, line in enumerate(_each(block), first_line)
        )


def protected_full(block: bytes, protector: Protector, *, file: str, first_line: int) -> bytes:
    """Return a block of whole lines of a full export, protected: the general path.

    Raises TerminalError for a line without the documented form; `file` and `first_line` are for that error's message.
    """
    item = protector.item
    return _lines({"Item": item(found)} for found in parse_full(block, file=file, first_line=first_line))


def protected_incremental(block: bytes, protector: Protector, *, file: str, first_line: int) -> bytes:
    """Return a block of whole lines of an incremental export, protected. Raises as `protected_full` does."""
    lines: list[dict[str, Any]] = []
    for change in parse_incremental(block, file=file, first_line=first_line):
        line: dict[str, Any] = {}
        if change.write_micros is not None:
            line["Metadata"] = {"WriteTimestampMicros": {"N": str(change.write_micros)}}
        line["Keys"] = protector.keys(change.keys)
        if change.image is not None:
            line["NewImage"] = protector.image(change.keys, change.image)
        lines.append(line)
    return _lines(lines)


def _each(block: bytes) -> Iterable[bytes]:
    return (line + b"\n" for line in block.removesuffix(b"\n").split(b"\n"))


def _lines(lines: Iterable[dict[str, Any]]) -> bytes:
    return b"".join([_line(_write, line) for line in lines])


def _line(write: Callable[[object], str], line: dict[str, Any]) -> bytes:
    try:
        return f"{write(line)}\n".encode()
    except UnicodeEncodeError:  # a lone surrogate, which only an escape can express
        return f"{_write_ascii(line)}\n".encode()
