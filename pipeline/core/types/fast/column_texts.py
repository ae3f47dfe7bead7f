"""Writes a column's values, captured from many lines, as COPY fields in one go.

Values arrive as marked text (`pipeline.core.types.fast.marked_text`), with b"" for an item without the attribute, and
fields are returned as marked text. The marks are replaced once the rows are complete, except in JSON and in arrays,
where a backslash or a quote needs other escapes; `escaped` says that there may be some.

Invariant: a field is what the column's converter and `copy_text.field` write, or another spelling of the same value.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

from pipeline.core.model.attributes import find
from pipeline.core.types.copy_text import field
from pipeline.core.types.fast import untagged_json
from pipeline.core.types.fast.marked_text import as_json, as_quoted_copy_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.core.model.mapping import Column
    from pipeline.core.types.conversion import Converter

Values = list[bytes] | tuple[bytes, ...]
Writer = Callable[[Values, bytes, bool], Values]
"""Writes values; also takes the field for an item without the attribute, and whether there are escapes."""


def as_they_are(values: Values, missing: bytes, _: bool) -> Values:  # noqa: FBT001  a Writer
    """Write texts that are fields unchanged."""
    return [value or missing for value in values] if b"" in values else values


def documents(values: Values, *, escaped: bool) -> list[bytes]:
    """Write attribute values as JSON in COPY text."""
    written = untagged_json.write(values)
    return (as_quoted_copy_text(written) if escaped else written).split(b"\n")


def filled(written: list[bytes], first: Values, whole: Values, missing: bytes, *, escaped: bool) -> Values:
    """Write documents as JSON in COPY text: `whole` where it has a document, otherwise `written` by their template.

    An item without either has b"" in `first`, the template's first values.
    """
    if escaped:
        written = as_quoted_copy_text(b"\n".join(written)).split(b"\n")
    if b"" in first:
        written = [document if value else missing for document, value in zip(written, first, strict=True)]
    if whole.count(b"") < len(whole):
        others = documents(whole, escaped=escaped)
        written = [other or document for other, document in zip(others, written, strict=True)]
    return written


def members(columns: Sequence[Values], names: Sequence[tuple[bytes, int]], count: int, *, escaped: bool) -> Values:
    """Write each item's unmapped attributes as one JSON object; `names` holds each attribute's name and group."""
    if not names:
        return [b"{}"] * count
    named = [[name + value if value else b"" for value in columns[group]] for name, group in names]
    return documents(
        [b'{"M":{' + b",".join(filter(None, row)) + b"}}" for row in zip(*named, strict=True)], escaped=escaped
    )


def converted(values: Values, column: Column, convert: Converter) -> list[bytes]:
    """Convert the value at the column's path in each attribute with its converter. Raises ConversionError."""
    name = cast("str", column.path[0])
    items = [{name: json.loads(as_json(value))} if value else {} for value in values]
    return [field(convert(find(item, column.path))).encode() for item in items]
