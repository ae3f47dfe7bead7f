"""Protects lines of a full export without parsing them, where that is certain to be right.

In a line without a backslash, every quote begins or ends a text. So `"email":` is the name of a member, and without
maps and lists in the line it is the attribute of that name. Its value must be of type S or N, or of any scalar type if
it is dropped, and the name must be nowhere else; otherwise the block is returned unread.

Invariant: the lines equal those of the general path (`protected_lines.protected_full`), but for the notation of JSON.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from pipeline.core.model.protection import Protect

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from pipeline.core.decode.protect import Protector

_TEXT = rb'"[^"\\\x00-\x1f]*"'
_SCALAR = rb'\{"(?:[SNB]":' + _TEXT + rb'|BOOL":(?:true|false)|NULL":true)\}'
# What a block may not have: escapes, maps and lists.
_UNSURE = (b"\\", b'{"M":', b'{"L":')


class ProtectedText:
    """Protects blocks for one mapping. Build it once."""

    def __init__(self, protector: Protector) -> None:
        rules = protector.of_attributes or {}
        self._replace = {name.encode(): replace for name, (how, replace) in rules.items() if how is not Protect.DROP}
        dropped = [name.encode() for name, (how, _) in rules.items() if how is Protect.DROP]
        self.usable = bool(rules) and all(name.isprintable() and not set(name) & set('"\\') for name in rules)
        self._quoted = [b'"%s"' % name for name in self._replace]
        self._quoted_dropped = [b'"%s"' % name for name in dropped]
        replaced = _any_of(self._replace)
        self._replaced = re.compile(
            rb'"(' + replaced + rb')":\{"(?:(S|N)":"([^"\\\x00-\x1f]*)"|NULL":true)\}' if self._replace else rb"(?!)"
        )
        member = rb'"(?:' + _any_of(dropped) + rb')":' + _SCALAR
        self._dropped = re.compile(rb"," + member + rb"|(?<=\{)" + member + rb",?" if dropped else rb"(?!)")

    def read(self, block: bytes) -> bytes | None:
        """Return a block of whole lines, protected; None if the general path must do it."""
        if not self.usable or any(unsure in block for unsure in _UNSURE):
            return None
        try:
            text, replaced = self._replaced.subn(self._value, block)
        except _UnsureError:
            return None
        # Hashes and masks contain no names: counting before or after is the same for the others.
        if replaced != _count(block, self._quoted):
            return None
        text, dropped = self._dropped.subn(b"", text)
        return text if dropped == _count(block, self._quoted_dropped) else None

    def _value(self, match: re.Match[bytes]) -> bytes:
        name, tag, value = match.groups()
        if tag is None:
            return match[0]
        replace: Callable[[Any], Any] = self._replace[name]
        try:
            found = replace({tag.decode(): value.decode()})
        except UnicodeDecodeError:
            raise _UnsureError from None
        if not found:
            raise _UnsureError
        return b'"%s":{"S":"%s"}' % (name, found["S"].encode())


class _UnsureError(Exception):
    """A value that only the general path can judge."""


def _any_of(names: Iterable[bytes]) -> bytes:
    return b"|".join(re.escape(name) for name in names)


def _count(block: bytes, quoted: Iterable[bytes]) -> int:
    return sum(block.count(name) for name in quoted)
