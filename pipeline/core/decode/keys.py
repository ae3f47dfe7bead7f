"""From a stored primary key back to the key attributes of its item, so that it can be read again.

Invariant: the inverse of a key column's conversion: converting these attributes gives the same texts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.core.decode.captures import source_text
from pipeline.core.errors import TerminalError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.core.model.attributes import Item
    from pipeline.core.model.mapping import TableMapping, Target


def key_attributes(mapping: TableMapping, target: Target, key: Sequence[str]) -> Item:
    """Return the key attributes of the item whose row has the primary key `key` (texts, in primary-key order)."""
    whole: dict[str, str] = {}
    parts: dict[str, str] = {}
    for column, text in zip(target.key_columns, key, strict=True):
        tag = mapping.key.get(str(column.path[0]))
        if tag is None:
            raise TerminalError(
                f'finding the item of a row: column "{column.name}" is no key attribute', table=mapping.name
            )
        value = source_text(column, tag, text)
        if column.capture is None:
            whole[str(column.path[0])] = value
        else:
            parts[column.capture] = value
    patterns = dict(target.match)
    return {
        name: {tag: whole[name] if name in whole else patterns[name].build(parts)} for name, tag in mapping.key.items()
    }
