"""Code that converts an item to a target's row, written for the target: no look-up and no call that it can do without.

It writes out the cases that most values are: an attribute in the column's fast form. Whatever else a column meets goes
to that column's converter, and an item in which anything at all goes wrong goes the general way whole, which then
decides and says why.

Invariant: the row is that of `RowDecoder.row`, failures included. What a column's `on_error` settles is left to the
general way, so that it is counted once. Code is compiled as it was written, names and values of a mapping are in it
as literals only, and tracebacks show it.
"""

from __future__ import annotations

import linecache
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from pipeline.core.decode.captures import capture_converter
from pipeline.core.decode.routing import captured
from pipeline.core.model.attributes import find, text, to_json
from pipeline.core.model.mapping import OnError
from pipeline.core.types.arrays import text_array
from pipeline.core.types.conversion import converter
from pipeline.core.types.fast.fast_form import ColumnCode, Spelling, fast_forms
from pipeline.core.types.key_length import LONGEST_KEY_BYTES, MOST_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pipeline.core.decode.row_decoder import RowDecoder
    from pipeline.core.model.attributes import AttributeValue
    from pipeline.core.model.change import Row
    from pipeline.core.model.mapping import Column
    from pipeline.core.types.conversion import Converter
    from pipeline.core.types.fast.fast_form import FastForm


# Most texts are ASCII: the call that would return them is left out.
AS_THEY_ARE = Spelling(
    lambda value: value,
    "\\x",
    r'({0} if {0}.isascii() and "\0" not in {0} else text({0}))',
    {"text": text, "text_array": text_array, "jsonb": to_json},
)


@dataclass(frozen=True, slots=True)
class RowCode:
    """Statements that convert `item`, whose `get` they call, the variables that then hold the row, and what they use.

    They raise for whatever is for the general way.
    """

    statements: list[str]
    variables: list[str]
    names: dict[str, Any]


def row_code(decoder: RowDecoder, spelling: Spelling) -> RowCode | None:
    """Write the code for the decoder's target; None where the target is for the general way."""
    target = decoder.target
    forms = fast_forms(target)
    if forms is None:
        return None
    names: dict[str, Any] = {"find": find, **spelling.names}
    body = ["missing = 0"] if target.unmapped else []
    seen: set[str] = set()
    if target.match:
        names["captured"] = partial(captured, target)
        body.append("parts = captured(item)")
    for position, (column, form) in enumerate(zip(target.columns, forms, strict=True)):
        code = ColumnCode(f"c{position}", f"general{position}(a)", spelling, names)
        writer = _ColumnWriter(column, form, code, is_key=column.name in target.primary_key)
        body += writer.statements(seen if target.unmapped else None)
    variables = [f"c{position}" for position in range(len(target.columns))]
    columns = [column.name for column in target.columns]
    if target.unmapped:
        taken = {column.path[0] for column in target.columns if len(column.path) == 1}
        taken |= {attribute for attribute, _ in target.match}
        names["taken"] = frozenset(taken)
        body += [
            f"if len(item) + missing == {len(taken)}:",
            '    rest = "{}"',
            "else:",
            '    rest = jsonb({"M": {name: value for name, value in item.items() if name not in taken}})',
        ]
        variables.append("rest")
    if decoder.limits_key:
        names["too_long"] = ValueError("a key that may be too long")
        key = [f"len(c{columns.index(name)})" for name in target.primary_key]
        body.append(f"if {' + '.join(key)} > {LONGEST_KEY_BYTES // MOST_BYTES}: raise too_long")
    return RowCode(body, variables, names)


def row_function(decoder: RowDecoder) -> Callable[[Mapping[str, AttributeValue]], Row]:
    """Return a function that converts an item as `decoder.row` does, and raises what that raises."""
    general = decoder.row
    code = row_code(decoder, AS_THEY_ARE)
    if code is None:
        return general
    body = "".join(f"        {statement}\n" for statement in code.statements)
    # Every exception: the general way meets the same item next, and raises what is to be raised.
    source = (
        f"def row(item):\n    try:\n        get = item.get\n{body}        return ({', '.join(code.variables)},)\n"
        "    except Exception:\n        return general(item)\n"
    )
    return compiled(source, f"<row of {decoder.target.view_name}>", {**code.names, "general": general})["row"]


def compiled(source: str, file: str, names: dict[str, Any]) -> dict[str, Any]:
    """Run code that was written here, from a checked mapping, among these names; returns them with its own."""
    exec(compile(source, file, "exec"), names)  # noqa: S102  see above
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
    return names


@dataclass(frozen=True, slots=True)
class _ColumnWriter:
    """Writes the statements that set a column's variable: c0, c1, …"""

    column: Column
    form: FastForm | None
    code: ColumnCode
    is_key: bool

    def statements(self, seen: set[str] | None) -> list[str]:
        """Write them; `seen` collects the attributes of which the missing ones are counted, where they are."""
        column, value = self.column, self.code.value
        general = self.code.general.removesuffix("(a)")
        # What a policy would settle goes to the general way, item and all, where it is counted once.
        strict = replace(column, on_error=OnError.REJECT)
        if column.capture is not None:
            self.code.names[general] = self._general(capture_converter(strict, is_key=self.is_key))
            return [f"{value} = {general}(parts[{column.capture!r}])"]
        self.code.names[general] = self._general(converter(strict, is_key=self.is_key))
        root = repr(column.path[0])
        if len(column.path) == 1:
            lookup, null = f"get({root})", f"{root} in item"
        else:
            lookup, null = f"find(item, {self.code.bind('path', column.path)})", f"get({root}, item) is None"
        lines = [f"a = {lookup}", "if a is None:"]
        # Null where an attribute value should be is not a missing attribute.
        lines.append(f"    if {null}: raise ValueError('null in place of an attribute value')")
        if seen is not None and len(column.path) == 1 and column.path[0] not in seen:
            seen.add(cast("str", column.path[0]))
            lines.append("    missing += 1")
        absent = f"{general}(None)" if self.is_key else repr(self.code.spelling.value(column.default))
        lines.append(f"    {value} = {absent}")
        fast = self.form.statements(self.code) if self.form else []
        return [*lines, *fast, "else:", f"    {value} = {self.code.general}"]

    def _general(self, convert: Converter) -> Callable[[AttributeValue | None], str | None]:
        spell = self.code.spelling.value
        return lambda attribute: spell(convert(attribute))
