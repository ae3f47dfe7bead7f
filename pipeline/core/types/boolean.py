"""boolean: true and false."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.core.model.attributes import AttributeValue, UnrepresentableError
from pipeline.core.types.codec import Codec
from pipeline.core.types.fast.fast_form import ColumnCode, FastForm

if TYPE_CHECKING:
    from pipeline.core.mapping_files.yaml_fields import Field

_VALUE = r"([tf])(?:(?<=t)rue|(?<=f)alse)"


def _convert(value: object) -> str:
    if not isinstance(value, bool):
        raise UnrepresentableError("is not true or false")
    return "t" if value else "f"


def _code(code: ColumnCode) -> list[str]:
    return ['b = a["BOOL"]', f'{code.value} = "t" if b is True else "f" if b is False else {code.general}']


def _default(field: Field) -> AttributeValue | None:
    if field.tag == "bool":
        return {"BOOL": field.is_true}
    if field.is_scalar:
        raise UnrepresentableError("is not true or false")
    field.text()  # which notes what it is instead
    return None


BOOLEAN = Codec(
    name="boolean",
    aliases=("bool",),
    tags=frozenset({"BOOL"}),
    convert=lambda _: _convert,
    fast_form=lambda _column, _is_key: FastForm(tag="BOOL", code=_code, line=lambda _: _VALUE),
    default=_default,
    index_methods=frozenset({"btree"}),
)
