"""The protection in force for a mapping: which attributes are protected, how, and the fingerprint of the privacy key.

Invariant: the database decides, not a mapping file or a setting, because a replicator that is still deployed has an old
file or an old key. Every statement that stores values fails unless its mapping has this protection (`sources.of_record`
has the condition), and jobs call `require` before they start and in the transaction that stores a file. Only `migrate`
changes it, and waits for the writers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from psycopg import sql

from pipeline.aurora.errors import translating
from pipeline.core.errors import ConfigurationError
from pipeline.core.model.history import OWN_PREFIX, SUFFIX
from pipeline.core.model.mapping import STORAGE_SCHEMA
from pipeline.core.model.protection import entries
from pipeline.core.names import fitting

if TYPE_CHECKING:
    from pipeline.aurora.sessions.connection import Connection
    from pipeline.core.model.mapping import TableMapping

NOT_SET = (
    "it hashes attributes, and the privacy key is not set",
    "set PRIVACY_KEY_SECRET_ID to a secret of at least 32 characters, or PRIVACY_KEY for local use",
)
KEY_DIFFERS = "the privacy key is not the one that the stored values were hashed with"


def in_force(name: sql.Composable, protection: sql.Composable) -> sql.Composed:
    """SQL condition: this protection is in force for a mapping, or the mapping is not registered.

    It is true, or it makes the statement and its transaction fail (as `sources.of_record`).
    """
    return sql.SQL(
        "COALESCE((SELECT CASE WHEN COALESCE(r.protection, '') = {protection} THEN true"
        " ELSE current_setting('dynaurora: what ' || r.name || ' protects is another')::boolean END"
        " FROM replication.tables AS r WHERE r.name = {name}), true)"
    ).format(name=name, protection=protection)


def read(connection: Connection, name: str) -> str | None:
    """Return the record of the protection in force; None if the mapping is not registered."""
    with translating("reading what is protected", table=name):
        row = connection.execute(
            "SELECT COALESCE(protection, '') FROM replication.tables WHERE name = %s", [name]
        ).fetchone()
    return row[0] if row else None


def require(connection: Connection, mapping: TableMapping, *, doing: str) -> None:
    """Raise ConfigurationError unless the mapping, key included, protects what the database says.

    A mapping that is not registered passes, because any write under its name fails.
    """
    stored = read(connection, mapping.name)
    if stored is None or stored == mapping.protection:
        return
    what, way_out = difference(mapping, stored)
    raise ConfigurationError(f"{doing}: {what}, so nothing was stored", table=mapping.name, hint=way_out)


def former_tables(connection: Connection, mapping: TableMapping) -> list[str]:
    """Return the tables, if there, of targets that a registered mapping has no more, and of their histories."""
    now = {table.storage_name for table in mapping.tables}
    with translating("reading the names of tables", table=mapping.name):
        row = connection.execute(  # the column may not be there yet
            "SELECT COALESCE(to_jsonb(t) -> 'storage_tables', '[]') FROM replication.tables AS t WHERE name = %s",
            [mapping.name],
        ).fetchone()
        names: list[str] = row[0] if row else []
        former = set(names) - now
        histories = {fitting(name) for table in former for name in (f"{table}{SUFFIX}", f"{OWN_PREFIX}base_{table}")}
        found = connection.execute(
            "SELECT format('%%I.%%I', schemaname, tablename) FROM pg_tables"
            " WHERE schemaname = %s AND tablename = ANY (%s) ORDER BY 1",
            [STORAGE_SCHEMA, list((former | histories) - now)],
        ).fetchall()
    return [name for (name,) in found]


def difference(mapping: TableMapping, stored: str) -> tuple[str, str]:
    """Return how the mapping's protection differs from the stored record, and the next step."""
    if mapping.hashes and mapping.privacy_key is None:
        return NOT_SET
    if key_differs(mapping, stored):
        return KEY_DIFFERS, (
            "set PRIVACY_KEY_SECRET_ID (or PRIVACY_KEY) to that key; if it was replaced on purpose, run"
            f" `dynaurora migrate {mapping.name} --new-privacy-key`, and load the table again"
        )
    return "the mapping file protects other attributes than the database says", (
        f"if this mapping file is the newest, run `dynaurora migrate {mapping.name}`; otherwise deploy the newest one"
        " here"
    )


def key_differs(mapping: TableMapping, stored: str) -> bool:
    """Whether values were hashed, and under another key than the mapping's."""
    mine, theirs = _keys(mapping.protection), _keys(stored)
    return bool(mine and theirs and mine != theirs)


def _keys(record: str) -> set[str]:
    return {how for of in entries(record).values() for _, how in of if how.startswith("hash")}
