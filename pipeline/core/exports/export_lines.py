"""From the lines of an export's data files to rows (full) or changes (incremental), and failures.

Invariant: every line ends as a row or change, or as a failure that holds it whole. A line that does not have the
documented form raises an error that names file and line: DynamoDB did not write the file like that, although its MD5
may match, so the rest of it cannot be trusted.

A full line is `{"Item": {…}}`. An incremental line is `{"Metadata": {"WriteTimestampMicros": …}, "Keys": {…}}` with
`NewImage` when the item exists at the end of the window, and without when it does not; `OldImage`, the state
before the window, depends on the view type and is not needed (DynamoDB guide, S3DataExport.Output).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Any, TypeVar, cast

from pipeline.core.errors import ConversionError, TerminalError
from pipeline.core.exports.lines import count_lines
from pipeline.core.model.attribute_form import MALFORMED, NOT_OF_THE_FORM, is_item
from pipeline.core.model.change import Change

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pipeline.core.decode.row_code import WrittenDecoder
    from pipeline.core.decode.row_decoder import RowDecoder
    from pipeline.core.model.attributes import Item
    from pipeline.core.model.change import Row
    from pipeline.core.ordering import Position

Failure = tuple[bytes, ConversionError]
"""A line that could not be converted, whole and without its line end, and why."""

_From = TypeVar("_From")
_To = TypeVar("_To")


@dataclass(frozen=True, slots=True)
class ItemChange:
    """One incremental line: the item as of the window's end; None if it did not exist then."""

    keys: Item
    image: Item | None
    write_micros: int | None
    """When DynamoDB last wrote it, in epoch microseconds; only for people, because the position is the window's end."""


def decode_full(
    block: bytes, decoder: RowDecoder | WrittenDecoder, *, file: str, first_line: int = 1
) -> tuple[list[Row], list[Failure]]:
    """Convert a block of whole lines of a full export. Raises TerminalError for a line without the documented form.

    `file` and `first_line`, the number of the block's first line, are for that error's message.
    """
    items = parse_full(block, file=file, first_line=first_line)
    return _convert(items, decoder.row, block, file, first_line)


def decode_incremental(
    block: bytes, decoder: RowDecoder, position: Position, *, file: str, first_line: int = 1
) -> tuple[list[Change], list[Failure]]:
    """Convert a block of whole lines of an incremental export; a change's origin is its line's index in the block.

    `position` is `snapshot_position(end of the window, margin)`. Raises TerminalError as `decode_full` does.
    """
    numbers = count()

    def convert(exported: ItemChange) -> Change:
        index = next(numbers)
        if exported.image is None:
            return Change(decoder.key(exported.keys), None, position, origin=index)
        row = decoder.row(exported.image)
        return Change(decoder.key_of(row), row, position, origin=index)

    changes = parse_incremental(block, file=file, first_line=first_line)
    return _convert(changes, convert, block, file, first_line)


def parse_full(block: bytes, *, file: str, first_line: int = 1) -> list[Item]:
    """Return the items of a block of whole lines. Raises TerminalError naming a line without the documented form."""
    return _parse(block, _item, file, first_line)


def parse_incremental(block: bytes, *, file: str, first_line: int = 1) -> list[ItemChange]:
    """Return the changes of a block of whole lines. Raises TerminalError naming a line without the documented form."""
    return _parse(block, _item_change, file, first_line)


def _convert(
    parsed: Sequence[_From], convert: Callable[[_From], _To], block: bytes, file: str, first_line: int
) -> tuple[list[_To], list[Failure]]:
    converted: list[_To] = []
    failures: list[Failure] = []
    lines: list[bytes] = []
    for index, value in enumerate(parsed):
        try:
            converted.append(convert(value))
        except ConversionError as error:
            lines = lines or block.split(b"\n")
            failures.append((lines[index], _bare(error)))
        except MALFORMED:
            if _is_well_formed(value):
                raise
            raise malformed(file, first_line + index, NOT_OF_THE_FORM) from None
    return converted, failures


def _bare(error: ConversionError) -> ConversionError:
    """Return the error without its traceback frames, which would keep every value of its line alive."""
    error.__context__ = error.__cause__ = None
    return error.with_traceback(None)


def _parse(block: bytes, form: Callable[[Any], _To], file: str, first_line: int) -> list[_To]:
    try:
        # One call for the whole block is faster than a call for each line; JSON has no bare line ends inside a text.
        text = block.decode().removesuffix("\n").replace("\n", ",")
        parsed = list(map(form, json.loads(f"[{text}]")))
    except MALFORMED:
        parsed = []
    return parsed if len(parsed) == count_lines(block) else _parse_each(block, form, file, first_line)


def _parse_each(block: bytes, form: Callable[[Any], _To], file: str, first_line: int) -> list[_To]:
    """Parse line by line, to name the malformed one."""
    parsed: list[_To] = []
    for number, line in enumerate(block.removesuffix(b"\n").split(b"\n"), first_line):
        try:
            value = json.loads(line.decode())
        except (RecursionError, ValueError):
            raise malformed(file, number, "it is not JSON") from None
        try:
            parsed.append(form(value))
        except MALFORMED as error:
            reason = str(error) if type(error) is _FormError else "it is not a line of such an export"
            raise malformed(file, number, reason) from None
    return parsed


class _FormError(ValueError):
    """What is wrong with a line, without quoting it."""


def _item(line: Any) -> Item:  # noqa: ANN401  whatever the JSON holds
    item = line["Item"]
    if type(item) is not dict:
        raise _FormError("its Item is not an object")
    return cast("Item", item)


def _item_change(line: Any) -> ItemChange:  # noqa: ANN401  whatever the JSON holds
    keys, image = line["Keys"], line.get("NewImage")
    if type(keys) is not dict or not keys or (image is not None and type(image) is not dict):
        raise _FormError("its Keys or NewImage is not an object")
    if image is not None and not keys.items() <= image.items():
        raise _FormError("the key attributes of its NewImage are not those of its Keys")
    metadata = line.get("Metadata")
    return ItemChange(
        cast("Item", keys), cast("Item | None", image), _write_micros(metadata) if metadata is not None else None
    )


def _write_micros(metadata: Any) -> int | None:  # noqa: ANN401  whatever the JSON holds
    """Return the time of the last write: the guide shows `"168…"`, AWS's own loader reads `{"N": "168…"}`."""
    written = metadata.get("WriteTimestampMicros")
    if type(written) is dict:
        written = cast("dict[str, Any]", written)["N"]
    try:
        return None if written is None else int(written)
    except (OverflowError, TypeError, ValueError):
        raise _FormError("its WriteTimestampMicros is not a number") from None


def malformed(file: str, line: int, reason: str) -> TerminalError:
    """Return the error for a line without the documented form; `reason` quotes nothing from it."""
    return TerminalError(
        f"reading the export's file {file}, line {line}: {reason}",
        hint="the file is not what DynamoDB wrote, although its MD5 is that of the manifest; request another export",
    )


def _is_well_formed(value: object) -> bool:
    """Whether every attribute value inside has DynamoDB's form; checked only after a conversion failed."""
    if isinstance(value, ItemChange):
        return is_item(value.keys) and (value.image is None or is_item(value.image))
    return is_item(value)
