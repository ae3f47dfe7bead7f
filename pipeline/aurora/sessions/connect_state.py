"""Finds the SQLSTATE with which a server refuses a session, whatever the language of its messages.

libpq does not report the SQLSTATE of such a refusal, but its protocol trace shows it (libpq 18). So after a refusal
that we could not read, we log in once more with the trace on.

Invariant: the trace, which contains the login, stays in memory and is gone when this returns.
"""

from __future__ import annotations

import os
import re
import select
import time
from typing import TYPE_CHECKING

import psycopg
from psycopg import pq

if TYPE_CHECKING:
    from psycopg.pq.abc import PGconn

SECONDS = 5.0
_STATE = re.compile(rb'ErrorResponse\t.*? C "([0-9A-Z]{5})"')


def refused_with(conninfo: str) -> str | None:
    """Log in once more and return the SQLSTATE of the refusal; None if there is none now, or it is unavailable."""
    if not hasattr(os, "memfd_create"):  # psycopg traces only on Linux
        return None
    trace = os.memfd_create("trace")
    try:
        connection = pq.PGconn.connect_start(conninfo.encode())
        try:
            connection.trace(trace)
            _poll(connection, time.monotonic() + SECONDS)
            connection.untrace()
        finally:
            connection.finish()
        os.lseek(trace, 0, os.SEEK_SET)
        with open(trace, "rb", closefd=False) as written:
            states = _STATE.findall(written.read())
    except psycopg.Error:
        return None
    finally:
        os.close(trace)
    return states[-1].decode() if states else None


def _poll(connection: PGconn, deadline: float) -> None:
    while connection.status != pq.ConnStatus.BAD:
        step = connection.connect_poll()
        if step not in (pq.PollingStatus.READING, pq.PollingStatus.WRITING):
            return
        read, write = ([connection.socket], []) if step == pq.PollingStatus.READING else ([], [connection.socket])
        if not any(select.select(read, write, [], max(0.0, deadline - time.monotonic()))):
            return
