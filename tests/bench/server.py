"""The PostgreSQL server of the benchmark: one server, a database for each contest."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import psycopg
from psycopg import sql

from pipeline.local.postgres import PostgresServer

# Settings like a small instance's, with which no checkpoint falls into a measurement: one is made before each.
# A commit waits for the disk, as it does by default, unless a part says otherwise.
SETTINGS = {
    "shared_buffers": "2GB",
    "max_wal_size": "16GB",
    "checkpoint_timeout": "1h",
    "maintenance_work_mem": "256MB",
}


class BenchServer:
    """The server, and the operations that contests need."""

    def __init__(self, postgres: PostgresServer) -> None:
        self.postgres = postgres

    @property
    def pid(self) -> int:
        """The postmaster's process id."""
        return self.postgres.pid

    @property
    def psql(self) -> str:
        """The path of psql."""
        return self.postgres.psql_path

    def url_of(self, database: str) -> str:
        """URL of a database."""
        return self.postgres.url_of(database)

    def fresh(self, database: str, *, like: str = "template1") -> str:
        """Make a database in place of the one of this name, empty or `like` another; returns its URL."""
        self.drop(database)
        with psycopg.connect(self.postgres.url, autocommit=True) as connection:
            connection.execute(
                sql.SQL("CREATE DATABASE {} TEMPLATE {} STRATEGY {}").format(
                    sql.Identifier(database),
                    sql.Identifier(like),
                    sql.SQL("WAL_LOG" if like == "template1" else "FILE_COPY"),
                )
            )
        return self.url_of(database)

    def drop(self, database: str) -> None:
        """Drop a database, if it is there."""
        with psycopg.connect(self.postgres.url, autocommit=True) as connection:
            connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(database)))

    def settle(self) -> None:
        """Write out everything that waits to be written, so that the next contestant does not pay for it."""
        with psycopg.connect(self.postgres.url, autocommit=True) as connection:
            connection.execute("CHECKPOINT")

    @contextmanager
    def synced(self, *, on: bool) -> Generator[None]:
        """Set whether commits wait for the disk, inside the block."""
        before = self._set_fsync("on" if on else "off")
        try:
            yield
        finally:
            self._set_fsync(before)

    def _set_fsync(self, value: str) -> str:
        with psycopg.connect(self.postgres.url, autocommit=True) as connection:
            row = connection.execute("SHOW fsync").fetchone()
            connection.execute(sql.SQL("ALTER SYSTEM SET fsync = {}").format(sql.Literal(value)))
            connection.execute("SELECT pg_reload_conf()")
        time.sleep(0.2)  # every process reads its settings again when it next looks
        return str(row[0]) if row else "on"

    def version(self) -> str:
        """Version of the server."""
        with psycopg.connect(self.postgres.url) as connection:
            row = connection.execute("SHOW server_version").fetchone()
        return str(row[0]) if row else "unknown"


@contextmanager
def running() -> Generator[BenchServer]:
    """Start a server of our own in a temporary folder."""
    with tempfile.TemporaryDirectory(prefix="dynaurora-bench-") as folder:
        Path(folder).chmod(0o711)  # PostgreSQL may have to run as another user
        with PostgresServer(Path(folder) / "postgres", settings=SETTINGS) as postgres:
            yield BenchServer(postgres)
