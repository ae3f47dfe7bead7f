"""Splits a block of an incremental export's lines by target, and skips lines that a later snapshot already covers.

A live line brings nothing new if a later, fully loaded snapshot covers its last write: either that snapshot holds a
newer state of the item, or the item was deleted in between, and then no tombstone is needed against the line. A delete
is never skipped: any row that it could remove wrongly is newer and wins.

Invariant: every line goes to its targets, is counted as covered, or is returned as unmatched.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from pipeline.core.exports.export_lines import MALFORMED, malformed, parse_incremental
from pipeline.core.exports.export_routing import Part, RoutedBlock
from pipeline.core.exports.lines import count_lines
from pipeline.core.exports.windows import covered

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.core.decode.routing import Router
    from pipeline.core.exports.export_lines import ItemChange
    from pipeline.core.exports.windows import Span, Window
    from pipeline.core.model.mapping import Target

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def route_changes(
    block: bytes, router: Router, window: Window, spans: Sequence[Span], *, file: str, first_line: int
) -> RoutedBlock:
    """Split a block of whole lines. `spans` are those that `pipeline.aurora.bookkeeping.loads.covering` returns.

    Raises TerminalError for a line without the documented form.
    """
    if router.trivial and not spans:
        lines = count_lines(block)
        whole = Part(block, range(first_line, first_line + lines))
        return RoutedBlock(dict.fromkeys(router.targets, whole), lines=lines)
    texts: dict[Target, list[bytes]] = {}
    numbers: dict[Target, list[int]] = {}
    changes = parse_incremental(block, file=file, first_line=first_line)
    routed = RoutedBlock(lines=len(changes))
    for number, (line, change) in enumerate(zip(block.split(b"\n"), changes, strict=False), first_line):
        try:
            targets = router.route(change.keys)
        except MALFORMED:
            raise malformed(file, number, "a key attribute is not of DynamoDB's form") from None
        if not targets:
            routed.unmatched.append(line)
        elif change.image is not None and covered(_written(change, window), spans):
            routed.covered += len(targets)
        else:
            for target in targets:
                texts.setdefault(target, []).append(line)
                numbers.setdefault(target, []).append(number)
    routed.parts = {target: Part(b"\n".join([*found, b""]), numbers[target]) for target, found in texts.items()}
    return routed


def _written(change: ItemChange, window: Window) -> datetime:
    """Return when the item was last written; the window's very end if its line does not say."""
    if change.write_micros is None:
        return window.end - timedelta(microseconds=1)
    return _EPOCH + timedelta(microseconds=change.write_micros)
