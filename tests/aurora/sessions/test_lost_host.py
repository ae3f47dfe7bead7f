"""A host that is lost without a word: each side ends the connection by itself, also while it is owed an answer.

Two network namespaces stand for the hosts. To lose one, its end of their cable is taken down: nothing that is sent
arrives, and nothing is refused.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import run_directory
from tests.dagster_project.graphql import wait_until

IP = shutil.which("ip") or ""
pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0 or not IP, reason="needs root and `ip` (iproute2)"),
    pytest.mark.timeout(180),
]
# The limits are 25 s, found out at the next retransmission; the keepalives' are below. Without them it takes from a
# quarter of an hour to two hours.
SECONDS = 60
MODULE = "tests.aurora.sessions.lost_host"


@dataclass(frozen=True)
class Hosts:
    """The namespaces of a server and of a client, each with one end of a cable."""

    server: str
    client: str

    def start(self, host: str, *arguments: str) -> subprocess.Popen[str]:
        command = [IP, "netns", "exec", host, sys.executable, "-m", MODULE, *arguments]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, cwd=Path(__file__).parents[3])

    def lose_client(self) -> None:
        ip("-n", self.client, "link", "set", "cable", "down")


def ip(*arguments: str) -> None:
    subprocess.run([IP, *arguments], check=True)


@pytest.fixture
def hosts() -> Generator[Hosts]:
    made = Hosts(f"dynaurora-{os.getpid()}-server", f"dynaurora-{os.getpid()}-client")
    with ExitStack() as stack:
        for name in (made.server, made.client):
            ip("netns", "add", name)
            stack.callback(ip, "netns", "delete", name)
            ip("-n", name, "link", "set", "lo", "up")
        ip("-n", made.server, "link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns", made.client)
        for name, address in ((made.server, "10.64.0.1/30"), (made.client, "10.64.0.2/30")):
            ip("-n", name, "address", "add", address, "dev", "cable")
            ip("-n", name, "link", "set", "cable", "up")
        yield made


@contextmanager
def ending(process: subprocess.Popen[str]) -> Generator[subprocess.Popen[str]]:
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_a_lost_client_keeps_no_lock_and_a_lost_server_keeps_no_client(hosts: Hosts) -> None:
    with run_directory() as folder, ending(hosts.start(hosts.server, "serve", str(folder), "10.64.0.1")) as server:
        near = line(server)
        url = near.replace("127.0.0.1", "10.64.0.1") + "?sslmode=disable"

        def sessions() -> list[str]:
            """Ask from the server's own host."""
            command = [IP, "netns", "exec", hosts.server, sys.executable, "-m", MODULE, "sessions", near]
            return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()

        with (
            ending(hosts.start(hosts.client, "hold", url)) as owed,
            ending(hosts.start(hosts.client, "ask", url)) as asks,
        ):
            assert (line(owed), line(asks)) == ("connected", "connected")
            wait_until(lambda: sessions() == ["asking", "lost holds its lock"], SECONDS, "a lock is held")
            hosts.lose_client()
            assert asks.stdin is not None
            asks.stdin.write("\n")
            asks.stdin.flush()
            wait_until(lambda: sessions() == [], SECONDS, "the server has ended both sessions")
            assert line(asks) == "OperationalError"
            owed.wait(SECONDS)
