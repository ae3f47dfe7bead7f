"""Code that converts an item to a target's row, written for the target: no look-up and no call that it can do without.

It writes out the cases that most values are: an attribute of the expected type whose text needs no change. Whatever
else a column meets goes to that column's general converter, and an item in which anything at all goes wrong goes the
general way whole, which then decides and says why.

Invariant: the row is that of `RowDecoder.row`, failures included. What a column's `on_error` settles is left to the
general way, so that it is counted once.
"""

from __future__ import annotations

import re
from base64 import b64decode
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from pipeline.core.attributes import find, text, to_json
from pipeline.core.captures import capture_converter
from pipeline.core.conversion import converter, text_array
from pipeline.core.decode import LONGEST_KEY_BYTES, RowDecoder
from pipeline.core.mapping import OnError
from pipeline.core.plain_texts import MOST_BYTES, plain_pattern
from pipeline.core.routing import captured

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pipeline.core.attributes import AttributeValue
    from pipeline.core.change import Row
    from pipeline.core.conversion import Converter
    from pipeline.core.mapping import Column, Target


@dataclass(frozen=True, slots=True)
class Spelling:
    """How the code spells values: as they are, or as fields of COPY text.

    The code calls `text`, `text_array` and `jsonb`, which whoever compiles it puts in.
    """

    value: Callable[[str | None], str | None]
    """Spells what a general converter returns, and a default."""
    hexadecimal: str
    """What stands before a binary's digits."""


AS_THEY_ARE = Spelling(lambda value: value, "\\x")


@dataclass(frozen=True, slots=True)
class RowCode:
    """Statements that convert `item`, whose `get` they call, the variables that then hold the row, and what they use.

    They raise for whatever is for the general way.
    """

    statements: list[str]
    variables: list[str]
    names: dict[str, Any]


def row_code(target: Target, spelling: Spelling) -> RowCode:
    """Write the code for a target without children."""
    names: dict[str, Any] = {"find": find}
    body = ["missing = 0"] if target.unmapped else []
    seen: set[str] = set()
    if target.match:
        names["captured"] = partial(captured, target)
        body.append("parts = captured(item)")
    for position, column in enumerate(target.columns):
        writer = _ColumnCode(position, column, names, spelling, is_key=column.name in target.primary_key)
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
    if RowDecoder(target).limits_key:
        names["too_long"] = ValueError("a key that may be too long")
        key = [f"len(c{columns.index(name)})" for name in target.primary_key]
        body.append(f"if {' + '.join(key)} > {LONGEST_KEY_BYTES // MOST_BYTES}: raise too_long")
    return RowCode(body, variables, names)


def row_function(decoder: RowDecoder) -> Callable[[Mapping[str, AttributeValue]], Row]:
    """Return a function that converts an item as `decoder.row` does, and raises what that raises."""
    target, general = decoder.target, decoder.row
    if target.children:  # not written out: elements are converted the general way
        return general
    code = row_code(target, AS_THEY_ARE)
    body = "".join(f"        {statement}\n" for statement in code.statements)
    # Most texts are ASCII: the call that would return them is left out.
    body = re.sub(r"\btext\((c\d+)\)", r'(\1 if \1.isascii() and "\\0" not in \1 else text(\1))', body)
    # Every exception: the general way meets the same item next, and raises what is to be raised.
    source = (
        f"def row(item):\n    try:\n        get = item.get\n{body}        return ({', '.join(code.variables)},)\n"
        "    except Exception:\n        return general(item)\n"
    )
    names: dict[str, Any] = code.names | {"text": text, "text_array": text_array, "jsonb": to_json, "general": general}
    exec(compile(source, f"<row of {target.view_name}>", "exec"), names)  # noqa: S102 - written here, from a checked mapping
    return names["row"]


@dataclass(frozen=True, slots=True)
class _ColumnCode:
    """Writes the statements that set a column's variable: c0, c1, …"""

    position: int
    column: Column
    names: dict[str, Any]
    spelling: Spelling
    is_key: bool

    def statements(self, seen: set[str] | None) -> list[str]:
        """Write them; `seen` collects the attributes of which the missing ones are counted, where they are."""
        column, is_key = self.column, self.is_key
        value, general = f"c{self.position}", f"general{self.position}"
        # What a policy would settle goes to the general way, item and all, where it is counted once.
        strict = replace(column, on_error=OnError.REJECT)
        if column.capture is not None:
            self.names[general] = self._general(capture_converter(strict, is_key=is_key))
            return [f"{value} = {general}(parts[{column.capture!r}])"]
        self.names[general] = self._general(converter(strict, is_key=is_key))
        tag, statements = self._plain_case()
        if len(column.path) == 1:
            lookup = f"a = get({column.path[0]!r})"
        else:
            self.names[f"path{self.position}"] = column.path
            lookup = f"a = find(item, path{self.position})"
        lines = [lookup, "if a is None:"]
        root = repr(column.path[0])  # null where an attribute value should be is not a missing attribute
        null = f"{root} in item" if len(column.path) == 1 else f"get({root}, item) is None"
        lines.append(f"    if {null}: raise ValueError('null in place of an attribute value')")
        if seen is not None and len(column.path) == 1 and column.path[0] not in seen:
            seen.add(cast("str", column.path[0]))
            lines.append("    missing += 1")
        absent = f"{general}(None)" if is_key else repr(self.spelling.value(column.default))
        lines.append(f"    {value} = {absent}")
        if statements:
            condition = f"{tag!r} in a" if tag != "jsonb" else '"S" not in a' if column.json == "parse" else "True"
            lines += [
                f"elif len(a) == 1 and {condition}:",
                *(f"    {statement}" for statement in statements),
                "else:",
            ]
        else:
            lines.append("else:")
        lines.append(f"    {value} = {general}(a)")
        return lines

    def _plain_case(self) -> tuple[str, list[str]]:  # noqa: PLR0911  one return a type reads best
        """Return the tag of a column's plain case and the statements for it; none where there is no such case."""
        column, names, position = self.column, self.names, self.position
        kind, value, general = column.type.name, f"c{position}", f"general{position}(a)"
        pattern = plain_pattern(column, is_key=self.is_key)
        if pattern:
            tag = "S" if kind == "uuid" else "N"
            names[f"match{position}"] = re.compile(pattern, re.ASCII).fullmatch
            return tag, [f"{value} = a[{tag!r}]", f"if not match{position}({value}):", f"    {value} = {general}"]
        if kind == "text":
            return "S", [f'{value} = a["S"]', f"{value} = text({value})"]
        if kind == "varchar":
            length = column.type.params[0]
            return "S", [
                f'{value} = a["S"]',
                f"{value} = text({value}) if len({value}) <= {length} else {general}",
            ]
        if kind == "boolean":
            return "BOOL", ['b = a["BOOL"]', f'{value} = "t" if b is True else "f" if b is False else {general}']
        if kind == "bytea":
            names["b64decode"] = b64decode
            return "B", [f'{value} = {self.spelling.hexadecimal!r} + b64decode(a["B"], validate=True).hex()']
        if kind == "text[]":
            return "SS", [f'{value} = text_array(a["SS"])']
        if kind == "jsonb":
            return "jsonb", [f"{value} = jsonb(a)"]
        return "", []

    def _general(self, convert: Converter) -> Callable[[AttributeValue | None], str | None]:
        spell = self.spelling.value
        return lambda attribute: spell(convert(attribute))
