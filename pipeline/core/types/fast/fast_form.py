r"""Fast forms: what fast decoding may know of a column, and what makes it step aside.

A fast form says how most values of a column look when DynamoDB writes them, and how they become the column's text. A
value of another form goes to the column's converter.

Invariant: what a form takes the converter takes too, to the same text or to another spelling that PostgreSQL reads as
the same value. Whatever the forms were not made for is for the general way: a type without one, and any column or
target with an option that is not listed here.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields
from typing import Any

from pipeline.core.model.mapping import Column, Target
from pipeline.core.types.fast.column_texts import Writer, as_they_stand

# The fields of Column and Target that every fast form, `row_code`, `line_pattern` and `line_shape` honour. One that is
# added to those classes is added here once they do: until then what sets it goes the general way.
_COLUMN = frozenset(
    {"name", "attribute", "path", "type", "default", "on_error", "epoch", "json", "description", "capture"}
)
_TARGET = frozenset(
    {"schema", "name", "primary_key", "columns", "unmapped", "unmapped_on_error", "match"}
    | {"parent", "explode", "children"}
)


@dataclass(frozen=True, slots=True)
class Spelling:
    """How generated code spells values: as they are, or as fields of COPY text."""

    value: Callable[[str | None], str | None]
    """Spells what a converter returns, and a default."""
    hexadecimal: str
    """What stands before a binary's digits."""
    text: str
    """The code that spells the text in the variable {0}."""
    names: dict[str, Callable[[Any], str]]
    """What the code may call: `text_array` for a set of texts, `jsonb` for an attribute value, and what `text` has."""


@dataclass(frozen=True, slots=True)
class ColumnCode:
    """Where the code for a column is written: `value` is its variable, `general` converts the attribute value `a`."""

    value: str
    general: str
    spelling: Spelling
    names: dict[str, Any]
    """The code's globals."""

    def bind(self, name: str, value: object) -> str:
        """Make something known to the code under a name of this column's own, and return that."""
        own = f"{name}_{self.value}"
        self.names[own] = value
        return own


@dataclass(frozen=True, slots=True, kw_only=True)
class FastForm:
    """A fast form. What it has nothing for is left to the converter: code, lines or fields."""

    tag: str = ""
    """The attribute type it is of; "" for any."""
    condition: str = ""
    """What else the code asks of the attribute value `a`, if anything."""
    code: Callable[[ColumnCode], list[str]] | None = None
    """Writes the statements that set a column's variable. They raise for what is for the general way."""
    line: Callable[[bool, int | None], str] | None = None
    """Returns the pattern of what stands in a line after the tag, with the longest bytes that a key may have.

    Its one group is of the bare value, which is never empty: so that is none. If the first argument is true, it is of
    text with the quote before it, and an empty text is taken too; to tell that from none costs every text."""
    writers: tuple[Writer, Writer] = (as_they_stand, as_they_stand)
    """Write the values that the pattern captured: bare, and with the quote before them."""
    field: str = ""
    """The pattern of what stands after the tag, where its one group is the column's field as it stands."""
    document: str = ""
    """The pattern of whole attribute values, with their tags, for a column that takes NULL like any other."""

    def statements(self, code: ColumnCode) -> list[str]:
        """Return the code for an attribute value in the form, after `if`s of its own; none where there is none."""
        if self.code is None:
            return []
        conditions = ["len(a) == 1", f"{self.tag!r} in a" if self.tag else "", self.condition]
        return [f"elif {' and '.join(filter(None, conditions))}:", *(f"    {line}" for line in self.code(code))]

    def in_line(self, null: str, longest_bytes: int | None, *, empties: bool) -> str:
        """Return the pattern of an attribute value; `null` is a second group's, where NULL is told from none."""
        if self.document or self.line is None:
            return self.document
        pattern = f'{self.tag}":{self.line(empties, longest_bytes)}'
        return rf'\{{"(?:{pattern}{null})\}}' if null else rf'\{{"{pattern}\}}'

    def as_field(self) -> str:
        """Return the pattern of an attribute value whose one group is the column's field; "" where there is none."""
        return rf'\{{"{self.tag}":{self.field}\}}' if self.field else ""


def fast_forms(target: Target) -> list[FastForm | None] | None:
    """Return the columns' fast forms, None for one without; None for all where the target is for the general way."""
    columns = target.columns
    if target.children or _asks_for_more(target, _TARGET) or any(_asks_for_more(each, _COLUMN) for each in columns):
        return None
    return [column.type.codec.fast_form(column, column.name in target.primary_key) for column in columns]


def _asks_for_more(value: Column | Target, known: frozenset[str]) -> bool:
    """Whether a field that is not known has another value than its default."""
    for each in fields(value):
        default = each.default_factory() if each.default_factory is not MISSING else each.default
        if each.name not in known and getattr(value, each.name) != default:
            return True
    return False


def as_it_stands(tag: str, exact: str, alike: str = "") -> FastForm:
    """Return the form of values that are their texts.

    `exact` is the pattern of texts that the converter returns unchanged, "" if that is not known of any; `alike` of
    those that PostgreSQL reads as it reads what the converter returns, where it is another.
    """

    def code(code: ColumnCode) -> list[str]:
        match = code.bind("match", re.compile(exact, re.ASCII).fullmatch)
        return [f"{code.value} = a[{tag!r}]", f"if not {match}({code.value}):", f"    {code.value} = {code.general}"]

    pattern = f'"({alike or exact})"'
    return FastForm(tag=tag, code=code if exact else None, line=lambda _empties, _longest: pattern, field=pattern)
