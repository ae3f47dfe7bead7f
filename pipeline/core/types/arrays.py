"""text[], numeric[], bytea[]: DynamoDB's sets, sorted because DynamoDB keeps no order for them."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from typing import TYPE_CHECKING, Any, cast

from pipeline.core.model.attributes import AttributeValue, a_list, sort_numbers
from pipeline.core.model.attributes import text as checked_text
from pipeline.core.types.binary import hexadecimal
from pipeline.core.types.codec import Codec, Example
from pipeline.core.types.fast.column_texts import Values, Writer
from pipeline.core.types.fast.fast_form import FastForm
from pipeline.core.types.fast.marked_text import as_array_copy_text
from pipeline.core.types.fast.untagged_json import sorted_numbers, text_order
from pipeline.core.types.fast.value_regex import EXPONENT_NUMBER, TEXT, elements
from pipeline.core.types.numbers import DIGITS
from pipeline.core.types.stored_json import Digits

if TYPE_CHECKING:
    from pipeline.core.mapping_files.yaml_fields import Field


def array_literal(values: list[str]) -> str:
    """Write texts as a PostgreSQL array literal of non-null elements."""
    if not values:
        return "{}"
    joined = '","'.join(values)
    if "\\" in joined or joined.count('"') != 2 * (len(values) - 1):
        # All at once: PostgreSQL accepts no text with U+0000, so it can separate them.
        joined = "\x00".join(values)
        if joined.count("\x00") == len(values) - 1:
            joined = joined.replace("\\", "\\\\").replace('"', '\\"').replace("\x00", '","')
        else:
            joined = '","'.join([v.replace("\\", "\\\\").replace('"', '\\"') for v in values])
    return f'{{"{joined}"}}'


def text_array(values: list[str]) -> str:
    """Write a set of texts as a PostgreSQL array literal, sorted."""
    if values.__class__ is not list:
        a_list(values)  # which refuses it
    ordered = sorted(values)
    joined = "".join(ordered)
    if not joined.isascii() or "\x00" in joined:
        for value in ordered:
            checked_text(value)
    return array_literal(ordered)


def _numeric_array(values: list[str]) -> str:
    return array_literal(sort_numbers(values))


def _bytea_array(values: list[str]) -> str:
    if values.__class__ is not list:
        a_list(values)  # which refuses it
    return array_literal(sorted(map(hexadecimal, values)))


def _texts(values: Values, missing: bytes, escaped: bool) -> Values:  # noqa: FBT001  a Writer
    join = b'","'.join
    written = [b'{"' + join(sorted(value[1:-1].split(b'","'))) + b'"}' if value else missing for value in values]
    if escaped:
        for number, value in enumerate(values):
            if b"\\" in value or b"\x01" in value or b"\x02" in value:
                found = sorted(value[1:-1].split(b'","'), key=text_order(value))
                written[number] = as_array_copy_text(b'{"' + join(found) + b'"}')
    return written


def _numbers(values: Values, missing: bytes, _: bool) -> Values:  # noqa: FBT001  a Writer
    return [
        b'{"' + b'","'.join(sorted_numbers(value[1:-1].split(b'","'))) + b'"}' if value else missing for value in values
    ]


def _form(tag: str, element: str, writer: Writer, function: str = "") -> FastForm:
    """Return the form of sets, from the expression for an element and the function that the code calls, if any."""
    return FastForm(
        tag=tag,
        code=(lambda code: [f"{code.value} = {function}(a[{tag!r}])"]) if function else None,
        line=lambda _: rf"\[({elements(element)})\]",
        write=writer,
    )


def _array(
    element: str, tag: str, write: Callable[[list[str]], str], form: FastForm | None, *examples: list[str]
) -> Codec:
    numbers = tag == "NS"

    def default(field: Field) -> AttributeValue | None:
        found = field.elements("[]")
        if found is None:
            return None
        texts = [each.written if numbers else each.text() for each in found]
        return None if None in texts else {tag: texts}

    def from_json(value: object) -> AttributeValue | None:
        """Read an array as a set if its elements are what we make of one: of one type, sorted, each once."""
        found: list[Any] = cast("list[Any]", value) if isinstance(value, list) else []
        if not found or not all(type(each) is (Digits if numbers else str) for each in found):
            return None
        ordered: list[Any] = [Decimal(each) for each in found] if numbers else found
        if any(ordered[i] >= ordered[i + 1] for i in range(len(ordered) - 1)):
            return None
        return {tag: [str(each) for each in found]}

    return Codec(
        name=f"{element}[]",
        tags=frozenset({tag}),
        convert=lambda _: write,
        fast_form=lambda _column, _is_key: form,
        default=default,
        from_json=from_json,
        index_methods=frozenset({"gin"}),
        examples=(Example(tuple({tag: values} for values in examples)),),
    )


ARRAYS = (
    _array("text", "SS", text_array, _form("SS", TEXT, _texts, "text_array"), ["b", "a", 'q"'], ["\x00"]),
    _array("numeric", "NS", _numeric_array, _form("NS", EXPONENT_NUMBER, _numbers), ["10", "9.5", DIGITS]),
    _array("bytea", "BS", _bytea_array, None, ["/w==", "AA=="]),
)
