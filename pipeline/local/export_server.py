"""The export service as a process of its own, so that it shares no interpreter with those who call it.

Invariant: the process lives no longer than the one which started it.
"""

import argparse
import asyncio
import http.client
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from pipeline.local.exports import ExportService
from pipeline.local.http_messages import HEAD_LIMIT
from pipeline.local.process import LOOPBACK, ServerProcess, free_port, require_free_port
from pipeline.local.proxy import Proxy, WriteGate

MODULE = "pipeline.local.export_server"


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
        recovery_reach_seconds: float = 0.0,
        hold: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """`port=None` takes a free one. See `exports` for the times. `environment`: more variables for the server."""
        self._log_path = run_dir.absolute() / "exports.log"
        self._upstream_port = upstream_port
        self._fixed = port is not None
        self.port = port or free_port()
        self._delay_seconds = delay_seconds
        self._minimum_window_seconds = minimum_window_seconds
        self._recovery_reach_seconds = recovery_reach_seconds
        self._hold = hold
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
    def url(self) -> str:
        """Where it listens."""
        return f"http://{LOOPBACK}:{self.port}"

    def start(self) -> None:
        """Start, and return when requests are answered, even if ministack is not up yet."""
        if self._fixed:
            require_free_port(self.port, "the export service")
        options = {
            "--port": self.port,
            "--upstream-port": self._upstream_port,
            "--delay-seconds": self._delay_seconds,
            "--minimum-window-seconds": self._minimum_window_seconds,
            "--recovery-reach-seconds": self._recovery_reach_seconds,
        } | ({"--hold": self._hold} if self._hold else {})
        arguments = [part for name, value in options.items() for part in (name, str(value))]
        self._process = ServerProcess(
            "the export service",
            [sys.executable, "-m", MODULE, *arguments],
            log_path=self._log_path,
            env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C.UTF-8", "TZ": "UTC"}
            | dict(self._more_environment),
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


async def serve(given: argparse.Namespace) -> None:
    """Serve as the command line says, until cancelled."""
    gate, upstream_port = WriteGate(), given.upstream_port
    service = ExportService(
        upstream_port,
        gate,
        delay_seconds=given.delay_seconds,
        minimum_window_seconds=given.minimum_window_seconds,
        recovery_reach_seconds=given.recovery_reach_seconds,
        hold=given.hold,
    )
    proxy = Proxy(upstream_port, service.answers(), gate)
    server = await asyncio.start_server(proxy.serve_client, LOOPBACK, given.port, limit=HEAD_LIMIT, backlog=1024)
    async with server:
        await server.serve_forever()


def main() -> None:
    """The command line; see the module's own text."""
    parser = argparse.ArgumentParser(prog=f"python -m {MODULE}")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--upstream-port", type=int, required=True)
    parser.add_argument("--delay-seconds", type=float, default=0.0)
    parser.add_argument("--minimum-window-seconds", type=float, default=900.0)
    parser.add_argument("--recovery-reach-seconds", type=float, default=0.0)
    parser.add_argument("--hold", type=Path)
    asyncio.run(serve(parser.parse_args()))


if __name__ == "__main__":
    main()
