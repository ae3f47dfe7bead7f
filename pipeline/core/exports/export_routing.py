"""Splits a block of a full export's lines by target.

Invariant: every line goes to one target or is returned as unmatched; the lines of the parts and the unmatched lines add
up to the block. The lines of a mapping without patterns are not parsed here: each target gets the whole block.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, TypeVar

from pipeline.core.errors import TerminalError
from pipeline.core.exports.export_lines import malformed, parse_full
from pipeline.core.exports.lines import count_lines
from pipeline.core.model.attribute_form import MALFORMED

if TYPE_CHECKING:
    from pipeline.core.decode.routing import Router
    from pipeline.core.model.mapping import Target

_Decoded_co = TypeVar("_Decoded_co", covariant=True)


class Decode(Protocol[_Decoded_co]):
    """Decodes a block; `first_line` is the number of its first line in the file, for errors."""

    def __call__(self, block: bytes, *, first_line: int) -> _Decoded_co: ...


@dataclass(frozen=True, slots=True)
class Part:
    """One target's lines of a block, as a block; `numbers` are their line numbers in the file."""

    block: bytes
    numbers: range | list[int]

    def decode(self, decode: Decode[_Decoded_co]) -> _Decoded_co:
        """Decode the part.

        If the lines are not consecutive in the file, an error would name a wrong line. They are then decoded again one
        by one, so that the error names the right one.
        """
        try:
            return decode(self.block, first_line=self.numbers[0])
        except TerminalError:
            if isinstance(self.numbers, list):
                for line, number in zip(self.block.split(b"\n"), self.numbers, strict=False):
                    decode(line + b"\n", first_line=number)
            raise


@dataclass(slots=True)
class RoutedBlock:
    """A block's parts by target, only for targets that have lines, and the lines that match no target."""

    parts: dict[Target, Part] = field(default_factory=dict["Target", Part])
    unmatched: list[bytes] = field(default_factory=list[bytes])
    lines: int = 0
    """Number of lines in the block."""
    covered: int = 0
    """Lines, times their targets, that a later snapshot already covers (incremental exports only)."""


def route_block(block: bytes, router: Router, *, file: str, first_line: int) -> RoutedBlock:
    """Split a block of whole lines. Raises TerminalError for a line without the documented form."""
    if router.trivial:
        lines = count_lines(block)
        whole = Part(block, range(first_line, first_line + lines))
        return RoutedBlock(dict.fromkeys(router.targets, whole), lines=lines)
    texts: dict[Target, list[bytes]] = {}
    numbers: dict[Target, list[int]] = {}
    items = parse_full(block, file=file, first_line=first_line)
    routed = RoutedBlock(lines=len(items))
    for number, (line, item) in enumerate(zip(block.split(b"\n"), items, strict=False), first_line):
        try:
            targets = router.route(item)
        except MALFORMED:
            raise malformed(file, number, "a key attribute is not of DynamoDB's form") from None
        if not targets:
            routed.unmatched.append(line)
        for target in targets:
            texts.setdefault(target, []).append(line)
            numbers.setdefault(target, []).append(number)
    routed.parts = {target: Part(b"\n".join([*found, b""]), numbers[target]) for target, found in texts.items()}
    return routed
