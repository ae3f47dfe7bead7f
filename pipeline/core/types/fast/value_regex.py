r"""Attribute values as they stand in a line of an export, as regular expressions: what fast decoding looks for.

They are for marked text (`pipeline.core.types.fast.marked_text`), in which no text has a quote: so a value cannot
reach past its end.
"""

from __future__ import annotations

import sys

TEXT = '[^"]*+'
# DynamoDB's numbers have at most 126 digits before the point and 167 after it; longer ones are for the converter.
# Character classes one after another, without a group: three times as fast. The look behind is against `1.`.
NUMBER = r"-?+(?!0\d)\d{1,200}+\.?+\d{0,200}+(?<=\d)"
# numeric, double precision and jsonb read an exponent, and make of it what the plain notation is.
EXPONENT_NUMBER = rf'{NUMBER}(?:(?=")|[eE][+-]?+\d{{1,3}}+)'
NULL = r'\{"NULL":true\}'
# Repeats that do not backtrack are faster by half; before 3.11.5 Python got those of groups wrong (its issue 106052).
REPEAT = "*+" if sys.version_info >= (3, 11, 5) else "*"
# Maps and lists within each other that are still read unparsed.
DEPTH = 8


def any_value(depth: int = DEPTH) -> str:
    """Return the expression, without groups, for an attribute value of any type, `depth` lists or maps deep.

    Lists and maps share one repeat, as the expression would else double with every level. That a name is in a list, or
    brackets close crosswise, is therefore not seen here: such a value is no JSON afterwards either, which PostgreSQL
    refuses, and the general way then names the line. Numbers are judged where they are written: it is cheaper there.
    """
    return rf'\{{"{_tagged_value(depth)}'


def _tagged_value(depth: int) -> str:
    """Return the expression for a value from its tag on."""
    texts, numbers = elements(TEXT), elements(EXPONENT_NUMBER)
    kinds = rf'S":"{TEXT}"|N":"{TEXT}"|BOOL":(?:true|false)|NULL":true|B":"{TEXT}"|[SB]S":\[{texts}\]|NS":\[{numbers}\]'
    if depth:
        # Alternatives that start with a character of their own are told apart by it, for next to nothing.
        member = rf'(?:,|(?<=[\[{{]))(?:"{TEXT}":\{{|\{{)"{_tagged_value(depth - 1)}'
        kinds += rf'|(?:L":\[(?=[{{\]])|M":\{{(?=["}}]))(?:{member}){REPEAT}[\]}}]'
    return rf"(?:{kinds})\}}"


def elements(element: str) -> str:
    """Return the expression for a set's elements, from that for what stands between the quotes of one."""
    return rf'"{element}"(?:,"{element}"){REPEAT}'


def repeated(least: int, most: int | None = None) -> str:
    """Return how often something may stand, without going back."""
    return f"{{{least:d},{most or ''}}}+"
