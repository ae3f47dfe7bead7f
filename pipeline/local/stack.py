"""The whole local stack: PostgreSQL for Aurora, ministack and the export service for AWS, started and stopped together.

Invariant: one stack in a run directory, ensured by a lock that the operating system releases when its holder dies. An
interrupted start leaves nothing running.
"""

import fcntl
import os
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from pipeline.local.errors import LocalStackError
from pipeline.local.export_server import ExportServer
from pipeline.local.interrupts import interrupts_deferred
from pipeline.local.ministack import REGION, Ministack
from pipeline.local.postgres import PostgresServer
from pipeline.local.process import free_port

Progress = Callable[[str], None]


def silent(_message: str) -> None:
    """No progress wanted."""


class LocalStack:
    """Everything that the product needs from outside, on loopback. Use as a context manager."""

    def __init__(
        self,
        run_dir: Path,
        *,
        postgres_port: int | None = None,
        aws_port: int | None = None,
        durable: bool = True,
        fresh: bool = False,
        export_delay_seconds: float = 0.0,
        minimum_window_seconds: float = 0.0,
        recovery_reach_seconds: float = 0.0,
        environment: Mapping[str, str] | None = None,
        progress: Progress = silent,
    ) -> None:
        """Ports that are left out are free ones. `progress` is called, from several threads, with what started.

        `minimum_window_seconds`: the shortest incremental export. AWS requires 900, which a table created a minute ago
        cannot offer, so the local default is none. `recovery_reach_seconds`: how far point-in-time recovery reaches
        back before it was enabled. `fresh`: remove what an earlier stack left in the run directory (the emulator's
        state is in memory, so only the database's would outlive it). `environment`: more variables for each server.
        """
        self.run_dir = run_dir.absolute()
        self._progress = progress
        self._fresh = fresh
        self._lock: IO[str] | None = None
        ministack_port = free_port()
        self.postgres = PostgresServer(
            self.run_dir / "postgres", postgres_port, durable=durable, environment=environment
        )
        self.exports = ExportServer(
            self.run_dir,
            ministack_port,
            aws_port,
            delay_seconds=export_delay_seconds,
            minimum_window_seconds=minimum_window_seconds,
            recovery_reach_seconds=recovery_reach_seconds,
            environment=environment,
        )
        self.ministack = Ministack(self.run_dir, ministack_port, endpoint_url=self.exports.url, environment=environment)

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
    def endpoint_url(self) -> str:
        """The AWS endpoint: the export service, with ministack behind it."""
        return self.exports.url

    def environment(self) -> dict[str, str]:
        """The variables with which product code and the AWS CLI reach this stack and nothing else."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint_url,
            "AWS_REGION": REGION,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "DATABASE_URL": self.postgres.url,
        }

    def start(self) -> None:
        """Start all servers at once and return when all answer; a failed start leaves none running."""
        self._take_lock()
        try:
            if self._fresh:
                self._forget()
            self._start_all()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop in order: ministack first, whose functions use the others. Safe to call again."""
        try:
            self.ministack.stop()
            self.exports.stop()
            self.postgres.stop()
        finally:
            if self._lock is not None:
                self._lock.close()
                self._lock = None

    def _forget(self) -> None:
        for path in self.run_dir.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name != "lock":
                path.unlink()

    def _start_all(self) -> None:
        starts = (self._start_postgres, self._start_ministack, self._start_exports)
        # An interrupt waits until all have started, a second or two: it could block the threads that start them, and a
        # half-finished start would bring up its server behind our back.
        with interrupts_deferred(), ThreadPoolExecutor(len(starts), thread_name_prefix="start") as threads:
            for started in [threads.submit(start) for start in starts]:
                started.result()

    def _start_postgres(self) -> None:
        self.postgres.start()
        self._progress(f"postgresql {self.postgres.port}")

    def _start_ministack(self) -> None:
        self.ministack.start()
        self._progress(f"ministack {self.ministack.port}")

    def _start_exports(self) -> None:
        self.exports.start()
        self._progress(f"aws endpoint {self.endpoint_url}")

    def _take_lock(self) -> None:
        self.run_dir.mkdir(parents=True, exist_ok=True)
        lock = (self.run_dir / "lock").open("a+")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.seek(0)
            holder = lock.read().strip() or "unknown"
            lock.close()
            raise LocalStackError(
                f"starting the local stack: {self.run_dir} is in use by process {holder}; stop that one first"
            ) from error
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        self._lock = lock
