"""A network with a known round trip between a client and the local server: the proxy, corrected for its own cost."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit, urlunsplit

import psycopg

_PROXY = Path(__file__).with_name("delay_proxy.py")
_PINGS = 200


@dataclass(frozen=True)
class Traffic:
    """The traffic so far."""

    round_trips: int
    bytes_in: int
    bytes_out: int


class Network:
    """The proxy before one server. `added_ms` is the median round trip it adds, as measured with `SELECT 1`."""

    def __init__(self, url: str, round_trip_ms: float) -> None:
        self._direct_url = url
        self._round_trip_ms = round_trip_ms
        port = urlsplit(url).port or 5432
        self._process = subprocess.Popen(
            [sys.executable, "-S", str(_PROXY), str(port), "0"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._port = int(self._answer())
        self.direct_ms = self.overhead_ms = self.added_ms = 0.0

    def __enter__(self) -> Self:
        """Measure what the proxy adds by itself, and set the delay to the rest."""
        self.direct_ms = _ping_ms(self._direct_url)
        self.overhead_ms = _ping_ms(self.url_of(self._direct_url)) - self.direct_ms
        delay = max(0.0, self._round_trip_ms - self.overhead_ms)
        for _ in range(10):  # a sleep takes longer than requested; only trying shows by how much
            self._tell(f"{delay / 2 * 1000:.0f}")
            self.added_ms = _ping_ms(self.url_of(self._direct_url)) - self.direct_ms
            if abs(self.added_ms - self._round_trip_ms) < 0.03:
                break
            delay = max(0.0, delay + self._round_trip_ms - self.added_ms)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """End the proxy."""
        self._process.communicate()

    def url_of(self, url: str) -> str:
        """Return the URL of a database of the same server, by way of this network."""
        parts = urlsplit(url)
        return urlunsplit(parts._replace(netloc=parts.netloc.rpartition(":")[0] + f":{self._port}"))

    def traffic(self) -> Traffic:
        """Return what has passed so far."""
        return Traffic(*map(int, self._tell("count").split()))

    def _tell(self, line: str) -> str:
        if self._process.stdin is not None:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> str:
        return self._process.stdout.readline().strip() if self._process.stdout is not None else ""


def _ping_ms(url: str) -> float:
    with psycopg.connect(url, autocommit=True) as connection:
        taken: list[float] = []
        for _ in range(_PINGS):
            began = time.perf_counter()
            connection.execute("SELECT 1").fetchone()
            taken.append(time.perf_counter() - began)
    return statistics.median(taken) * 1000
