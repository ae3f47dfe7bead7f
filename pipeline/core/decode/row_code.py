"""Generates, for each target, the code that converts an item to a row, without needless look-ups and calls.

The code handles the usual case inline: an attribute in the column's fast form. Any other value goes to the column's
converter. If anything at all goes wrong in an item, the whole item goes through the general path, which decides and
gives the reason.

Invariant: the row equals that of `RowDecoder.row`, failures included. A value that needs a column's `on_error` policy
goes through the general path, so it is counted once. The generated source contains a mapping's names and values only as
literals; it is compiled unchanged, and tracebacks show it.
"""

from __future__ import annotations

import linecache
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from pipeline.core.decode.captures import capture_converter
from pipeline.core.decode.children import ChildDecoder
from pipeline.core.decode.routing import captured
from pipeline.core.model.attributes import find, text, to_json
from pipeline.core.model.mapping import OnError
from pipeline.core.types.arrays import number_list, text_array
from pipeline.core.types.conversion import converter
from pipeline.core.types.fast.fast_form import ColumnCode, fast_forms
from pipeline.core.types.key_length import LONGEST_KEY_BYTES, MOST_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pipeline.core.decode.row_decoder import RowDecoder
    from pipeline.core.model.attributes import AttributeValue, Item
    from pipeline.core.model.change import Row
    from pipeline.core.model.mapping import Column, Target
    from pipeline.core.types.fast.fast_form import FastForm


class WrittenDecoder:
    """Decodes like its RowDecoder, but converts rows with the function generated for the target."""

    def __init__(self, decoder: RowDecoder) -> None:
        self.target, self.key, self.key_of = decoder.target, decoder.key, decoder.key_of
        self.general_rows = 0
        """Items that took the general path."""
        self._general = decoder.row
        self.source = _source(decoder, names := {"general": self._general_row})
        """The function's source, for people to read; "" for a target that always takes the general path."""
        self.row: Callable[[Mapping[str, AttributeValue]], Row] = self._general_row
        """Converts an item, as `RowDecoder.row` does."""
        if self.source:
            self.row = compiled(self.source, f"<row of {decoder.target.view_name}>", names)["row"]

    def _general_row(self, item: Mapping[str, AttributeValue]) -> Row:
        self.general_rows += 1
        return self._general(item)


# Catches every exception: the general path then gets the same item, and raises the right one.
_FUNCTION = """\
def row(item):
    try:
        get = item.get
{body}
        return ({variables},)
    except Exception:
        return general(item)
"""


def _source(decoder: RowDecoder, names: dict[str, Any]) -> str:
    """Write the function, and add the objects it uses to `names`; "" if the target must take the general path."""
    row = written_row(decoder, names)
    if row is None:
        return ""
    return _FUNCTION.format(body="\n".join(f"        {line}" for line in row.body), variables=", ".join(row.variables))


class WrittenRow(NamedTuple):
    """The statements that convert `item`, whose `get` is a variable too, and the variables that then hold its row."""

    body: list[str]
    variables: list[str]


def written_row(decoder: RowDecoder, names: dict[str, Any]) -> WrittenRow | None:
    """Write a row's code, and add the objects it uses to `names`; None if the target must take the general path.

    The code raises for an item that needs the general path.
    """
    target = decoder.target
    forms = fast_forms(target)
    elements = [element_function(child) for child in target.children]
    if forms is None or None in elements:
        return None
    names |= {"find": find, "text": text, "text_array": text_array, "number_list": number_list, "jsonb": to_json}
    body = ["missing = 0"]
    if target.match:
        names["captured"] = partial(captured, target)
        body.append("parts = captured(item)")
    seen: set[str] = set()
    for position, (column, form) in enumerate(zip(target.columns, forms, strict=True)):
        code = ColumnCode(f"c{position}", f"general{position}(a)", names)
        body += _column(column, form, code, seen, is_key=column.name in target.primary_key)
    variables = [f"c{position}" for position in range(len(target.columns))]
    if decoder.limits_key:
        positions = [n for n, column in enumerate(target.columns) if column.name in target.primary_key]
        length = " + ".join(f"len(c{position})" for position in positions)
        body.append(f"if {length} > {LONGEST_KEY_BYTES // MOST_BYTES}: raise ValueError('a key that may be too long')")
    if target.unmapped:
        body += _unmapped(target, names)
        variables.append("rest")
    names_of_columns = [column.name for column in target.columns]
    key = "".join(f"c{names_of_columns.index(name)}, " for name in target.primary_key)
    for number, (child, function) in enumerate(zip(target.children, elements, strict=True)):
        names[f"children{number}"] = ChildDecoder(child, element=function).rows
        body.append(f"if get({child.explode[0]!r}, item) is None: raise ValueError('null in place of a list or map')")
        variables.append(f"children{number}(item, ({key}))")
    return WrittenRow(body, variables)


def element_function(child: Target) -> Callable[[Item], Row] | None:
    """Generate the function that converts an element's members to a child's own columns; None for the general path.

    It raises for an element that needs the general path.
    """
    forms = fast_forms(child)
    if forms is None:
        return None
    names: dict[str, Any] = {
        "find": find,
        "text": text,
        "text_array": text_array,
        "number_list": number_list,
        "jsonb": to_json,
    }
    body, first = ["missing = 0"], len(child.primary_key)
    for position, (column, form) in enumerate(zip(child.own_columns, forms[first:], strict=True)):
        body += _column(column, form, ColumnCode(f"c{position}", f"general{position}(a)", names), set(), is_key=False)
    source = _ELEMENT.format(
        body="\n".join(f"    {line}" for line in body),
        variables="".join(f"c{position}, " for position in range(len(child.own_columns))),
    )
    found: Callable[[Item], Row] = compiled(source, f"<element of {child.view_name}>", names)["element"]
    return found


_ELEMENT = """\
def element(item):
    get = item.get
{body}
    return ({variables})
"""


def _unmapped(target: Target, names: dict[str, Any]) -> list[str]:
    """Write the statements that set `rest`, the attributes that no column takes; usually there are none."""
    taken = {column.path[0] for column in target.columns if len(column.path) == 1}
    taken |= {attribute for attribute, _ in target.match}
    names["taken"] = frozenset(taken)
    return [
        f"if len(item) + missing == {len(taken)}:",
        '    rest = "{}"',
        "else:",
        '    rest = jsonb({"M": {name: value for name, value in item.items() if name not in taken}})',
    ]


def _column(column: Column, form: FastForm | None, code: ColumnCode, seen: set[str], *, is_key: bool) -> list[str]:
    """Write the statements that set a column's variable; `seen` holds the attributes already looked up."""
    value, general = code.value, code.general.removesuffix("(a)")
    # If a value needs a policy, the whole item takes the general path, where the value is counted once.
    strict = replace(column, on_error=OnError.REJECT)
    if column.capture is not None:
        code.names[general] = capture_converter(strict, is_key=is_key)
        return [f"{value} = {general}(parts[{column.capture!r}])"]
    code.names[general] = converter(strict, is_key=is_key)
    name = cast("str", column.path[0])
    if len(column.path) == 1:
        lookup, null = f"get({name!r})", f"{name!r} in item"
    else:
        lookup, null = f"find(item, {code.bind('path', column.path)})", f"get({name!r}, item) is None"
    # A bare null instead of an attribute value does not mean that the attribute is missing.
    lines = [
        f"a = {lookup}",
        "if a is None:",
        f"    if {null}: raise ValueError('null in place of an attribute value')",
    ]
    if len(column.path) == 1 and name not in seen:
        seen.add(name)
        lines.append("    missing += 1")
    lines.append(f"    {value} = {f'{general}(None)' if is_key else repr(column.default)}")
    return [*lines, *(form.statements(code) if form else []), "else:", f"    {value} = {code.general}"]


def compiled(source: str, file: str, names: dict[str, Any]) -> dict[str, Any]:
    """Run code generated here from a checked mapping with these globals; return them, with what the code defined."""
    exec(compile(source, file, "exec"), names)  # noqa: S102  see above
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
    return names
