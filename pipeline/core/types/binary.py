"""bytea, from DynamoDB's binary, which is base64 in both JSON and exports."""

from __future__ import annotations

from base64 import b64decode
from binascii import Error as Base64Error
from binascii import a2b_base64, hexlify
from typing import TYPE_CHECKING

from pipeline.core.model.attributes import AttributeValue, UnrepresentableError
from pipeline.core.types.codec import Codec, Example
from pipeline.core.types.fast.column_texts import Values
from pipeline.core.types.fast.fast_form import ColumnCode, FastForm
from pipeline.core.types.fast.value_regex import repeated
from pipeline.core.types.key_length import LONGEST_ATTRIBUTE_BYTES

if TYPE_CHECKING:
    from pipeline.core.mapping_files.yaml_fields import Field


def hexadecimal(value: str) -> str:
    """Write base64 as PostgreSQL writes bytea. Raises UnrepresentableError."""
    try:
        return "\\x" + b64decode(value, validate=True).hex()
    except (Base64Error, ValueError):
        raise UnrepresentableError("is not base64") from None


def _code(code: ColumnCode) -> list[str]:
    decode = code.bind("decode", b64decode)
    return [f'{code.value} = "\\\\x" + {decode}(a["B"], validate=True).hex()']


def _line(longest_bytes: int | None) -> str:
    return f'"([^"]{repeated(1, longest_bytes and longest_bytes // 3 * 4)})"'


def _write(values: Values, missing: bytes, _: bool) -> Values:  # noqa: FBT001  a Writer
    return [rb"\\x" + hexlify(a2b_base64(value, strict_mode=True)) if value else missing for value in values]


def _default(field: Field) -> AttributeValue | None:
    text = field.text()
    return None if text is None else {"B": text}


BYTEA = Codec(
    name="bytea",
    tags=frozenset({"B"}),
    key_of=frozenset({"B"}),
    convert=lambda _: hexadecimal,
    fast_form=lambda _column, _is_key: FastForm(tag="B", code=_code, line=_line, write=_write),
    default=_default,
    from_json=lambda value: {"B": value} if type(value) is str else None,
    most_key_bytes=lambda _: LONGEST_ATTRIBUTE_BYTES,
    key_bytes=lambda text: len(text) // 2 - 1,
    examples=(Example(({"B": ""}, {"B": "AP8="}, {"B": "AP8"})),),
)
