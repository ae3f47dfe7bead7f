"""The export service as a process of its own, so that it shares no interpreter with those who call it."""

import http.client
import os
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

from pipeline.local.process import LOOPBACK, ServerProcess, free_port, require_free_port

MODULE = "pipeline.local.exports"


class ExportServer:
    """Serves `url` in front of the server at `upstream_port`; all AWS clients are given this address."""

    def __init__(
        self,
        run_dir: Path,
        upstream_port: int,
        port: int | None = None,
        *,
        delay_seconds: float = 0.0,
        minimum_window_seconds: float = 900.0,
    ) -> None:
        """`port=None` takes a free one. See `exports` for the two times."""
        self._log_path = run_dir.absolute() / "exports.log"
        self._upstream_port = upstream_port
        self._fixed = port is not None
        self.port = port or free_port()
        self._delay_seconds = delay_seconds
        self._minimum_window_seconds = minimum_window_seconds
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
    def url(self) -> str:
        """Where it listens."""
        return f"http://{LOOPBACK}:{self.port}"

    def start(self) -> None:
        """Start and return when requests are answered, be it that ministack is not up yet."""
        if self._fixed:
            require_free_port(self.port, "the export service")
        options = {
            "--port": self.port,
            "--upstream-port": self._upstream_port,
            "--delay-seconds": self._delay_seconds,
            "--minimum-window-seconds": self._minimum_window_seconds,
        }
        arguments = [part for name, value in options.items() for part in (name, str(value))]
        self._process = ServerProcess(
            "the export service",
            [sys.executable, "-m", MODULE, *arguments],
            log_path=self._log_path,
            env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C.UTF-8", "TZ": "UTC"},
        )
        self._process.wait_ready(self._answers, timeout_seconds=30.0)

    def stop(self) -> None:
        """Stop. Safe to call again."""
        if self._process is not None:
            self._process.stop()
            self._process = None

    def _answers(self) -> bool:
        connection = http.client.HTTPConnection(LOOPBACK, self.port, timeout=2.0)
        try:
            connection.request("GET", "/_ministack/health")
            return connection.getresponse().status in (http.HTTPStatus.OK, http.HTTPStatus.BAD_GATEWAY)
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()
