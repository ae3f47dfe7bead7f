"""text, and varchar with its length in characters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from pipeline.core.model.attributes import UnrepresentableError
from pipeline.core.model.attributes import text as checked_text
from pipeline.core.model.mapping import Column, OnError
from pipeline.core.types.codec import Codec, Example, Params, Use
from pipeline.core.types.fast.fast_form import ColumnCode, FastForm
from pipeline.core.types.fast.value_regex import repeated
from pipeline.core.types.key_length import LONGEST_ATTRIBUTE_BYTES, MOST_BYTES
from pipeline.core.types.widening import TypeChange

if TYPE_CHECKING:
    from pipeline.core.types.sql_types import SqlType


def _varchar(use: Use) -> Callable[[str], str]:
    column, length, settled = use.column, use.column.type.params[0], use.settled
    cut = column.on_error is OnError.TRUNCATE and not use.is_key

    def convert(value: str) -> str:
        if len(value) <= length:
            return checked_text(value)
        if not cut:
            raise UnrepresentableError(f"is longer than {length} characters")
        value = checked_text(value[:length])
        if settled is not None:
            settled[column.name] += 1
        return value

    return convert


def _check_varchar(params: Params) -> None:
    if not params:
        raise ValueError('"varchar" needs a length, such as varchar(20); use text for any length')
    if len(params) != 1 or not 1 <= params[0] <= 10_485_760:
        raise ValueError("varchar needs one length from 1 to 10485760")


def _widened_varchar(params: Params, wanted: SqlType) -> TypeChange:
    """PostgreSQL rewrites no table when a varchar only loses or raises its length (manual, ALTER TABLE)."""
    wider = wanted.name == "text" or (wanted.name == "varchar" and wanted.params > params)
    return TypeChange.CATALOG if wider else TypeChange.REFUSED


def _fast_form(column: Column, _is_key: bool) -> FastForm:  # noqa: FBT001  a codec's
    most = column.type.params[0] if column.type.params else None

    def code(code: ColumnCode) -> list[str]:
        value = code.value
        # Most texts are ASCII, which need no call to check them.
        checked = f'{value} if {value}.isascii() and "\\0" not in {value} else text({value})'
        if most is not None:
            checked = f"({checked}) if len({value}) <= {most} else {code.general}"
        return [f'{value} = a["S"]', f"{value} = {checked}"]

    def line(longest_bytes: int | None) -> str:
        if longest_bytes is not None:
            return f'"([^"]{repeated(1, min(longest_bytes, most or longest_bytes))})"'
        times = repeated(1, most)
        if most is None:
            return f'"([^"]{times})"'
        # The first, fast alternative counts bytes. Only if there are too many does the second count characters.
        return rf'"([^"]{times}(?=")|(?:[^"\x80-\xbf][\x80-\xbf]*+){times.rstrip("+")}(?="))"'

    return FastForm(tag="S", code=code, line=line)


TEXT = Codec(
    name="text",
    tags=frozenset({"S"}),
    key_of=frozenset({"S"}),
    takes_captures=True,
    is_text=True,
    convert=lambda _: checked_text,
    fast_form=_fast_form,
    most_key_bytes=lambda params: min([LONGEST_ATTRIBUTE_BYTES, *(MOST_BYTES * length for length in params)]),
    key_bytes=lambda text: len(text.encode()),
    examples=(Example(({"S": ""}, {"S": "é 🙂"}, {"S": "a\x00b"}, {"S": "\ud800"})),),
)
VARCHAR = replace(
    TEXT,
    name="varchar",
    aliases=("character varying",),
    cuts_to_length=True,
    parameters=(1, 1),
    check_params=_check_varchar,
    input_name="text",
    convert=_varchar,
    widened=_widened_varchar,
    examples=(
        Example(({"S": "🙂🙂🙂"}, {"S": "abcd"}), params=(3,)),
        Example(({"S": "abcd"}, {"S": "a\x00b"}, {"N": "1"}), params=(3,), options={"on_error": OnError.TRUNCATE}),
        Example(({"S": "abcd"}, {"N": "1"}), params=(3,), options={"on_error": OnError.NULL}),
    ),
)
