r"""Builds one regular expression per target that reads a full export's lines without parsing, attributes in any order.

The expression matches whole lines. Each mapped attribute has its own alternative, whose group captures the value if it
has the column's fast form (`pipeline.core.types`). If the target keeps unmapped attributes, those with names seen so
far have alternatives too. Any other line matches only the last group.

Invariant: a line that is read, and that `write` does not refuse, becomes the same row as on the general path. A line in
which an attribute occurs twice is not read, because JSON takes the last one. Lines and rows are marked text
(`pipeline.core.types.fast.marked_text`).
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, cast

from pipeline.core.exports.fast.child_regex import child_rows, element_expression, elements, list_expression
from pipeline.core.model.mapping import OnError
from pipeline.core.types.conversion import converter
from pipeline.core.types.copy_text import field
from pipeline.core.types.fast import column_texts
from pipeline.core.types.fast.fast_form import fast_forms
from pipeline.core.types.fast.marked_text import EMPTY, UNREADABLE, as_copy_text, marked
from pipeline.core.types.fast.value_regex import NULL, REPEAT, TEXT, any_value
from pipeline.core.types.key_length import key_share, limits_key

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from pipeline.core.exports.fast.document_template import DocumentTemplate
    from pipeline.core.model.mapping import Column, Target
    from pipeline.core.types.conversion import Converter
    from pipeline.core.types.fast.column_texts import Values, Writer
    from pipeline.core.types.fast.fast_form import FastForm

_NO_TEMPLATES: Mapping[str, DocumentTemplate | None] = {}


def marked_name(name: str) -> str | None:
    """Return an attribute's name as marked text; None if marked text cannot express it."""
    text = marked(json.dumps(name)[1:-1].encode())
    return None if UNREADABLE in text else text.decode()


def _marked(name: str) -> str:
    text = marked_name(name)
    if text is None:
        raise ValueError("an attribute with a name that only the general path can read")
    return text


def _once(name: str, *groups: int) -> str:
    """Return the expression for an attribute's name; it fails if one of the groups has already captured a value."""
    return f'{re.escape(_marked(name))}":' + "".join(f"(?({group + 1})(?!)|)" for group in groups)


def _whole_line(attribute: str, present: str) -> str:
    """Return the expression for a line of an export, or, in its last group, for any other."""
    line = rf'\{{"Item":(?=\{{)(?:{attribute}){REPEAT}{present}\}}\}}'
    return rf"^(?:{line}|([^\n])[^\n]*)$"


@dataclass(frozen=True, slots=True)
class _Captured:
    """A column whose group captures its value."""

    group: int
    is_document: bool
    null_group: int | None
    """For a column with a default, captures an explicit NULL: the default is for a missing attribute only."""
    missing: bytes
    write: Writer

    def fields(self, columns: Sequence[Values], *, escaped: bool) -> Values:
        fields = self.write(columns[self.group], self.missing, escaped)
        if self.null_group is None or not any(columns[self.null_group]):
            return fields
        nulls = columns[self.null_group]
        values = columns[self.group]
        return [rb"\N" if nulls[n] and not values[n] else fields[n] for n in range(len(fields))]


@dataclass(frozen=True, slots=True)
class _Converted:
    """A column whose group captures the whole attribute, which is then parsed and converted."""

    group: int
    column: Column
    convert: Converter

    def fields(self, columns: Sequence[Values], *, escaped: bool) -> Values:
        del escaped  # parsing restores the escapes
        return column_texts.converted(columns[self.group], self.column, self.convert)


@dataclass(frozen=True, slots=True)
class _Document:
    """A column whose documents mostly fit one template, with groups of its own; others are captured whole."""

    template: DocumentTemplate
    first: int
    """The group of the template's first value."""
    group: int
    missing: bytes

    def fields(self, columns: Sequence[Values], *, escaped: bool) -> Values:
        values, whole = columns[self.first : self.first + self.template.values], columns[self.group]
        # If a document fails the template halfway, its first values may still be in the template's groups.
        return column_texts.filled(self.template.write(values), values[0], whole, self.missing, escaped=escaped)


class LineRegex:
    """The expression, and how its matches become rows. Raises ValueError for a target that it cannot serve."""

    def __init__(
        self,
        target: Target,
        rest: Mapping[str, bool] = MappingProxyType({}),
        templates: Mapping[str, DocumentTemplate | None] = _NO_TEMPLATES,
        *,
        frame: Callable[[str, str], str] = _whole_line,
    ) -> None:
        """`rest` names unmapped attributes, and says which of them may be lists or maps.

        `templates` holds, by column name, the template that most of the column's documents fit. `frame` returns the
        expression, from one for an attribute and one that checks that the key is present.
        """
        forms = fast_forms(target)
        if target.match or forms is None:
            raise ValueError("captured parts, children or options need the general path")
        if any(character < " " for column in target.columns for character in column.default or ""):
            raise ValueError("a default that could be taken for a mark")
        self.templates = {name: template for name, template in templates.items() if template}
        self._alternatives: list[str] = []
        self._nullable: list[str] = []
        self._groups: int = 0
        self._rest: list[tuple[bytes, int]] | None = [] if target.unmapped else None
        self._columns = target.columns
        self._fields = self._add_columns(target, dict(zip([c.name for c in target.columns], forms, strict=True)))
        self._children = [self._add_child(target, child) for child in target.children]
        if self._rest is not None:
            for name, deep in rest.items():
                self._rest.append(self._named(name, self._add(name, f"({any_value() if deep else any_value(0)})")))
        else:
            paths = [*(c.path for c in target.columns), *(c.explode for c in target.children)]
            known = "|".join(re.escape(_marked(name)) for name in dict.fromkeys(str(path[0]) for path in paths))
            self._alternatives.append(rf'(?!(?:{known})"){TEXT}":{any_value()}')
        if self._nullable:
            self._alternatives.append(f"(?:{'|'.join(self._nullable)}){NULL}")
        keys = {column.name for column in target.key_columns}
        required = [
            source.group for source, column in zip(self._fields, target.columns, strict=True) if column.name in keys
        ]
        present = "".join(f"(?({group + 1})|(?!))" for group in required)
        attribute = rf'(?:,|(?<=:)\{{)"(?:{"|".join(self._alternatives)})'
        self._key = [n for n, column in enumerate(target.columns) if column.name in keys]
        self._key.sort(key=lambda n: target.primary_key.index(target.columns[n].name))
        self.find_all = re.compile(frame(attribute, present).encode(), re.MULTILINE).findall

    def write(self, found: Sequence[tuple[bytes, ...]], *, escaped: bool) -> list[bytes]:
        """Return the rows of the matches (at least one), then those of each child; `escaped`: some line has an escape.

        Raises UnreadListsError for items with a list, and ConversionError, ValueError or a similar error for a value,
        that only the general path can handle.
        """
        columns = list(zip(*found, strict=True))
        fields = self.fields(columns, escaped=escaped)
        key = list(map(b"\t".join, zip(*[fields[n] for n in self._key], strict=True))) if self._children else []
        texts: list[bytes] = []
        for group, child in self._children:
            heads, matches = elements(child.find_all(b"\n".join(columns[group])), key)
            inner = child.fields(list(zip(*matches, strict=True)), escaped=escaped) if matches else []
            texts.append(child_rows(heads, inner))
        if self._rest is not None:
            fields.append(column_texts.members(columns, self._rest, len(found), escaped=escaped))
        texts.insert(0, b"\n".join(map(b"\t".join, zip(*fields, strict=True))) + b"\n")
        return [as_copy_text(text) if escaped else text.replace(EMPTY, b"") for text in texts]

    def fields(self, columns: Sequence[Values], *, escaped: bool) -> list[Values]:
        """Return the fields of each column, of matches by group."""
        return [source.fields(columns, escaped=escaped) for source in self._fields]

    def documents(self, found: Sequence[tuple[bytes, ...]]) -> dict[str, list[bytes]]:
        """Return, by column name, the documents that the matches captured whole."""
        return {
            column.name: [match[source.group] for match in found]
            for source, column in zip(self._fields, self._columns, strict=True)
            if isinstance(source, _Captured) and source.is_document
        }

    def _add_columns(
        self, target: Target, forms: Mapping[str, FastForm | None]
    ) -> list[_Captured | _Document | _Converted]:
        by_attribute: dict[str, list[Column]] = {}
        for column in target.columns:
            by_attribute.setdefault(cast("str", column.path[0]), []).append(column)
        keys = set(target.primary_key)
        share = key_share(target) if limits_key(target) else None
        sources: dict[str, _Captured | _Document | _Converted] = {}
        for name, columns in by_attribute.items():
            first, is_key = columns[0], columns[0].name in keys
            form = forms[first.name] if len(columns) == 1 and len(first.path) == 1 else None
            null = '|NULL":(true)' if first.default is not None and not is_key else ""
            longest = share if is_key else None
            value = form.in_line(null, longest) if form else ""
            template = self.templates.get(first.name)
            if form and value and template:
                sources[first.name] = self._document(name, first, template, value)
                continue
            if form and value:
                group = self._add(name, value)
                sources[first.name] = self._captured(first, form, group)
                if first.default is None and not is_key and not form.document:
                    self._nullable.append(_once(name, group))
                continue
            if share and any(c.name in keys and c.type.codec.most_key_bytes(c.type.params) for c in columns):
                raise ValueError("a key that has to be measured and is not captured")
            group = self._add(name, f"({any_value()})")
            for column in columns:
                convert = converter(replace(column, on_error=OnError.REJECT), is_key=column.name in keys)
                sources[column.name] = _Converted(group, column, convert)
            if self._rest is not None and all(len(column.path) > 1 for column in columns):
                self._rest.append(self._named(name, group))
        return [sources[column.name] for column in target.columns]

    def _add_child(self, target: Target, child: Target) -> tuple[int, LineRegex]:
        """Add a child's list, captured whole; return its group, and the expression for its elements."""
        name, *rest = child.explode
        roots = {c.path[0] for c in target.columns} | {c.explode[0] for c in target.children if c is not child}
        if rest or name in roots or child.member or child.places[-1].type.name != "integer":
            raise ValueError("elements that need the general path")
        inner = replace(child, primary_key=(), columns=child.own_columns)
        group = self._add(str(name), f"({list_expression()})")
        if self._rest is not None:
            self._rest.append(self._named(str(name), group))
        return group, LineRegex(inner, frame=element_expression)

    def _captured(self, column: Column, form: FastForm, group: int) -> _Captured:
        null_group = group + 1 if self._groups == group + 2 else None
        missing = field(column.default).encode()
        return _Captured(group, bool(form.document), null_group, missing, form.write)

    def _document(self, name: str, column: Column, template: DocumentTemplate, value: str) -> _Document:
        first, group = self._groups, self._groups + template.values
        self._alternatives.append(_once(name, first, group) + f"(?:{template.regex}|{value})")
        self._groups = group + 1
        return _Document(template, first, group, field(column.default).encode())

    def _add(self, name: str, value: str) -> int:
        """Add an attribute's alternative; return the index of its first group."""
        group = self._groups
        self._alternatives.append(_once(name, group) + value)
        self._groups += re.compile(value).groups
        return group

    def _named(self, name: str, group: int) -> tuple[bytes, int]:
        return f'"{_marked(name)}":'.encode(), group
