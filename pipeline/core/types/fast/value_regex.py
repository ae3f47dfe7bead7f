r"""Regular expressions for attribute values as they appear in an export's lines.

They match marked text (`pipeline.core.types.fast.marked_text`), in which no text contains a quote, so a match cannot
run past the end of a value.
"""

from __future__ import annotations

import sys

TEXT = '[^"]*+'
# DynamoDB's numbers have at most 126 digits before the point and 167 after it; the converter handles longer ones. A
# sequence of character classes without a group is three times as fast. The lookbehind excludes `1.`.
NUMBER = r"-?+(?!0\d)\d{1,200}+\.?+\d{0,200}+(?<=\d)"
# numeric, double precision and jsonb accept an exponent, and read the same value as from plain notation.
EXPONENT_NUMBER = rf'{NUMBER}(?:(?=")|[eE][+-]?+\d{{1,3}}+)'
NULL = r'\{"NULL":true\}'
# Possessive repeats are faster by half; before 3.11.5 Python handled those of groups wrongly (its issue 106052).
REPEAT = "*+" if sys.version_info >= (3, 11, 5) else "*"
# Maps and lists nested up to this depth are read without parsing.
DEPTH = 8


def any_value(depth: int = DEPTH) -> str:
    """Return the expression, without groups, for an attribute value of any type, `depth` lists or maps deep.

    Lists and maps share one repeat; otherwise the expression would double with every level. So it does not notice a
    name in a list, or mismatched brackets: the result is then not JSON either, PostgreSQL refuses it, and the general
    path names the line. Numbers are checked when they are written, which is cheaper.
    """
    return rf'\{{"{_tagged_value(depth)}'


def _tagged_value(depth: int) -> str:
    """Return the expression for a value, starting with its tag."""
    texts, numbers = elements(TEXT), elements(EXPONENT_NUMBER)
    kinds = rf'S":"{TEXT}"|N":"{TEXT}"|BOOL":(?:true|false)|NULL":true|B":"{TEXT}"|[SB]S":\[{texts}\]|NS":\[{numbers}\]'
    if depth:
        # Alternatives that differ in their first character cost next to nothing.
        member = rf'(?:,|(?<=[\[{{]))(?:"{TEXT}":\{{|\{{)"{_tagged_value(depth - 1)}'
        kinds += rf'|(?:L":\[(?=[{{\]])|M":\{{(?=["}}]))(?:{member}){REPEAT}[\]}}]'
    return rf"(?:{kinds})\}}"


def elements(element: str) -> str:
    """Return the expression for a set's elements; `element` matches the text between one element's quotes."""
    return rf'"{element}"(?:,"{element}"){REPEAT}'


def repeated(least: int, most: int | None = None) -> str:
    """Return a possessive repeat."""
    return f"{{{least:d},{most or ''}}}+"
