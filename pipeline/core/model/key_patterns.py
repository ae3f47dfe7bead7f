"""Patterns over key attributes: `ORDER#{order_id}` matches a key, and columns take the captured parts.

Invariant: a key has at most one match, and the captured parts alone are enough to rebuild the key. A captured part is
never empty and never contains the character that follows it in the pattern, so there is one way to read a key. Whether
two patterns have a key in common is decided exactly, by walking both at once.
"""

from __future__ import annotations

import re
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

from pipeline.core.model.attributes import UnrepresentableError, canonical_number

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from pipeline.core.model.attributes import AttributeValue

_PART = re.compile(r"(?P<escaped>\{\{|\}\})|\{(?P<name>[^{}]*)\}|(?P<brace>[{}])|(?P<text>[^{}]+)")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,62}", re.ASCII)


class PatternError(ValueError):
    """A pattern that cannot be used; the text says what is wrong, and the remedy."""


@dataclass(frozen=True, slots=True)
class Pattern:
    """A pattern over one key attribute of type `tag`: text around captured parts, one text more than parts."""

    tag: str
    texts: tuple[str, ...]
    captures: tuple[str, ...]
    _regex: re.Pattern[str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        written = re.escape(self.texts[0])
        for following in self.texts[1:]:
            written += f"([^{re.escape(following[0])}]+)" if following else "(.+)"
            written += re.escape(following)
        object.__setattr__(self, "_regex", re.compile(written, re.DOTALL))

    def match(self, attribute: AttributeValue | None) -> dict[str, AttributeValue] | None:
        """Return the captured parts of a key attribute by name, each with the attribute's type; None for no match."""
        value = (attribute or {}).get(self.tag)
        if not isinstance(value, str) or len(attribute or ()) != 1:
            return None
        if self.tag == "N":
            value = _canonical(value)
        found = self._regex.fullmatch(value)
        return None if found is None else {n: {self.tag: v} for n, v in zip(self.captures, found.groups(), strict=True)}

    def build(self, parts: Mapping[str, str]) -> str:
        """Return the key with these captured parts: the inverse of `match`."""
        between = [parts[name] for name in self.captures] + [""]
        return "".join([piece for pair in zip(self.texts, between, strict=True) for piece in pair])


def parse_pattern(text: str, tag: str) -> Pattern:
    """Parse a pattern for a key attribute of type `tag` (S, N or B). Raises PatternError."""
    texts, captures = [""], list[str]()
    for part in _PART.finditer(text):
        if part["brace"]:
            raise PatternError(
                f'"{text}" has a "{part["brace"]}" without its partner; write {{{{ or }}}} for the character'
            )
        if part["name"] is None:
            texts[-1] += part["text"] or part["escaped"][0]
            continue
        _check_capture(text, part["name"], texts, captures)
        captures.append(part["name"])
        texts.append("")
    if texts == [""]:
        raise PatternError("is empty, but a key never is; write a pattern such as ORDER#{order_id}")
    if tag == "N" and not captures:
        texts = [_literal_number(text, texts[0])]
    if tag != "S" and captures and any(texts):
        raise PatternError(f'"{text}" splits an attribute of type {tag}; write {{{captures[0]}}} alone, for all of it')
    if tag == "B" and not captures:
        raise PatternError(f'"{text}" is text and the attribute is of type B; write {{value}} alone, or leave it out')
    return Pattern(tag, tuple(texts), tuple(captures))


def _check_capture(text: str, name: str, texts: list[str], captures: list[str]) -> None:
    if not _NAME.fullmatch(name):
        raise PatternError(
            f'"{text}" names a part "{name}"; name it with letters, digits and "_", such as {{order_id}},'
            " and write {{ for the character {"
        )
    if name in captures:
        raise PatternError(f'"{text}" captures "{name}" twice; give the parts different names')
    if captures and not texts[-1]:
        raise PatternError(
            f'"{text}" has nothing between {{{captures[-1]}}} and {{{name}}}, so nobody can tell where the first ends;'
            " put the character that separates them between them"
        )


def _literal_number(text: str, literal: str) -> str:
    try:
        return canonical_number(literal)
    except UnrepresentableError:
        raise PatternError(
            f'"{text}" is not a number, and the attribute is of type N; write a number, or {{value}} alone'
        ) from None


def _canonical(number: str) -> str:
    try:
        return canonical_number(number)
    except UnrepresentableError:
        return number


def common_key(one: Pattern | None, other: Pattern | None, tag: str) -> str | None:
    """Return a shortest value that both patterns match, None if there is none. A pattern None matches every value."""
    present = [pattern for pattern in (one, other) if pattern is not None]
    if tag != "S":
        literals = {pattern.texts[0] for pattern in present if not pattern.captures}
        return None if len(literals) > 1 else next(iter(literals), "1")
    steps = [_steps(pattern) for pattern in present] or [[("", True)]]
    return _shortest(steps[0], steps[-1])


_Step = tuple[str, bool]
"""One character, or (with True) any run of characters other than it; an empty one excludes nothing."""


def _steps(pattern: Pattern) -> list[_Step]:
    steps: list[_Step] = [(character, False) for character in pattern.texts[0]]
    for following in pattern.texts[1:]:
        steps.append((following[:1], True))
        steps += [(character, False) for character in following]
    return steps


def _shortest(one: list[_Step], other: list[_Step]) -> str | None:
    """Walk both patterns at once, breadth first. Characters that neither names are equivalent: one represents them."""
    named = {character for character, _ in (*one, *other)} - {""}
    alphabet = [next(c for c in _characters() if c not in named), *sorted(named)]
    start, end = ((0, False), (0, False)), (len(one), len(other))
    seen, waiting = {start}, deque([(start, "")])
    while waiting:
        (here, there), word = waiting.popleft()
        if end[0] in _open(here) and end[1] in _open(there):
            return word
        for character in alphabet:
            for state in _product(_after(one, here, character), _after(other, there, character)):
                if state not in seen:
                    seen.add(state)
                    waiting.append((state, word + character))
    return None


_State = tuple[int, bool]
"""A step, and whether it is a run that has begun and may continue or end."""


def _open(state: _State) -> tuple[int, ...]:
    """Return where a state is: a run that has begun may also end."""
    position, begun = state
    return (position, position + 1) if begun else (position,)


def _after(steps: list[_Step], state: _State, character: str) -> list[_State]:
    reached: list[_State] = []
    for position in _open(state):
        if position == len(steps):
            continue
        expected, run = steps[position]
        if run and character != expected:
            reached.append((position, True))
        elif not run and character == expected:
            reached.append((position + 1, False))
    return reached


def _product(ones: list[_State], others: list[_State]) -> Iterable[tuple[_State, _State]]:
    return [(one, other) for one in ones for other in others]


def _characters() -> Iterable[str]:
    yield from "x1a0yz23456789bcdefghijklmnopqrstuvw"
    yield from (chr(code) for code in range(0x21, 0x10000))


def captured_number(attribute: AttributeValue) -> str | None:
    """Return a captured text that is a whole number in its usual spelling, else None: `007` and `7` are two keys."""
    value = cast("str", attribute.get("S", ""))
    return value if re.fullmatch(r"0|[1-9]\d*", value, re.ASCII) else None
