r"""Attribute values as they stand in a line of an export, as patterns: what the fast way of decoding looks for.

Texts are in their plain spelling (`pipeline.core.plain_spelling`): no quote, so that a value cannot reach past its end.

Invariant: what a column's pattern captures is a value that its converter takes, and that `pipeline.core.column_texts`
writes as the converter does, or in another spelling that PostgreSQL reads as the same value. What it does not match
may still be right; the converter then decides.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from pipeline.core.decode import LONGEST_KEY_BYTES
from pipeline.core.plain_texts import EXPONENT_NUMBER, NUMBER, plain_pattern

if TYPE_CHECKING:
    from pipeline.core.mapping import Column

TEXT = '[^"]*+'
# Repeats that do not backtrack are faster by half; before 3.11.5 Python got those of groups wrong (its issue 106052).
REPEAT = "*+" if sys.version_info >= (3, 11, 5) else "*"
# Maps and lists within each other that are still read by pattern.
DEPTH = 8
LONG_TYPES = frozenset({"text", "varchar", "bytea"})

NULL = r'\{"NULL":true\}'
_BOOLEAN = r'BOOL":([tf])(?:(?<=t)rue|(?<=f)alse)'
_DAY = r"(?:(?:0[13578]|1[02])-(?:0[1-9]|[12]\d|3[01])|(?:0[469]|11)-(?:0[1-9]|[12]\d|30)|02-(?:0[1-9]|1\d|2[0-8]))"
_DATE = rf"(?!0000)\d{{4}}-{_DAY}"
_TIMESTAMP = rf"{_DATE}T(?:[01]\d|2[0-3]):[0-5]\d:[0-5]\d(?:\.\d{{1,6}})?Z"


def any_value(depth: int = DEPTH) -> str:
    """Return the pattern, without groups, of an attribute value of any type, `depth` lists or maps deep.

    Lists and maps share one repeat, as the pattern would else double with every level. That a name stands in a list, or
    brackets close crosswise, is therefore not seen here: such a value is no JSON afterwards either, which PostgreSQL
    refuses, and the general way then names the line. Numbers are judged where they are written: it is cheaper there.
    """
    return rf'\{{"{_tagged_value(depth)}'


def _tagged_value(depth: int) -> str:
    """Return the pattern of a value from its tag on."""
    texts, numbers = _elements(TEXT), _elements(EXPONENT_NUMBER)
    kinds = rf'S":"{TEXT}"|N":"{TEXT}"|BOOL":(?:true|false)|NULL":true|B":"{TEXT}"|[SB]S":\[{texts}\]|NS":\[{numbers}\]'
    if depth:
        # Alternatives that start with a character of their own are told apart by it, for next to nothing.
        member = rf'(?:,|(?<=[\[{{]))(?:"{TEXT}":\{{|\{{)"{_tagged_value(depth - 1)}'
        kinds += rf'|(?:L":\[(?=[{{\]])|M":\{{(?=["}}]))(?:{member}){REPEAT}[\]}}]'
    return rf"(?:{kinds})\}}"


def _elements(element: str) -> str:
    return rf'"{element}"(?:,"{element}"){REPEAT}'


def column_value(  # noqa: PLR0911  one return a type
    column: Column, *, is_key: bool, longest_bytes: int | None, empties: bool
) -> str:
    """Return the pattern of an attribute value that the column takes; "" where there is none.

    Its one group is of the bare value, which is never empty: so that is none. With `empties`, it is of text with the
    quote before it, and an empty text is taken too. NULL is in it, as a second group, only for a column that makes a
    difference between NULL and none: else it would cost every value. `longest_bytes` is what the column may add to a
    key that is measured.
    """
    kind = column.type.name
    null = '|NULL":(true)' if column.default is not None and not is_key else ""
    tagged = _tagged(column, is_key=is_key, longest_bytes=longest_bytes, empties=empties)
    if tagged:
        if kind not in {"text", "varchar"}:
            return _value(f'{tagged[0]}":"({tagged[1]})"', null)
        return _value(f'S":("{tagged[1]})"' if empties else f'S":"({tagged[1]})"', null)
    if kind == "boolean":
        return _value(_BOOLEAN, null)
    if kind == "bytea":
        binary = f'[^"]{_times(not empties, longest_bytes and longest_bytes // 3 * 4)}'
        return _value(f'B":("{binary})"' if empties else f'B":"({binary})"', null)
    if kind == "text[]":
        return _value(rf'SS":\[({_elements(TEXT)})\]', null)
    if kind == "numeric[]":
        return _value(rf'NS":\[({_elements(EXPONENT_NUMBER)})\]', null)
    if kind == "jsonb":
        return ('((?!..S")' if column.json == "parse" else "(") + any_value() + ")"
    return ""


def _value(tagged: str, null: str) -> str:
    return rf'\{{"(?:{tagged}{null})\}}' if null else rf'\{{"{tagged}\}}'


def plain_value(column: Column, *, is_key: bool) -> str:
    """Return the pattern of an attribute value whose text is the column's field; "" where there is none.

    Its one group is the text, without a quote. Keys that have to be measured are none.
    """
    if column.type.name == "boolean":
        return rf'\{{"{_BOOLEAN}\}}'
    tagged = _tagged(column, is_key=is_key, longest_bytes=None, empties=True)
    return rf'\{{"{tagged[0]}":"({tagged[1]})"\}}' if tagged else ""


def _tagged(column: Column, *, is_key: bool, longest_bytes: int | None, empties: bool) -> tuple[str, str] | None:
    """Return the tag and the pattern of the texts that are the column's field as they stand."""
    kind = column.type.name
    pattern = plain_pattern(column, is_key=is_key)
    if pattern:
        return ("S" if kind == "uuid" else "N"), EXPONENT_NUMBER if pattern == NUMBER else pattern
    if kind in {"text", "varchar"}:
        return "S", _text(column, longest_bytes, empties=empties)
    if kind == "date" or (kind == "timestamptz" and column.epoch is None):
        return "S", _DATE if kind == "date" else _TIMESTAMP
    return None


def _text(column: Column, longest_bytes: int | None, *, empties: bool) -> str:
    most = column.type.params[0] if column.type.params else None
    if longest_bytes is not None:
        return f'[^"]{_times(not empties, min(longest_bytes, most or longest_bytes))}'
    if most is None:
        return f'[^"]{_times(not empties)}'
    # Characters are counted one by one only where the bytes, the first and fast alternative, are too many.
    times = _times(not empties, most)
    return rf'(?:[^"]{times}(?=")|(?:[^"\x80-\xbf][\x80-\xbf]*+){times.rstrip("+")}(?="))'


def _times(least: int, most: int | None = None) -> str:
    """Return how often something may stand, as a pattern that does not go back."""
    return f"{{{least:d},{most or ''}}}+"


def key_share(count: int) -> int:
    """Return the bytes that each of a key's columns may have where the key is measured."""
    return LONGEST_KEY_BYTES // count
