"""Spans of time as people write them: `90s`, `15m`, `6h`, `2d`."""

from __future__ import annotations

import re
from datetime import timedelta

_SPAN = re.compile(r"(\d{1,5})([smhd])", re.ASCII)
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
HOW_TO_WRITE = "write a number and s, m, h or d, such as 90m or 6h"


def parse_span(text: str) -> timedelta | None:
    """Return the span, or None if the text is not a span."""
    found = _SPAN.fullmatch(text.strip())
    return timedelta(**{_UNITS[found[2]]: int(found[1])}) if found else None
