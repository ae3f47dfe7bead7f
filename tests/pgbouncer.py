"""A real PgBouncer in front of a test's PostgreSQL, if one is installed.

Invariant: it runs on loopback, as an ordinary user, and ends with the process that started it.
"""

from __future__ import annotations

import os
import shutil
import signal
from contextlib import closing
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psycopg
from psycopg.conninfo import conninfo_to_dict

from pipeline.local.ordinary_user import ordinary_identity
from pipeline.local.process import LOOPBACK, ServerProcess, free_port

NOT_INSTALLED = "not run: PgBouncer is not installed (Debian: apt install pgbouncer)"


def program() -> str | None:
    """The path of PgBouncer; Debian's folder for it is not on everybody's path."""
    return shutil.which("pgbouncer", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/usr/local/sbin")


class PgBouncer:
    """A pooler for every database of the server that `url` names, for the user and password in it."""

    def __init__(self, folder: Path, url: str, *, mode: str, pool_size: int = 5) -> None:
        self.folder = folder
        self._server = conninfo_to_dict(url)
        self._mode, self._pool_size = mode, pool_size
        self._port = free_port()
        self._process: ServerProcess | None = None

    @property
    def url(self) -> str:
        """The URL that a client uses instead of the server's."""
        of = self._server
        return f"postgresql://{of['user']}:{of['password']}@{LOOPBACK}:{self._port}/{of['dbname']}"

    @property
    def port(self) -> int:
        """Where it listens."""
        return self._port

    def __enter__(self) -> Self:
        """Start."""
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Stop."""
        self.stop()

    def start(self) -> None:
        """Start again on the same port."""
        self.folder.mkdir(exist_ok=True)
        identity = ordinary_identity(self.folder)
        users = self.folder / "users.txt"
        users.write_text(f'"{self._server["user"]}" "{self._server["password"]}"\n')
        settings = {
            "listen_addr": LOOPBACK,
            "listen_port": self._port,
            "unix_socket_dir": "",
            "auth_type": "scram-sha-256",
            "auth_file": users,
            "pool_mode": self._mode,
            "default_pool_size": self._pool_size,
            "server_login_retry": 1,
            "pidfile": self.folder / "pid",
        }
        configuration = self.folder / "pgbouncer.ini"
        configuration.write_text(
            f"[databases]\n* = host={LOOPBACK} port={self._server['port']}\n[pgbouncer]\n"
            + "".join(f"{name} = {value}\n" for name, value in settings.items())
        )
        if identity.uid is not None:
            for path in (self.folder, users, configuration):
                os.chown(path, identity.uid, identity.uid)
        self.folder.joinpath("pid").unlink(missing_ok=True)
        found = program()
        assert found, NOT_INSTALLED
        self._process = ServerProcess(
            "pgbouncer",
            [*identity.prefix, found, str(configuration)],
            log_path=self.folder / "log",
            env={"PATH": os.environ.get("PATH", os.defpath)},
            stop_signal=signal.SIGTERM,
            uid=identity.uid,
        )
        self._process.wait_ready(self._answers, timeout_seconds=20)

    def stop(self) -> None:
        """Stop; clients are cut off."""
        if self._process is not None:
            self._process.stop()
            self._process = None

    def kill(self) -> None:
        """Kill it, as a crash would."""
        os.kill(int((self.folder / "pid").read_text()), signal.SIGKILL)
        self.stop()

    def _answers(self) -> bool:
        try:
            psycopg.connect(self.url, connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True


def locks_left(database: str) -> list[tuple[Any, ...]]:
    """Who holds an advisory lock, read from the server directly."""
    with psycopg.connect(database) as connection:
        return connection.execute(
            "SELECT a.application_name FROM pg_locks AS l JOIN pg_stat_activity AS a USING (pid)"
            " WHERE l.locktype = 'advisory' AND a.datname = current_database()"
        ).fetchall()


def assert_untouched(pooler: PgBouncer, pool_size: int) -> None:
    """Look into each server connection of the pooler: nothing is prepared, and no setting of ours is left."""
    with closing(psycopg.connect(pooler.url, autocommit=True)) as watching:
        for _ in range(pool_size):
            assert watching.execute("SELECT count(*) FROM pg_prepared_statements").fetchone() == (0,)
            assert (
                watching.execute(
                    "SELECT name FROM pg_settings WHERE source = 'session' AND name IN"
                    " ('statement_timeout', 'lock_timeout', 'bytea_output', 'array_nulls', 'client_min_messages',"
                    " 'default_transaction_isolation', 'synchronous_commit')"
                ).fetchall()
                == []
            )
