"""Errors of two kinds: try again, or a person must act.

Invariant: no error contains an attribute value, a secret or a connection string. A key is named by its digest, so that
only somebody who may read the row can match it with a log line.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


class ReplicationError(Exception):
    """Base of every error that Dynaurora raises on purpose.

    The text says what was being done, to what, and the next step. `table` is the mapping's name; `hint` is the next
    step on its own, for front ends that show it separately.
    """

    def __init__(
        self,
        message: str,
        *,
        table: str | None = None,
        key_digest: str | None = None,
        sequence_number: str | None = None,
        hint: str | None = None,
    ) -> None:
        self.message = message
        self.table = table
        self.key_digest = key_digest
        self.sequence_number = sequence_number
        self.hint = hint
        super().__init__(message)

    def __str__(self) -> str:
        where = [
            f"{label} {value}"
            for label, value in (
                ("table", self.table),
                ("key", self.key_digest),
                ("sequence number", self.sequence_number),
            )
            if value
        ]
        text = f"{self.message} ({', '.join(where)})" if where else self.message
        return f"{text}; {self.hint}" if self.hint else text


class TransientError(ReplicationError):
    """The same call may succeed later: a lost connection, a failover, a deadlock, a throttled request."""


class TerminalError(ReplicationError):
    """The same call will fail again until a person changes something."""


class UnusableSnapshotError(TerminalError):
    """A snapshot that no later run can use either; take another one."""


class ConfigurationError(TerminalError):
    """A mapping file, setting or command line that must be corrected."""


class NotMigratedError(TerminalError):
    """The database lacks what `dynaurora migrate` makes for this mapping."""


class UnreachableError(TransientError):
    """A dependency did not answer at all (the command line's exit code 3)."""


class NotNowError(UnreachableError):
    """The server answered but accepts no session now: it is resuming, starting, failing over, or full."""


class DiskFullError(TransientError):
    """The database server has no disk left."""


class LoginRefusedError(TransientError):
    """The server refused the password, and only that: the secret may have been rotated."""


class DataError(TerminalError):
    """PostgreSQL refused a value that decoding accepted; the caller halves the batch until the record is alone."""


class ConversionError(TerminalError):
    """An attribute value that its column cannot hold. `column` and `reason` never quote the value."""

    def __init__(self, column: str, reason: str) -> None:
        self.column = column
        self.reason = reason
        super().__init__(f'column "{column}": {reason}')


def key_digest(key: Iterable[str | None]) -> str:
    """Twelve hex digits that identify a key without revealing it (SHA-256 over the key's text parts)."""
    text = "\x1f".join("\x00" if part is None else part for part in key)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:12]
