"""The whole stack: all servers with one command, one stack in a run directory, nothing left running."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from pathlib import Path

import psycopg
import pytest

from pipeline.local.errors import LocalStackError
from pipeline.local.ministack import Ministack
from pipeline.local.process import free_port
from pipeline.local.stack import LocalStack
from tests.conftest import run_directory
from tests.local.conftest import session_of

OWNER = """
import sys, time
from pathlib import Path
from pipeline.local.stack import LocalStack
print("begun", flush=True)
with LocalStack(Path(sys.argv[1]), durable=False, progress=lambda line: print(line, flush=True)):
    print("up", flush=True)
    time.sleep(600)
"""


def processes_in(folder: Path) -> list[str]:
    """The command lines of processes that have an argument in `folder`, or that write there."""
    found: list[str] = []
    for process in Path("/proc").iterdir():
        if not process.name.isdigit() or int(process.name) == os.getpid():
            continue
        try:
            command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            log = str((process / "fd" / "2").readlink())
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
        if command and (str(folder) in command or log.startswith(str(folder))):
            found.append(command)
    return found


def wait_nothing_left(folder: Path, seconds: float = 20.0) -> list[str]:
    deadline = time.monotonic() + seconds
    while (left := processes_in(folder)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left


def start_owner(folder: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", OWNER, str(folder)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )


def test_the_environment_reaches_both_services_and_names_no_other(stack: LocalStack) -> None:
    environment = stack.environment()
    script = "import boto3, json; print(json.dumps(boto3.client('sts').get_caller_identity()['Account']))"
    answer = subprocess.run(
        [sys.executable, "-c", script], env={**os.environ, **environment}, capture_output=True, check=True
    )
    assert json.loads(answer.stdout) == "000000000000"
    with psycopg.connect(environment["DATABASE_URL"]) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)


def test_everything_listens_on_loopback_only(stack: LocalStack) -> None:
    ports = {stack.postgres.port, stack.ministack.port, stack.exports.port}
    addresses = set[str]()
    for line in (
        Path("/proc/net/tcp").read_text().splitlines()[1:] + Path("/proc/net/tcp6").read_text().splitlines()[1:]
    ):
        address, port = line.split()[1].split(":")
        if line.split()[3] == "0A" and int(port, 16) in ports:
            addresses.add(address)
    assert addresses == {"0100007F"}


def test_a_second_stack_in_the_same_place_is_refused_in_one_line(stack: LocalStack) -> None:
    with pytest.raises(LocalStackError) as raised:
        LocalStack(stack.run_dir).start()
    assert str(os.getpid()) in str(raised.value)
    assert "\n" not in str(raised.value)
    with psycopg.connect(stack.environment()["DATABASE_URL"]) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)


def test_a_taken_port_stops_the_start_and_leaves_nothing() -> None:
    with run_directory() as folder, socket.socket() as other:
        port = free_port()
        other.bind(("127.0.0.1", port))
        other.listen()
        with pytest.raises(LocalStackError, match=f"port {port} .* taken"):
            LocalStack(folder, aws_port=port).start()
        assert processes_in(folder) == []
        with LocalStack(folder, durable=False):
            pass


def test_a_stopped_stack_starts_again_with_its_database_and_without_its_tables() -> None:
    with run_directory() as folder:
        with LocalStack(folder, durable=False) as stack, psycopg.connect(stack.postgres.url) as connection:
            connection.execute("CREATE TABLE kept (n int)")
        assert processes_in(folder) == []
        with LocalStack(folder, durable=False) as stack:
            with psycopg.connect(stack.postgres.url) as connection:
                assert connection.execute("SELECT count(*) FROM kept").fetchone() == (0,)
            client = session_of(stack).client("dynamodb", endpoint_url=stack.endpoint_url)
            assert client.list_tables()["TableNames"] == []


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_the_stack_dies_with_its_owner_and_gives_its_place_free(number: signal.Signals) -> None:
    with run_directory() as folder, start_owner(folder) as owner:
        assert owner.stdout is not None
        while owner.stdout.readline() != b"up\n":
            assert owner.poll() is None
        assert len(processes_in(folder)) >= 6
        owner.send_signal(number)
        owner.wait()
        assert wait_nothing_left(folder) == []
        with LocalStack(folder, durable=False):
            pass


@pytest.mark.parametrize("seconds", [0.0, 0.1, 0.3, 0.5, 0.7])
def test_an_interrupt_during_the_start_leaves_nothing(seconds: float) -> None:
    with run_directory() as folder, start_owner(folder) as owner:
        assert owner.stdout is not None
        # Before that, Python is importing, and may swallow an interrupt: in a callback it prints it and continues.
        assert owner.stdout.readline() == b"begun\n"
        time.sleep(seconds)
        owner.send_signal(signal.SIGINT)
        owner.wait(timeout=20)
        assert wait_nothing_left(folder) == []


def test_an_interrupt_reaches_nobody_who_waits_for_threads() -> None:
    """It could leave their locks taken, and the start waiting forever."""
    told: list[str] = []

    def interrupt(line: str) -> None:
        told.append(line)
        os.kill(os.getpid(), signal.SIGINT)

    with run_directory() as folder:
        with pytest.raises(KeyboardInterrupt) as raised:
            LocalStack(folder, durable=False, progress=interrupt).start()
        assert traceback.extract_tb(raised.tb)[-1].name == "interrupts_deferred"
        assert len(told) == 3
        assert processes_in(folder) == []


def test_ministack_without_its_environment_says_how_to_make_it() -> None:
    with run_directory() as folder, pytest.raises(LocalStackError, match=r"make \.venv-local/\.ready"):
        Ministack(folder, environment_dir=folder / "absent").start()
