"""How many lines each way of decoding has served.

A general way that serves more than a few is a load that takes several times as long as it could: its report says so.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Ways:
    """Lines of a full export, times their targets, by the way that decoded them (decision record 8)."""

    unparsed: int = 0
    """Read without parsing them."""
    parsed: int = 0
    """Parsed, and converted by the function written for the target."""
    general: int = 0
    """Converted value by value."""

    def __add__(self, other: Ways) -> Ways:
        return Ways(self.unparsed + other.unparsed, self.parsed + other.parsed, self.general + other.general)

    def __sub__(self, other: Ways) -> Ways:
        return Ways(self.unparsed - other.unparsed, self.parsed - other.parsed, self.general - other.general)

    def __str__(self) -> str:
        """For people."""
        return f"{self.unparsed} lines read without parsing, {self.parsed} parsed, {self.general} the general way"


NO_LINES = Ways()
