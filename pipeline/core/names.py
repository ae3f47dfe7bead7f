"""Names derived from other names, within the length that PostgreSQL keeps.

Invariant: shortening never makes two different names equal.
"""

from __future__ import annotations

from hashlib import sha256

# PostgreSQL keeps NAMEDATALEN - 1 bytes of a name and silently cuts the rest.
LONGEST_NAME_BYTES = 63
_DIGEST_CHARACTERS = 8


def fitting(name: str) -> str:
    """Return the name, or, if it is too long, its beginning and a digest of the whole."""
    return name if len(name.encode()) <= LONGEST_NAME_BYTES else with_digest(name, name)


def with_digest(name: str, of: str) -> str:
    """Return the name, cut to fit between two characters, followed by a digest of `of`."""
    digest = sha256(of.encode()).hexdigest()[:_DIGEST_CHARACTERS]
    start = name.encode()[: LONGEST_NAME_BYTES - _DIGEST_CHARACTERS - 1].decode(errors="ignore")
    return f"{start}_{digest}"
