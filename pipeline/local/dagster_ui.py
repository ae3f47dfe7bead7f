"""Dagster on a laptop: an instance in the run directory, its web server and daemon, and jobs run to their end.

Invariant: every process is a guarded child, and ends when we do, however that happens. They are started from Python
with default signal handlers, because a non-interactive shell starts its background jobs with SIGINT ignored, and
Dagster's processes then never stop.
"""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pipeline.local.errors import LocalStackError
from pipeline.local.process import LOOPBACK, ServerProcess, free_port, log_tail, require_free_port

PROJECT = Path(__file__).resolve().parents[2]
WORKSPACE = PROJECT / "workspace.yaml"
INSTANCE_CONFIG = PROJECT / "dagster_project" / "instance" / "laptop.yaml"
READY_SECONDS = 120.0
_POLL_SECONDS = 0.1


@dataclass(frozen=True)
class JobOutcome:
    """How a run ended. `assets` has each materialized asset's plain metadata, by key (`employees/aurora_table`)."""

    run_id: str
    success: bool
    assets: dict[str, dict[str, Any]]
    checks: dict[str, dict[str, Any]]
    """By asset and check (`employees/reconciliation:parity`): `passed`, `severity`, `description`."""
    failures: list[str]


class DagsterHome:
    """A DAGSTER_HOME for a laptop. Its contents outlive us; nothing runs by itself."""

    def __init__(self, run_dir: Path, environment: Mapping[str, str]) -> None:
        """`environment` is what the product reads: database, AWS, export bucket, folder of mappings."""
        self.folder = run_dir.absolute() / "dagster"
        self.folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(INSTANCE_CONFIG, self.folder / "dagster.yaml")
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TMPDIR") if name in os.environ}
        self.environment = {
            **kept,
            "DAGSTER_HOME": str(self.folder),
            "DAGSTER_DISABLE_TELEMETRY": "yes",
            "PYTHONUNBUFFERED": "1",
            **environment,
        }

    def execute_job(
        self, name: str, config: Mapping[str, Any] | None = None, *, on_line: Callable[[str], None] | None = None
    ) -> JobOutcome:
        """Run a job in a process of its own and return when it has ended; `on_line` gets what the run logs.

        It needs neither web server nor daemon, and shows in the UI like any run. A run that fails is an outcome; raises
        LocalStackError if there was no run (a wrong configuration) or its process was lost.
        """
        log_path = self.folder / f"{name}.log"
        log_path.write_bytes(b"")
        command = [sys.executable, "-m", "dagster_project.run", name, json.dumps(config or {})]
        process = ServerProcess(
            name, command, log_path=log_path, env=self.environment, stop_signal=signal.SIGINT, grace_seconds=10.0
        )
        try:
            for entry in _json_lines(process, log_path):
                if "run_id" in entry:
                    return JobOutcome(**entry)
                if "refused" in entry:
                    raise LocalStackError(f"running the job {name}: {entry['refused']}")
                if on_line is not None:
                    on_line(entry["line"])
        finally:
            process.stop()
        raise LocalStackError(f"running the job {name}: it did not finish; end of {log_path}:\n{log_tail(log_path)}")


def _json_lines(process: ServerProcess, log_path: Path) -> Iterator[dict[str, Any]]:
    """The JSON objects that a process writes among its other output, until it ends."""
    with log_path.open(encoding="utf-8", errors="replace") as log:
        rest = ""
        while True:
            alive = process.alive
            *lines, rest = (rest + log.read()).split("\n")
            for line in lines:
                if line.startswith(('{"line"', '{"run_id"', '{"refused"')):
                    yield json.loads(line)
            if not alive:
                return
            time.sleep(_POLL_SECONDS)


class DagsterWebserver:
    """The UI, and the daemon that runs schedules, sensors and the queue of runs. Use as a context manager."""

    def __init__(self, home: DagsterHome, port: int | None = None) -> None:
        self.home = home
        self.port = port or free_port()
        self._processes: list[ServerProcess] = []

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
    def url(self) -> str:
        """Where the UI is."""
        return f"http://{LOOPBACK}:{self.port}"

    def start(self) -> None:
        """Start both, and return when the UI answers. Raises LocalStackError with the end of a log."""
        require_free_port(self.port, "the Dagster UI")
        try:
            webserver = self._start("dagster-webserver", "-h", LOOPBACK, "-p", str(self.port))
            webserver.wait_ready(self._answers, READY_SECONDS)
            # Not earlier: two processes that create a new instance's SQLite files at the same time disturb each other,
            # and the code location then fails to load.
            self._start("dagster-daemon", "run")
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop both, and the runs that they have under way. Safe to call again."""
        while self._processes:
            self._processes.pop().stop()

    def _start(self, program: str, *arguments: str) -> ServerProcess:
        command = [str(Path(sys.executable).with_name(program)), *arguments, "-w", str(WORKSPACE)]
        log_path = self.home.folder / f"{program}.log"
        process = ServerProcess(
            program,
            command,
            log_path=log_path,
            env=self.home.environment,
            stop_signal=signal.SIGINT,
            grace_seconds=10.0,
        )
        self._processes.append(process)
        return process

    def _answers(self) -> bool:
        connection = http.client.HTTPConnection(LOOPBACK, self.port, timeout=2)
        try:
            connection.request("GET", "/server_info")
            return connection.getresponse().status == 200
        except (http.client.HTTPException, OSError):
            return False
        finally:
            connection.close()
