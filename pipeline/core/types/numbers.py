"""Numbers: smallint, integer, bigint; numeric with every digit it arrived with; double precision."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from decimal import Decimal
from typing import TYPE_CHECKING

from pipeline.core.model.attributes import AttributeValue, UnrepresentableError, canonical_number, number
from pipeline.core.model.mapping import Column
from pipeline.core.types.codec import Codec, Example, Params, Use
from pipeline.core.types.fast.fast_form import FastForm, as_it_is
from pipeline.core.types.fast.value_regex import EXPONENT_NUMBER, NUMBER
from pipeline.core.types.widening import TypeChange

if TYPE_CHECKING:
    from pipeline.core.mapping_files.yaml_fields import Field
    from pipeline.core.types.sql_types import SqlType

DIGITS = "12345678901234567890123456789012345678"  # as many as DynamoDB keeps
_N = frozenset({"N"})
# The largest value of each.
_LARGEST = {"smallint": 2**15 - 1, "integer": 2**31 - 1, "bigint": 2**63 - 1}


def _integer(name: str, aliases: tuple[str, ...], exact: str, *examples: str) -> Codec:
    high = _LARGEST[name]
    # A number with fewer digits than the bound always fits; the others are compared.
    fits = re.compile(rf"-?[1-9]\d{{0,{len(str(high)) - 2}}}|0", re.ASCII).fullmatch

    def convert(value: str) -> str:
        if fits(value):
            return value
        plain = canonical_number(value)
        if "." in plain:
            raise UnrepresentableError("is not a whole number")
        if len(plain) > 20 or not -high - 1 <= int(plain) <= high:
            raise UnrepresentableError(f"is out of the range of a {high.bit_length() + 1}-bit integer")
        return plain

    def widened(_: Params, wanted: SqlType) -> TypeChange:
        digits = len(str(high))
        if wanted.name == "numeric":
            precision, scale = _full(wanted.params) or (digits, 0)
            return TypeChange.REWRITE if precision - scale >= digits else TypeChange.REFUSED
        return TypeChange.REWRITE if _LARGEST.get(wanted.name, 0) > high else TypeChange.REFUSED

    return Codec(
        name=name,
        aliases=aliases,
        tags=_N,
        key_of=_N,
        takes_captures=True,
        convert=lambda _: convert,
        fast_form=lambda _column, _is_key: as_it_is("N", exact),
        default=_default,
        widened=widened,
        examples=(Example(tuple({"N": text} for text in examples)),),
    )


def _default(field: Field) -> AttributeValue | None:
    return field.number()


def _full(params: Params) -> Params:
    """Return precision and scale: `numeric(12)` is `numeric(12,0)`."""
    return (params[0], 0) if len(params) == 1 else params


def _check_numeric(params: Params) -> None:
    precision, scale = _full(params) or (1, 0)
    if not (1 <= precision <= 1000 and 0 <= scale <= precision):
        raise ValueError("numeric needs a precision from 1 to 1000 and a scale not above it")


def _numeric(use: Use) -> Callable[[str], str]:
    write = canonical_number if use.is_key else number
    if not use.column.type.params:
        return write
    precision, scale = _full(use.column.type.params)

    def convert(value: str) -> str:
        whole, _, fraction = canonical_number(value).lstrip("-").partition(".")
        if len(fraction) > scale:
            raise UnrepresentableError(f"has more than {scale} digits after the point")
        if len(whole.lstrip("0")) > precision - scale:
            raise UnrepresentableError(f"has more than {precision - scale} digits before the point")
        return write(value)

    return convert


def _fast_numeric(column: Column, is_key: bool) -> FastForm | None:  # noqa: FBT001  a codec's
    if not column.type.params:
        return as_it_is("N", r"-?[1-9]\d{0,199}|0") if is_key else as_it_is("N", NUMBER, EXPONENT_NUMBER)
    precision, scale = _full(column.type.params)
    if precision == scale:
        return None
    digits = rf"[1-9]\d{{0,{precision - scale - 1}}}"
    fraction = rf"(?:\.\d{{1,{scale}}})?" if scale else ""
    return as_it_is("N", rf"-?{digits}|0" if is_key else rf"-?(?:0|{digits}){fraction}")


def _widened_numeric(params: Params, wanted: SqlType) -> TypeChange:
    """PostgreSQL rewrites no table when a numeric only loses or raises its precision (manual, ALTER TABLE)."""
    stored, limits = _full(params), _full(wanted.params)
    if wanted.name == "numeric" and not limits:
        # With a scale, 1.5 is stored as 1.50 and equal to it; without one nothing is added. Both are equal.
        return TypeChange.CATALOG
    if wanted.name != "numeric" or not stored:
        return TypeChange.REFUSED
    if limits[1] < stored[1] or limits[0] - limits[1] < stored[0] - stored[1]:
        return TypeChange.REFUSED
    return TypeChange.CATALOG if limits[1] == stored[1] else TypeChange.REWRITE


def _double_default(field: Field) -> AttributeValue | None:
    attribute = field.number()
    if attribute is not None:
        text = number(attribute["N"])
        if not math.isfinite(float(text)) or (float(text) == 0 and Decimal(text) != 0):
            raise UnrepresentableError("is out of the range of double precision")
    return attribute


# Each expression matches numbers that certainly fit: few enough digits, or one more digit with a low first digit. The
# converter compares all others. This order and possessive repeats save a fifth of the time of reading narrow lines,
# because most numbers are short and none is tried twice.
INTEGERS = (
    _integer("smallint", ("int2",), r"-?+[1-9]\d{0,3}+|-?[12]\d{4}|0", "32767", "32768", "1.5"),
    _integer("integer", ("int", "int4"), r"-?+[1-9]\d{0,8}+|-?1\d{9}|0", "-2147483648", "2147483648"),
    _integer("bigint", ("int8",), r"-?+[1-9]\d{0,17}+|-?[1-8]\d{18}|0",
             "9223372036854775807", "9223372036854775808", "1E+3"),
)  # fmt: skip
NUMERIC = Codec(
    name="numeric",
    aliases=("decimal",),
    tags=frozenset({"N", "S"}),
    key_of=_N,  # the strings "1" and "1.0" are two items and one number
    takes_captures=True,
    parameters=(0, 2),
    check_params=_check_numeric,
    full_params=_full,
    convert=_numeric,
    fast_form=_fast_numeric,
    default=_default,
    widened=_widened_numeric,
    examples=(
        Example(({"N": DIGITS}, {"S": "1.50"}, {"S": "1e3"}, {"S": "1e200000"}, {"S": ""}, {"S": "1_000"})),
        Example(({"N": "123.45"}, {"N": "123.450"}, {"N": "1234"}, {"N": "1.005"}), params=(5, 2)),
    ),
)
DOUBLE_PRECISION = Codec(
    name="double precision",
    aliases=("float8",),
    tags=_N,
    convert=lambda _: number,
    fast_form=lambda _column, _is_key: as_it_is("N", NUMBER, EXPONENT_NUMBER),
    default=_double_default,
    examples=(Example(({"N": "0.1"}, {"N": DIGITS})),),
)
