"""Limits a primary key to the length that PostgreSQL's index always accepts.

Invariant: whether a key fits is decided only here, and never depends on how well the key compresses.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.core.errors import ConversionError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.core.model.mapping import Target

# PostgreSQL's index accepts rows of 2,704 bytes (error 54000), measured after compression, so whether a key fits would
# depend on its content. This length, which leaves room for headers and a number beside the text, always fits.
LONGEST_KEY_BYTES = 2_600
# The longest DynamoDB key attribute of type S or B: 2,048 bytes for a partition key, 1,024 for a sort key.
LONGEST_ATTRIBUTE_BYTES = 2_048
# A character has at most four bytes in UTF-8, and escapes only make a text longer.
MOST_BYTES = 4


def limits_key(target: Target) -> bool:
    """Whether a key of the target can be too long, so that each must be measured."""
    return (
        sum(column.type.codec.most_key_bytes(column.type.params) for column in target.key_columns) > LONGEST_KEY_BYTES
    )


def key_share(target: Target) -> int:
    """Return the most bytes for each of the key's columns that can be long."""
    long = [column for column in target.key_columns if column.type.codec.most_key_bytes(column.type.params)]
    return LONGEST_KEY_BYTES // len(long)


def check_length(target: Target, key: Sequence[str]) -> None:
    """Raise ConversionError for a key, given as texts, that is too long."""
    size = sum(column.type.codec.key_bytes(text) for column, text in zip(target.key_columns, key, strict=True))
    if size > LONGEST_KEY_BYTES:
        raise ConversionError(
            ", ".join(target.primary_key),
            f"the key has {size} bytes, and a row of PostgreSQL's index is sure to hold only {LONGEST_KEY_BYTES}; the"
            " item cannot be a row of this target until its key is shorter",
        )
