"""YAML read as fields that know their place, so that every problem names its file, line and field.

Invariant: reading never stops at the first problem. A field that cannot be used reports itself and reads as None, and
reading continues. The file is accepted only if nothing was reported.

YAML 1.1 turns words without quotes into other things (`NO` is false, `20` a number, `2026-01-31` a date). Nodes are
composed and never constructed, so the text as written is available to say which word to quote.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import yaml

from pipeline.core.errors import ConfigurationError
from pipeline.core.model.attributes import UnrepresentableError, to_json

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from pipeline.core.model.attributes import AttributeValue

# libyaml's parser, if PyYAML was built with it (every wheel is): ten times faster, with the same line numbers.
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_TAG = "tag:yaml.org,2002:"
_DEEPEST = 32  # DynamoDB's own nesting limit
_READS_AS = {"bool": "true or false", "int": "a number", "float": "a number", "timestamp": "a date"}


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with a mapping file, with its remedy."""

    file: str
    line: int
    field: str
    what: str

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}: "
        return where + (f"{self.field}: {self.what}" if self.field else self.what)


class MappingError(ConfigurationError):
    """Mapping files that cannot be used; `problems` is everything wrong with them."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        lines = [str(problem) for problem in self.problems]
        if len(lines) > 1:
            lines = [f"reading the mapping files: {len(lines)} problems", *lines]
        super().__init__("\n".join(lines))


@dataclass(slots=True)
class Document:
    """One file that is being read: its problems so far, and the line of every field read."""

    file: str
    problems: list[Problem] = field(default_factory=list[Problem])
    lines: dict[str, int] = field(default_factory=dict[str, int])

    def problem(self, line: int, path: str, what: str) -> None:
        """Note a problem."""
        self.problems.append(Problem(self.file, line, path, what))

    def compose(self, text: str) -> Field | None:
        """Parse YAML text and return its root; notes the problem and returns None if it is not YAML."""
        try:
            root: yaml.Node | None = yaml.compose(text, Loader=_LOADER)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            parts = [part for part in (error.context, error.problem) if part]
            self.problem(mark.line + 1 if mark else 1, "", f"is not YAML: {', '.join(parts)}")
            return None
        except (yaml.YAMLError, RecursionError):
            self.problem(1, "", "is not YAML: it contains a character that YAML forbids, or is nested too deeply")
            return None
        if root is None:
            self.problem(1, "", "is empty; a mapping file starts with name, source and targets")
            return None
        return Field(self, root, "", 1)


@dataclass(frozen=True, slots=True)
class Field:
    """A value in the file. `path` is spelled as in `targets.Employees.columns.Name`; `line` is its key's line."""

    document: Document
    node: yaml.Node
    path: str
    line: int

    def problem(self, what: str) -> None:
        """Note a problem with this field."""
        self.document.problem(self.line, self.path, what)

    @property
    def tag(self) -> str:
        """The type that YAML gives the value: str, bool, int, float, timestamp, null, map, seq."""
        return self.node.tag.removeprefix(_TAG)

    @property
    def written(self) -> str:
        """The scalar's text as written, without its quotes."""
        return self.node.value if isinstance(self.node, yaml.ScalarNode) else ""

    def text(self, remedy: str = "") -> str | None:
        """Return the value as text, or note why it is not text. `remedy` is added if the value is missing."""
        return _text(self, self.node, remedy)

    @property
    def is_scalar(self) -> bool:
        """Whether it is neither a list nor a mapping."""
        return isinstance(self.node, yaml.ScalarNode)

    @property
    def is_true(self) -> bool:
        """Whether a bool is true."""
        return _is_true(self.written)

    def number(self) -> AttributeValue | None:
        """Return the number as DynamoDB would store it, with its digits as written, or note that it is not a number.

        Raises UnrepresentableError for a number or text that is not in plain notation.
        """
        if self.tag in {"int", "float", "str"}:
            return {"N": _plain_number(self.written)}
        self.text()  # notes what it is instead
        return None

    def anything(self) -> AttributeValue:
        """Return the value, whatever it is, as DynamoDB would store it. Raises UnrepresentableError."""
        return _anything(self.node)

    def elements(self, example: str) -> list[Field] | None:
        """Return the elements of a list, or note that it is not a list."""
        if not isinstance(self.node, yaml.SequenceNode):
            self.problem(f"must be a list, such as {example}")
            return None
        return [Field(self.document, node, self.path, _line(node)) for node in self.node.value]

    def has(self, name: str) -> bool:
        """Whether this is a mapping that has the key `name`; notes nothing."""
        if not isinstance(self.node, yaml.MappingNode):
            return False
        return any(isinstance(key, yaml.ScalarNode) and key.value == name for key, _ in self.node.value)

    def values_of(self, name: str) -> list[str]:
        """Return the scalar at the key `name`, or the scalars of the mapping there; notes nothing."""
        found = [value for key, value in _pairs(self.node) if isinstance(key, yaml.ScalarNode) and key.value == name]
        inside = [value for node in found for _, value in _pairs(node)]
        return [str(node.value) for node in (*found, *inside) if isinstance(node, yaml.ScalarNode)]

    def members(self, example: str) -> dict[str, Field] | None:
        """Return the fields of a mapping by name, or note that it is not a mapping. Any name is accepted, once."""
        if not isinstance(self.node, yaml.MappingNode):
            self.problem(f"must be a mapping, such as {example}")
            return None
        found: dict[str, Field] = {}
        for key, value in self.node.value:
            member = Field(self.document, value, self._path_of(key), _line(key))
            name = _text(member, key)
            if name is None:
                continue
            if name in found:
                member.problem(f'"{name}" is written twice, first on line {found[name].line}; remove or rename one')
                continue
            found[name] = member
            self.document.lines[member.path] = member.line
        return found

    def known(self, required: Mapping[str, str], optional: Mapping[str, str]) -> dict[str, Field] | None:
        """Like `members`, for a mapping with fixed keys; each comes with an example."""
        found = self.members("{" + ", ".join((required or optional).values()) + "}")
        if found is None:
            return None
        allowed = [*required, *optional]
        for name in [name for name in found if name not in allowed]:
            stranger = found.pop(name)
            stranger.problem(f'"{name}" is not a key here; {suggestion(name, allowed, "the keys are")}')
        for name, example in required.items():
            if name not in found:
                path = f"{self.path}.{name}" if self.path else name
                self.document.problem(self.line, path, f"is missing; add it, such as {example}")
        return found

    def _path_of(self, key: yaml.Node) -> str:
        name = key.value if isinstance(key, yaml.ScalarNode) else "?"
        return f"{self.path}.{name}" if self.path else name


def suggestion(name: str, allowed: Collection[str], introduction: str) -> str:
    """Return the remedy for a misspelled name: the nearest one, or all names."""
    from difflib import get_close_matches  # noqa: PLC0415 - needed for wrong files alone, and the Lambda starts without

    by_lower = {candidate.lower(): candidate for candidate in allowed}
    near = get_close_matches(name.lower(), by_lower, n=1, cutoff=0.6)
    return f"did you mean {by_lower[near[0]]}?" if near else f"{introduction} {', '.join(allowed)}"


def _text(where: Field, node: yaml.Node, remedy: str = "") -> str | None:
    if not isinstance(node, yaml.ScalarNode):
        where.problem(f"must be text, and is a {'list' if isinstance(node, yaml.SequenceNode) else 'mapping'}")
        return None
    kind = node.tag.removeprefix(_TAG)
    if kind == "str":
        return node.value
    if kind == "null":
        where.problem(f"is empty; {remedy or 'give it a value or remove it'}")
    elif kind in _READS_AS:
        where.problem(f'{node.value} without quotes is {_READS_AS[kind]} in YAML; write "{node.value}"')
    elif kind == "merge":
        where.problem("merge keys are not supported; write the keys out")
    else:
        where.problem(f"has the YAML tag {node.tag}; write it as plain text")
    return None


def _pairs(node: yaml.Node) -> list[tuple[yaml.Node, yaml.Node]]:
    return list(node.value) if isinstance(node, yaml.MappingNode) else []


def _line(node: yaml.Node) -> int:
    return node.start_mark.line + 1


def _anything(node: yaml.Node, depth: int = 0) -> AttributeValue:
    if depth > _DEEPEST:
        raise UnrepresentableError(f"is nested deeper than {_DEEPEST} levels")
    if isinstance(node, yaml.MappingNode):
        return {"M": {str(key.value): _anything(value, depth + 1) for key, value in node.value}}
    if isinstance(node, yaml.SequenceNode):
        return {"L": [_anything(element, depth + 1) for element in node.value]}
    text = str(node.value)
    by_tag: dict[str, Any] = {"bool": {"BOOL": _is_true(text)}, "null": {"NULL": True}}
    kind = node.tag.rpartition(":")[2]
    if kind in {"int", "float"}:
        attribute: AttributeValue = {"N": _plain_number(text)}
        to_json(attribute)  # raises for what YAML calls a number and JSON does not
        return attribute
    return by_tag.get(kind, {"S": text})


def _is_true(text: str) -> bool:
    return text.lower() in {"true", "yes", "on"}


def _plain_number(text: str) -> str:
    # YAML 1.1 has octal 017, hexadecimal 0x1F and sexagesimal 1:30. A reader would have to guess, so they are refused.
    if not re.fullmatch(r"[-+]?(?:0|[1-9]\d*)(?:\.\d*)?(?:[eE][-+]?\d{1,3})?", text):
        raise UnrepresentableError("is not a number in plain notation")
    return text.removeprefix("+")
