r"""Fast forms: what fast decoding knows about a column, and when it must not be used.

A fast form describes how DynamoDB writes most values of a column, and how they become the column's text. A value in any
other form goes to the column's converter.

Invariant: for a value in its form, a fast form gives the converter's text, or another spelling that PostgreSQL reads as
the same value. A type without a form, and any column or target with an option not listed here, takes the general path.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields
from typing import Any

from pipeline.core.model.mapping import Column, Target
from pipeline.core.types.fast.column_texts import Writer, as_they_are

# The fields of Column and Target that every fast form, `row_code`, `line_regex` and `line_template` support. Add a new
# field here once all of them support it; until then, a mapping that sets it takes the general path.
_COLUMN = frozenset(
    {"name", "attribute", "path", "type", "default", "on_error", "epoch", "json", "description", "capture", "protect"}
)
_TARGET = frozenset(
    {"schema", "name", "primary_key", "columns", "unmapped", "unmapped_on_error", "match"}
    | {"parent", "explode", "children", "indexes", "readers", "history", "protect", "member"}
)


@dataclass(frozen=True, slots=True)
class ColumnCode:
    """A column's code: `value` is its variable, `general` the call that converts the attribute value `a`."""

    value: str
    general: str
    names: dict[str, Any]
    """The code's globals: `text`, `text_array`, `number_list`, `jsonb`, which write values, and what `bind` adds."""

    def bind(self, name: str, value: object) -> str:
        """Bind a value to a global name that is unique to this column, and return the name."""
        own = f"{name}_{self.value}"
        self.names[own] = value
        return own


@dataclass(frozen=True, slots=True, kw_only=True)
class FastForm:
    """A fast form. Without `code`, or without `line`, that path uses the converter."""

    tag: str = ""
    """The attribute type that it is for; "" for any."""
    tags_in_line: str = ""
    """The expression for the tag in a line, if `line` is for several types."""
    condition: str = ""
    """A further condition on the attribute value `a`, if any."""
    code: Callable[[ColumnCode], list[str]] | None = None
    """Writes the statements that set a column's variable. They raise for a value that needs the general path."""
    line: Callable[[int | None], str] | None = None
    """Returns the regular expression for the text after the tag in a line, given a key's most bytes.

    Its one group captures the value and is never empty: an empty group means no attribute."""
    document: str = ""
    """The expression for whole attribute values, tags included, of a column that stores NULL like any other value."""
    write: Writer = as_they_are
    """Writes the captured values."""

    def statements(self, code: ColumnCode) -> list[str]:
        """Return the `elif` branch for an attribute value in the form; empty if the form has no code."""
        if self.code is None:
            return []
        conditions = ["len(a) == 1", f"{self.tag!r} in a" if self.tag else "", self.condition]
        return [f"elif {' and '.join(filter(None, conditions))}:", *(f"    {line}" for line in self.code(code))]

    def in_line(self, null: str = "", longest_bytes: int | None = None) -> str:
        """Return the expression for an attribute value; `null` adds a second group that captures an explicit NULL."""
        if self.document or self.line is None:
            return self.document
        value = f'{self.tags_in_line or self.tag}":{self.line(longest_bytes)}'
        return rf'\{{"(?:{value}{null})\}}' if null else rf'\{{"{value}\}}'


def fast_forms(target: Target) -> list[FastForm | None] | None:
    """Return each column's fast form or None; None instead of the list if the target must take the general path."""
    columns = target.columns
    if _asks_for_more(target, _TARGET) or any(_asks_for_more(each, _COLUMN) for each in columns):
        return None
    return [column.type.codec.fast_form(column, column.name in target.primary_key) for column in columns]


def _asks_for_more(value: Column | Target, known: frozenset[str]) -> bool:
    """Whether a field outside `known` differs from its default."""
    for each in fields(value):
        default = each.default_factory() if each.default_factory is not MISSING else each.default
        if each.name not in known and getattr(value, each.name) != default:
            return True
    return False


def as_it_is(tag: str, exact: str, alike: str = "") -> FastForm:
    """Return the form of values whose text is used unchanged.

    `exact` matches texts that the converter returns unchanged ("" if none are known); `alike`, if given, matches texts
    that PostgreSQL reads as the same value as the converter's text.
    """

    def code(code: ColumnCode) -> list[str]:
        match = code.bind("match", re.compile(exact, re.ASCII).fullmatch)
        return [f"{code.value} = a[{tag!r}]", f"if not {match}({code.value}):", f"    {code.value} = {code.general}"]

    return FastForm(tag=tag, code=code if exact else None, line=lambda _: f'"({alike or exact})"')
