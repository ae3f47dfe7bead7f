"""How long a primary key may be: what PostgreSQL's index takes for certain.

Invariant: a key's fate is decided here, the same way each time, and never by how well it compresses.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.core.errors import ConversionError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.core.model.mapping import Target

# PostgreSQL's index takes rows of 2,704 bytes (error 54000), measured after compression, so that a key's fate would
# hang on its content. What is left of that for headers and for a number beside the text, this is for certain.
LONGEST_KEY_BYTES = 2_600
# What a DynamoDB key attribute of type S or B may have: 2,048 bytes a partition key, 1,024 a sort key.
LONGEST_ATTRIBUTE_BYTES = 2_048
# A character takes four bytes in UTF-8 at most, and escapes only make a text longer.
MOST_BYTES = 4


def limits_key(target: Target) -> bool:
    """Whether a key of the target can be too long, so that each is measured."""
    return (
        sum(column.type.codec.most_key_bytes(column.type.params) for column in target.key_columns) > LONGEST_KEY_BYTES
    )


def key_share(target: Target) -> int:
    """Return the bytes that each of a key's columns may have, of those that can be long."""
    long = [column for column in target.key_columns if column.type.codec.most_key_bytes(column.type.params)]
    return LONGEST_KEY_BYTES // len(long)


def check_length(target: Target, key: Sequence[str]) -> None:
    """Raise ConversionError for a key, in texts, that is too long."""
    size = sum(column.type.codec.key_bytes(text) for column, text in zip(target.key_columns, key, strict=True))
    if size > LONGEST_KEY_BYTES:
        raise ConversionError(
            ", ".join(target.primary_key),
            f"the key takes {size} bytes, and a row of PostgreSQL's index takes {LONGEST_KEY_BYTES} for certain;"
            " such an item cannot be a row of this target until its key is shorter",
        )
