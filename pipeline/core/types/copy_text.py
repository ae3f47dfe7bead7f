r"""Rows as COPY text: tab-separated fields, `\N` for NULL, backslash escapes (PostgreSQL manual, COPY).

Invariant: PostgreSQL reads back the row's texts, character by character.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pipeline.core.model.change import Row


def copy_text(rows: Iterable[Row]) -> bytes:
    """Return rows as one block of COPY text, in UTF-8."""
    lines = ["\t".join([r"\N" if value is None else escape(value) for value in row]) for row in rows]
    lines.append("")
    return "\n".join(lines).encode()


def field(value: str | None) -> str:
    """Return one field."""
    return r"\N" if value is None else escape(value)


def escape(value: str) -> str:
    """Return one text that is not NULL, escaped."""
    if "\\" in value:
        value = value.replace("\\", "\\\\")
    if "\n" in value:
        value = value.replace("\n", "\\n")
    if "\t" in value:
        value = value.replace("\t", "\\t")
    if "\r" in value:
        value = value.replace("\r", "\\r")
    return value
