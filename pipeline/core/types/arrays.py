"""Arrays: from a list of scalars, in its order, and from a set, sorted because DynamoDB keeps no order for it.

Invariant: a list's element is what a column of the element's type would hold, or NULL for NULL; a list with anything
else in it is refused whole.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from decimal import Decimal
from typing import TYPE_CHECKING, Any, cast

from pipeline.core.model.attributes import (
    NOT_ONE_TAG,
    AttributeValue,
    UnrepresentableError,
    a_list,
    sort_numbers,
)
from pipeline.core.model.attributes import text as checked_text
from pipeline.core.types.binary import BYTEA, hexadecimal
from pipeline.core.types.codec import Codec, Example, Use
from pipeline.core.types.fast.column_texts import Values, Writer
from pipeline.core.types.fast.fast_form import FastForm
from pipeline.core.types.fast.marked_text import as_array_copy_text
from pipeline.core.types.fast.untagged_json import sorted_numbers, text_order
from pipeline.core.types.fast.value_regex import EXPONENT_NUMBER, NUMBER, REPEAT, TEXT, elements
from pipeline.core.types.numbers import DIGITS, DOUBLE_PRECISION, INTEGERS, NUMERIC
from pipeline.core.types.stored_json import Digits
from pipeline.core.types.text import TEXT as TEXT_TYPE

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


def _bytea_array(values: list[str]) -> str:
    if values.__class__ is not list:
        a_list(values)  # which refuses it
    return array_literal(sorted(map(hexadecimal, values)))


def _list_writer(tag: str, write: Callable[[Any], str]) -> Callable[[list[AttributeValue]], str]:
    """Return the function that writes a list as an array literal; `write` writes an element of type `tag`."""
    numbers = tag == "N"

    def convert(values: list[AttributeValue]) -> str:
        texts: list[str] = []
        for element in a_list(values):
            if len(element) != 1:
                raise UnrepresentableError(NOT_ONE_TAG)
            if tag in element:
                text = write(element[tag])
                texts.append(text if numbers else '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"')
            elif "NULL" in element:
                texts.append("NULL")
            else:
                raise UnrepresentableError(f"is a list of other elements than {tag} and NULL")
        return f"{{{','.join(texts)}}}"

    return convert


_plain_numbers = re.compile(f"(?:,?+{NUMBER}){REPEAT}", re.ASCII).fullmatch


def number_list(values: list[AttributeValue]) -> str:
    """Write a list of numbers in plain notation as an array literal. Raises an error for any other list."""
    numbers = [element["N"] for element in values if len(element) == 1]
    text = ",".join(numbers)
    if len(numbers) < len(values) or text.count(",") != len(numbers) - 1 or not _plain_numbers(text):
        raise ValueError("a list that only the general path can write")
    return f"{{{text}}}"


def _listed_texts(value: bytes) -> list[bytes]:
    return value[6:-2].split(b'"},{"S":"')


def _listed_numbers(value: bytes) -> bytes:
    return b"{" + value.replace(b'{"N":"', b"").replace(b'"}', b"") + b"}"


def _texts(values: Values, missing: bytes, escaped: bool) -> Values:  # noqa: FBT001  a Writer
    join = b'","'.join
    written = [
        missing
        if not value
        else b'{"' + join(_listed_texts(value) if value[:1] == b"{" else sorted(value[1:-1].split(b'","'))) + b'"}'
        for value in values
    ]
    if escaped:
        for number, value in enumerate(values):
            if b"\\" in value or b"\x01" in value or b"\x02" in value:
                is_list = value[:1] == b"{"
                found = _listed_texts(value) if is_list else sorted(value[1:-1].split(b'","'), key=text_order(value))
                written[number] = as_array_copy_text(b'{"' + join(found) + b'"}')
    return written


def _numbers(values: Values, missing: bytes, _: bool) -> Values:  # noqa: FBT001  a Writer
    return [
        missing
        if not value
        else _listed_numbers(value)
        if value[:1] == b"{"
        else b'{"' + b'","'.join(sorted_numbers(value[1:-1].split(b'","'))) + b'"}'
        for value in values
    ]


def _form(set_tag: str, element: str, writer: Writer, *, code_tag: str, function: str = "") -> FastForm:
    """Return the form of sets and lists, from the expression for an element.

    `function` is the one that the code calls, if any, for values of the type `code_tag`.
    """
    tag = set_tag[0]
    lists = rf'\{{"{tag}":"{element}"\}}'
    return FastForm(
        tag=code_tag,
        tags_in_line=f"(?:{set_tag}|L)",
        code=(lambda code: [f"{code.value} = {function}(a[{code_tag!r}])"]) if function else None,
        line=lambda _: rf"\[({elements(element)}|{lists}(?:,{lists}){REPEAT})\]",
        write=writer,
    )


def _array(
    element: Codec,
    tag: str,
    write_set: Callable[[Callable[[str], str]], Callable[[list[str]], str]],
    form: FastForm | None,
    *examples: AttributeValue,
    default_is_set: bool = True,
) -> Codec:
    """Return the array type of an element type that takes values of type `tag`."""
    numbers, set_tag = tag == "N", f"{tag}S"

    def convert(use: Use) -> Callable[[Any], str]:
        write = element.convert(use._replace(tag=tag))
        return _list_writer(tag, write) if use.tag == "L" else write_set(write)

    def default(field: Field) -> AttributeValue | None:
        found = field.elements("[]")
        if found is None:
            return None
        texts = [each.written if numbers else each.text() for each in found]
        if None in texts:
            return None
        return {set_tag: texts} if default_is_set else {"L": [{tag: text} for text in texts]}

    def from_json(value: object) -> AttributeValue | None:
        """Read an array as a list, or as a set if its elements are what we make of one: sorted, each once."""
        found: list[Any] = cast("list[Any]", value) if isinstance(value, list) else []
        kind = Digits if numbers else str
        if not found or not all(each is None or type(each) is kind for each in found):
            return None
        ordered: list[Any] = [Decimal(each) for each in found] if numbers and None not in found else found
        if None in found or any(ordered[i] >= ordered[i + 1] for i in range(len(ordered) - 1)):
            return {"L": [{"NULL": True} if each is None else {tag: str(each)} for each in found]}
        return {set_tag: [str(each) for each in found]}

    return Codec(
        name=f"{element.name}[]",
        aliases=tuple(f"{alias}[]" for alias in element.aliases),
        tags=frozenset({set_tag, "L"}),
        convert=convert,
        fast_form=lambda _column, _is_key: form,
        default=default,
        from_json=from_json,
        index_methods=frozenset({"gin"}),
        examples=(Example(examples),),
    )


def _sorted_numbers(write: Callable[[str], str]) -> Callable[[list[str]], str]:
    return lambda values: array_literal(list(map(write, sort_numbers(values))))


def _number_arrays(element: Codec, form: FastForm | None, *examples: AttributeValue) -> Codec:
    return _array(element, "N", _sorted_numbers, form, *examples, default_is_set=element is NUMERIC)


_ONE_AND_NULL: AttributeValue = {"L": [{"N": "2"}, {"NULL": True}, {"N": "1"}]}
_MIXED: AttributeValue = {"L": [{"N": "1"}, {"S": "a"}]}
_NUMBER_FORM = _form("NS", EXPONENT_NUMBER, _numbers, code_tag="L", function="number_list")

ARRAYS = (
    _array(
        TEXT_TYPE,
        "S",
        lambda _: text_array,
        _form("SS", TEXT, _texts, code_tag="SS", function="text_array"),
        {"SS": ["b", "a", 'q"']},
        {"SS": ["\x00"]},
        {"L": [{"S": "b"}, {"NULL": True}, {"S": "a"}, {"S": "a"}]},
        {"L": []},
        {"L": [{"S": "a"}, {"N": "1"}]},
        {"L": [{"L": [{"S": "a"}]}]},
        {"L": [{"S": "\x00"}]},
    ),
    _number_arrays(NUMERIC, _NUMBER_FORM, {"NS": ["10", "9.5", DIGITS]}, {"L": [{"N": DIGITS}, {"N": "1.50"}]},
                   _ONE_AND_NULL, _MIXED),
    _number_arrays(DOUBLE_PRECISION, _NUMBER_FORM, {"L": [{"N": "0.1"}, {"N": DIGITS}]}, {"NS": ["10", "9.5"]},
                   _ONE_AND_NULL, _MIXED),
    *(
        _number_arrays(codec, None, _ONE_AND_NULL, {"NS": ["10", "9"]}, {"L": [{"N": "1.5"}]})
        for codec in INTEGERS if codec.name != "smallint"
    ),
    _array(BYTEA, "B", lambda _: _bytea_array, None, {"BS": ["/w==", "AA=="]}, {"L": [{"B": "/w=="}, {"B": "AA=="}]}),
)  # fmt: skip
