"""Translates driver errors once: transient (try again) or terminal (a person must act).

Invariant: no translated error quotes what PostgreSQL said, because its messages and details contain row values. It
names the SQLSTATE, its condition, and the schema objects involved; the driver's error is not chained.
"""

from __future__ import annotations

import re
from contextlib import contextmanager
from typing import TYPE_CHECKING

import psycopg
from psycopg import errors

from pipeline.core.errors import (
    DataError,
    DiskFullError,
    NotMigratedError,
    ReplicationError,
    TerminalError,
    TransientError,
    UnreachableError,
)
from pipeline.core.model.mapping import BOOKKEEPING_SCHEMA

if TYPE_CHECKING:
    from collections.abc import Generator

# The errors that AWS's own driver wrapper retries, and serialization failures (PostgreSQL manual).
_TRANSIENT_CLASSES = {"08", "53", "57", "58"}
_TRANSIENT_STATES = {"40001", "40P01", "55P03", "25006", "25P03", "25P04"}
# Wrong values: the record is at fault, not the batch. 21000, a repeated key within a statement, would be our own fault.
_DATA_CLASSES = {"22", "23"}
_DATA_STATES = {"54000", "54001", "54011"}


def translate(error: psycopg.Error, doing: str, *, table: str | None = None) -> ReplicationError:
    """Return our error for a driver error that happened while `doing` ("applying 100 changes")."""
    state = error.sqlstate
    if state is None:
        return _translate_without_state(error, doing, table)
    what = f"{doing}: PostgreSQL says {describe(error, state)}"
    if state == "53100":
        return DiskFullError(what, table=table, hint=_HINTS[state])
    if state[:2] in _TRANSIENT_CLASSES or state in _TRANSIENT_STATES:
        return TransientError(what, table=table, hint="try again; it usually passes")
    if state == "23503" and error.diag.schema_name == BOOKKEEPING_SCHEMA:  # the table is not registered
        state = "42P01"
    if state in _NOT_MIGRATED:
        return NotMigratedError(what, table=table, hint=_NOT_MIGRATED[state])
    if state[:2] in _DATA_CLASSES or state in _DATA_STATES:
        return DataError(what, table=table)
    return TerminalError(what, table=table, hint=_HINTS.get(state))


def _translate_without_state(error: psycopg.Error, doing: str, table: str | None) -> ReplicationError:
    """Translate an error without SQLSTATE: the connection was lost. `connect_errors` explains sessions that never
    opened.
    """
    if isinstance(error, psycopg.OperationalError):
        return UnreachableError(
            f"{doing}: the database did not answer or closed the connection",
            table=table,
            hint="check that the cluster is up and reachable from here, then run it again",
        )
    if isinstance(error, psycopg.DataError):
        return DataError(f"{doing}: a value cannot be sent to PostgreSQL", table=table)
    return TerminalError(f"{doing}: the driver refused ({type(error).__name__})", table=table)


def refused_value(state: str, doing: str) -> DataError:
    """Return the error for a value that PostgreSQL would refuse with this SQLSTATE, as `translate` has it."""
    return DataError(f"{doing}: PostgreSQL says {_condition(state)} ({state})")


_NOT_MIGRATED = {
    "42P01": "run `dynaurora migrate` to create the tables of the mapping",
    "42703": "run `dynaurora migrate` to bring the tables up to date with the mapping",
    "3F000": "run `dynaurora migrate` to create the schemas",
}
_HINTS = {
    "53100": "the disk of the database server is full, or on Aurora the instance's disk for temporary files: free some"
    " or take a larger one, then run it again",
    "42501": "the database user lacks a privilege: `dynaurora roles` shows which role each verb runs under, and the SQL"
    " that gives the roles what they need",
}


_DENIED = re.compile(r"(table|view|schema|sequence) (\S+)$")


def describe(error: psycopg.Error, state: str) -> str:
    """Name an error's condition, its SQLSTATE and the schema objects involved."""
    objects = [
        f"{kind} {name}"
        for kind, name in (
            ("table", error.diag.table_name),
            ("column", error.diag.column_name),
            ("constraint", error.diag.constraint_name),
            ("type", error.diag.datatype_name),
        )
        if name
    ]
    # Raised by PostgreSQL itself, whose message names an object and nothing else; a trigger's may say anything.
    if state == "42501" and (error.diag.source_function or "").startswith("aclcheck_error"):
        objects += [" ".join(found) for found in _DENIED.findall(error.diag.message_primary or "")]
    return f"{_condition(state)} ({state}{', ' if objects else ''}{', '.join(objects)})"


def _condition(state: str) -> str:
    try:
        return errors.lookup(state).__name__
    except KeyError:
        return "an error"


@contextmanager
def translating(doing: str, *, table: str | None = None) -> Generator[None]:
    """Translate what the block raises; the driver's error, which may quote values, is not chained."""
    try:
        yield
    except psycopg.Error as error:
        raise translate(error, doing, table=table) from None
