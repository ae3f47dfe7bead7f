"""Finds who follows this database (logical subscribers and physical replicas), and what a change here does to them.

Invariant: it only reads, and only what a role without special rights may read. It never claims that something which
such a role cannot see is absent (docs/replicas.md says what stays hidden).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.aurora.errors import translating
from pipeline.core.model.mapping import STORAGE_SCHEMA

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from pipeline.aurora.sessions.connection import Connection
    from pipeline.core.model.mapping import TableMapping

_SCHEMAS_ARE_PUBLISHED_SINCE = 150000


@dataclass(frozen=True, slots=True)
class Caution:
    """What a follower of this database needs, before or after a change; `steps` are in order."""

    what: str
    steps: tuple[str, ...]


def cautions(connection: Connection, mappings: Iterable[TableMapping], altered: Collection[str]) -> tuple[Caution, ...]:
    """Return the cautions for these mappings; `altered` are the storage tables that a plan creates or alters."""
    storage = [target.storage_name for mapping in mappings for target in mapping.tables]
    with translating("looking for followers of the database"):
        names = {"schema": STORAGE_SCHEMA, "storage": storage}
        published = dict(connection.execute(_PUBLISHED, names).fetchall())
        whole = [name for (name,) in connection.execute(_OF_ALL_TABLES)]
        if connection.info.server_version >= _SCHEMAS_ARE_PUBLISHED_SINCE:
            whole += [name for (name,) in connection.execute(_OF_SCHEMA, names)]
        slots = connection.execute(_SLOTS).fetchall()
        subscriptions = [name for (name,) in connection.execute(_SUBSCRIPTIONS)]
        replicas = _replicas(connection)
    if whole:  # tables that do not exist yet will be published too
        published |= {name: ", ".join(whole) for name in altered if name not in published}
    found = [
        *_altered(published, altered),
        *_published(published),
        *_slots(slots, published),
        *_subscribes(subscriptions),
        *_replicated(replicas),
    ]
    return tuple(found)


def _altered(published: dict[str, str], altered: Collection[str]) -> list[Caution]:
    touched = sorted(set(published) & set(altered))
    if not touched:
        return []
    return [
        Caution(
            f"{_tables(touched)} published ({_publications(published, touched)}). Logical replication carries rows but"
            " no DDL: a subscriber stops at the first row with a column, or for a table, that it does not have",
            (
                f"on each subscriber, run the statements of this plan that create or alter tables of {STORAGE_SCHEMA}",
                "here, run `dynaurora migrate`",
                "if a table is new: on each subscriber, ALTER SUBSCRIPTION … REFRESH PUBLICATION",
                "a blue/green deployment has subscribers that must not be altered: switch over or delete it first",
            ),
        )
    ]


def _published(published: dict[str, str]) -> list[Caution]:
    if not published:
        return []
    return [
        Caution(
            f"{_tables(published)} published ({_publications(published, published)}), so a load merges row by row:"
            " subscribers would miss the rows of a table that is built aside and swapped in",
            ("for a fast first load, publish the tables after it, and let the subscribers copy them",),
        )
    ]


def _slots(slots: list[tuple[str, bool]], published: dict[str, str]) -> list[Caution]:
    idle = [name for name, active in slots if not active]
    found: list[Caution] = []
    if slots and not published:
        found.append(
            Caution(
                f"logical replication slots read this database ({', '.join(name for name, _ in slots)}), without a"
                " publication of these tables: a tool that reads them in another way must know new columns too",
                ("find out what reads the slot before `dynaurora migrate`",),
            )
        )
    if idle:
        found.append(
            Caution(
                f"nothing reads the logical replication slots {', '.join(idle)}: the server keeps everything that is"
                " written until they are read, and a load writes a lot",
                ("start the subscriber again, or drop the slot (pg_drop_replication_slot), before a load",),
            )
        )
    return found


def _subscribes(subscriptions: list[str]) -> list[Caution]:
    if not subscriptions:
        return []
    return [
        Caution(
            f"this database is a subscriber itself ({', '.join(subscriptions)}): what is also written here collides"
            " with what arrives; the green side of a blue/green deployment looks like this",
            ("let Dynaurora work only on the publishing side, and switch over before you move it here",),
        )
    ]


def _replicated(replicas: int) -> list[Caution]:
    if not replicas:
        return []
    return [
        Caution(
            f"{replicas} replica{'s follow' if replicas > 1 else ' follows'} this database: there, a statement is"
            " cancelled (40001) if it reads a table when a load swaps it or `migrate` alters it, or if it still reads"
            " rows that `purge` or vacuum has removed",
            (
                "run loads, migrations and purges while no long report runs on a replica, and let reports retry",
                "hot_standby_feedback = on keeps rows that a replica still reads; it does not help against a swap",
                "max_standby_streaming_delay says how long a replica waits for its readers before it cancels them",
            ),
        )
    ]


def _tables(names: Collection[str]) -> str:
    listed = ", ".join(f"{STORAGE_SCHEMA}.{name}" for name in sorted(names))
    return f"{listed} {'is' if len(names) == 1 else 'are'}"


def _publications(published: dict[str, str], names: Collection[str]) -> str:
    return ", ".join(sorted({published[name] for name in names}))


def _replicas(connection: Connection) -> int:
    """Count physical replicas: those that stream, and an Aurora cluster's readers, which share its storage instead."""
    (streaming, aurora) = connection.execute(_STREAMING).fetchone() or (0, False)
    row = connection.execute(_READERS).fetchone() if aurora else None
    return streaming + (row[0] if row else 0)


_PUBLISHED = """
SELECT tablename, string_agg(DISTINCT pubname, ', ') FROM pg_publication_tables
 WHERE schemaname = %(schema)s AND tablename = ANY (%(storage)s) GROUP BY tablename
"""

# Publications that include tables which do not exist yet.
_OF_ALL_TABLES = "SELECT pubname FROM pg_publication WHERE puballtables ORDER BY 1"

_OF_SCHEMA = """
SELECT pubname FROM pg_publication AS p JOIN pg_publication_namespace ON pnpubid = p.oid
  JOIN pg_namespace n ON n.oid = pnnspid WHERE nspname = %(schema)s ORDER BY 1
"""

_SLOTS = """
SELECT slot_name, active FROM pg_replication_slots
 WHERE slot_type = 'logical' AND database = current_database() AND NOT temporary ORDER BY 1
"""

_SUBSCRIPTIONS = """
SELECT subname FROM pg_subscription JOIN pg_database d ON d.oid = subdbid WHERE datname = current_database() ORDER BY 1
"""

# A role without pg_read_all_stats sees that there are processes, but not that one is a backup's.
_STREAMING = """
SELECT count(*)::int, to_regprocedure('aurora_replica_status()') IS NOT NULL
  FROM pg_stat_replication AS r LEFT JOIN pg_replication_slots AS s ON s.active_pid = r.pid
 WHERE s.slot_type IS DISTINCT FROM 'logical' AND r.state IS DISTINCT FROM 'backup'
"""

_READERS = "SELECT count(*)::int FROM aurora_replica_status() WHERE session_id <> 'MASTER_SESSION_ID'"
