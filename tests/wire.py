"""The cost of a connection in units that do not depend on the machine, from libpq's own trace of its messages."""

from __future__ import annotations

import re
import tempfile
from collections import Counter
from typing import BinaryIO, Self

from psycopg.pq import Trace

from pipeline.aurora.sessions.connection import Connection

# The client waits after Query, Sync and CopyDone; CopyData is not answered.
_SENT = re.compile(r"^F\t(\d+)\t(\w+)", re.MULTILINE)
_TURN = re.compile(r"(?:^F\t.*\n)+(?:^B\t.*\n)+", re.MULTILINE)


class Wire:
    """Counts the messages that a connection sends, and `turns`: how often it sent, and then received."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._file: BinaryIO = tempfile.TemporaryFile()  # noqa: SIM115 - closed below

    def __enter__(self) -> Self:
        self._connection.pgconn.trace(self._file.fileno())
        self._connection.pgconn.set_trace_flags(Trace.SUPPRESS_TIMESTAMPS)
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.pgconn.untrace()
        self._file.seek(0)
        told = self._file.read().decode("utf-8", "replace")
        sent = _SENT.findall(told)
        self.turns = len(_TURN.findall(told))
        self.messages = Counter(kind for _, kind in sent)
        self.sent_bytes = sum(int(length) for length, _ in sent)
        self.copied_bytes = sum(int(length) - 4 for length, kind in sent if kind == "CopyData")
        self._file.close()

    @property
    def round_trips(self) -> int:
        """How often the client can wait, if it waits for each statement."""
        return self.messages["Query"] + self.messages["Sync"] + self.messages["CopyDone"]
