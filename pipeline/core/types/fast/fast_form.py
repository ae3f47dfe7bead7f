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
from pipeline.core.types.fast.column_texts import Writer, as_they_are

# The fields of Column and Target that every fast form, `row_code`, `line_regex` and `line_template` honour. One that is
# added to those classes is added here once they do: until then what sets it goes the general way.
_COLUMN = frozenset(
    {"name", "attribute", "path", "type", "default", "on_error", "epoch", "json", "description", "capture"}
)
_TARGET = frozenset(
    {"schema", "name", "primary_key", "columns", "unmapped", "unmapped_on_error", "match"}
    | {"parent", "explode", "children"}
)


@dataclass(frozen=True, slots=True)
class ColumnCode:
    """Where the code for a column is written: `value` is its variable, `general` converts the attribute value `a`."""

    value: str
    general: str
    names: dict[str, Any]
    """The code's globals: `text`, `text_array` and `jsonb`, which write such values, and more that is bound."""

    def bind(self, name: str, value: object) -> str:
        """Make something known to the code under a name of this column's own, and return that."""
        own = f"{name}_{self.value}"
        self.names[own] = value
        return own


@dataclass(frozen=True, slots=True, kw_only=True)
class FastForm:
    """A fast form. What it has nothing for is left to the converter: code or lines."""

    tag: str = ""
    """The attribute type it is of; "" for any."""
    condition: str = ""
    """What else the code asks of the attribute value `a`, if anything."""
    code: Callable[[ColumnCode], list[str]] | None = None
    """Writes the statements that set a column's variable. They raise for what is for the general way."""
    line: Callable[[int | None], str] | None = None
    """Returns the regular expression for what stands in a line after the tag, given the longest bytes of a key.

    Its one group is the value, which is never empty: where it is, there is no attribute."""
    document: str = ""
    """The expression for whole attribute values, with their tags, of a column that takes NULL like any other."""
    write: Writer = as_they_are
    """Writes what was captured."""

    def statements(self, code: ColumnCode) -> list[str]:
        """Return the code for an attribute value in the form, after `if`s of its own; none where there is none."""
        if self.code is None:
            return []
        conditions = ["len(a) == 1", f"{self.tag!r} in a" if self.tag else "", self.condition]
        return [f"elif {' and '.join(filter(None, conditions))}:", *(f"    {line}" for line in self.code(code))]

    def in_line(self, null: str = "", longest_bytes: int | None = None) -> str:
        """Return the expression for an attribute value; `null` is a second group's, where NULL is told from none."""
        if self.document or self.line is None:
            return self.document
        value = f'{self.tag}":{self.line(longest_bytes)}'
        return rf'\{{"(?:{value}{null})\}}' if null else rf'\{{"{value}\}}'


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


def as_it_is(tag: str, exact: str, alike: str = "") -> FastForm:
    """Return the form of values that are their texts.

    `exact` is the expression for texts that the converter returns unchanged, "" if that is not known of any; `alike`
    for those that PostgreSQL reads as it reads what the converter returns, where it is another.
    """

    def code(code: ColumnCode) -> list[str]:
        match = code.bind("match", re.compile(exact, re.ASCII).fullmatch)
        return [f"{code.value} = a[{tag!r}]", f"if not {match}({code.value}):", f"    {code.value} = {code.general}"]

    return FastForm(tag=tag, code=code if exact else None, line=lambda _: f'"({alike or exact})"')
