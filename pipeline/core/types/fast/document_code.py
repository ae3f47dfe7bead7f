"""Writes the documents of one column with a function generated for the form that most of them have.

A list or map is mostly written by one piece of code, so that an item's has the same names and types in the same places
as the one before. The function takes such a document apart without looking for what it is, in a third of the time. It
raises for any other document, which then goes the general way, `attributes.to_json`.

Invariant: the text equals that of `to_json`, and a document that it refuses is refused. The generated source has no
name and no value of a document, only the structure; names are bound as constants.
"""

from __future__ import annotations

import re
from json.encoder import encode_basestring
from typing import TYPE_CHECKING, Any

from pipeline.core.model.attributes import to_json

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.core.model.attributes import AttributeValue

# Documents of another form before the form is learnt again, and how often it is: then the column has no one form.
_PATIENCE, _MOST_FORMS = 32, 3
# Code for larger documents would take longer to compile than it saves.
_MOST_PARTS = 100
# DynamoDB's numbers have at most 126 digits before the point and 167 after it.
_is_number = re.compile(r"-?(?:0|[1-9]\d{0,200})(?:\.\d{1,200})?", re.ASCII).fullmatch
_FUNCTION = """\
def document(e0):
{body}
    if {lengths} != {parts}:
        raise ValueError("an attribute value has more than one tag")
    text = f"{text}"
    if nul in text:
        raise ValueError("a text may contain U+0000")
    text.isascii() or text.encode()
    return text
"""


def document_writer() -> Callable[[AttributeValue], str]:
    """Return a function like `to_json`, for one column. It learns the form of that column's documents."""
    form: Callable[[AttributeValue], str] | None = None
    hits = misses = learnt = 0

    def write(attribute: AttributeValue) -> str:
        nonlocal form, hits, misses, learnt
        if form is not None:
            try:
                text = form(attribute)
            except Exception:  # noqa: BLE001, S110  the general way decides
                pass
            else:
                hits += 1
                return text
        if learnt <= _MOST_FORMS:
            misses += 1
            if misses == _PATIENCE:
                if hits < misses:
                    form = form_of(attribute) if learnt < _MOST_FORMS else None
                    learnt += 1
                hits = misses = 0
        return to_json(attribute)

    return write


def form_of(attribute: AttributeValue) -> Callable[[AttributeValue], str] | None:
    """Return the function for documents like this one; None if it is malformed, or too large."""
    names: dict[str, Any] = {
        "quoted": encode_basestring, "is_number": _is_number, "to_json": to_json, "nul": "\\u0000"
    }  # fmt: skip
    code = _Code(names)
    try:
        text = code.write(attribute)
    except (AttributeError, OverflowError, TypeError, UnicodeError, ValueError):
        return None
    source = _FUNCTION.format(
        body="\n".join(f"    {line}" for line in code.body),
        lengths=" + ".join(f"len(e{number})" for number in range(code.parts)),
        parts=code.parts,
        text=text,
    )
    exec(compile(source, "<document>", "exec"), names)  # noqa: S102  only structure, see above
    found: Callable[[AttributeValue], str] = names["document"]
    return found


class _Code:
    """The statements that take a document apart: `e0` is the attribute value, `e1` and so on those within it."""

    def __init__(self, names: dict[str, Any]) -> None:
        self.body: list[str] = []
        self.parts = 0
        self._names = names

    def write(self, attribute: AttributeValue) -> str:
        """Write the statements for an attribute value; returns the f-string of its text."""
        number, self.parts = self.parts, self.parts + 1
        if self.parts > _MOST_PARTS:
            raise OverflowError
        ((tag, value),) = attribute.items()
        if tag == "S":
            return f"{{quoted(e{number}['S'])}}"
        if tag == "N":
            self.body += [f"v{number} = e{number}['N']", f"if not is_number(v{number}): raise ValueError"]
            return f"{{v{number}}}"
        if tag == "L":
            self.body.append(f"if e{number}['L'].__class__ is not list: raise ValueError")
            return "[" + ",".join(self._within(f"e{number}['L']", value)) + "]"
        if tag == "M":
            keys = self._bound(tuple(value))
            self.body.append(f"if tuple(e{number}['M']) != {keys}: raise ValueError")
            texts = self._within(f"e{number}['M'].values()", list(value.values()))
            texts = [
                f"{{{self._bound(to_json({'S': name}) + ':')}}}{text}" for name, text in zip(value, texts, strict=True)
            ]
            return "{{" + ",".join(texts) + "}}"
        return f"{{to_json(e{number})}}"

    def _within(self, expression: str, values: list[AttributeValue]) -> list[str]:
        """Write the statements for the elements or members, which the expression gives."""
        place = len(self.body)
        numbers, texts = list[int](), list[str]()
        for value in values:
            numbers.append(self.parts)
            texts.append(self.write(value))
        self.body.insert(place, f"[{', '.join(f'e{number}' for number in numbers)}] = {expression}")
        return texts

    def _bound(self, value: object) -> str:
        name = f"k{len(self._names)}"
        self._names[name] = value
        return name
