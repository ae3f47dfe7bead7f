r"""Rows as COPY text: tab-separated fields, `\N` for NULL, backslash escapes (PostgreSQL manual, COPY).

Invariant: PostgreSQL reads back the row's texts, character by character.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.core.model.change import Row


# Stands for NULL until a block is complete; no PostgreSQL text can contain it.
_NULL = "\x00"


def copy_text(rows: Sequence[Row]) -> bytes:
    """Return rows of one width as one block of COPY text, in UTF-8."""
    lines: list[str] = []
    nulls = 0
    for row in rows:
        count = row.count(None)
        nulls += count
        lines.append("\t".join([_NULL if value is None else value for value in row] if count else row))  # type: ignore[arg-type]
    lines.append("")
    text = "\n".join(lines)
    tabs = (len(rows[0]) - 1) * len(rows) if rows else 0
    # Usually nothing in a block needs escaping; then no field is checked individually.
    found = (text.count("\t"), text.count("\n"), text.count(_NULL))
    if "\\" in text or "\r" in text or found != (tabs, len(rows), nulls):
        return "".join(["\t".join(map(field, row)) + "\n" for row in rows]).encode()
    return text.replace(_NULL, r"\N").encode()


def field(value: str | None) -> str:
    """Return one field."""
    return r"\N" if value is None else escape(value)


def escape(value: str) -> str:
    """Escape one text."""
    if "\\" in value:
        value = value.replace("\\", "\\\\")
    if "\n" in value:
        value = value.replace("\n", "\\n")
    if "\t" in value:
        value = value.replace("\t", "\\t")
    if "\r" in value:
        value = value.replace("\r", "\\r")
    return value
