"""Counts the lines that each decoding path handled.

If more than a few lines take the general path, a load takes several times as long as it could; its report says so.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Ways:
    """Lines of a full export, times their targets, by the path that decoded them (decision record 8)."""

    unparsed: int = 0
    """Read without parsing."""
    parsed: int = 0
    """Parsed, and converted by the function generated for the target."""
    general: int = 0
    """Converted value by value."""

    def __add__(self, other: Ways) -> Ways:
        return Ways(self.unparsed + other.unparsed, self.parsed + other.parsed, self.general + other.general)

    def __sub__(self, other: Ways) -> Ways:
        return Ways(self.unparsed - other.unparsed, self.parsed - other.parsed, self.general - other.general)

    def __str__(self) -> str:
        """The counts in words."""
        return f"{self.unparsed} lines read without parsing, {self.parsed} parsed, {self.general} on the general path"


NO_LINES = Ways()
