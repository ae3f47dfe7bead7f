"""The PostgreSQL server: starts, survives, explains its errors, and never outlives the process that started it."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psycopg
import pytest

from pipeline.local.errors import LocalStackError
from pipeline.local.ordinary_user import Identity, nobody_identity, ordinary_identity
from pipeline.local.postgres import PostgresServer
from pipeline.local.process import free_port
from tests.conftest import run_directory

OWNER = """
import sys, time
from pathlib import Path
from pipeline.local.postgres import PostgresServer
server = PostgresServer(Path(sys.argv[1]), durable=False)
server.start()
print(server.pid, flush=True)
time.sleep(600)
"""


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def wait_gone(pid: int, seconds: float = 15.0) -> bool:
    deadline = time.monotonic() + seconds
    while is_running(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not is_running(pid)


def test_listens_on_loopback_only_with_a_password_and_not_as_root(postgres: PostgresServer) -> None:
    with psycopg.connect(postgres.url) as connection:
        row = connection.execute(
            "SELECT current_setting('listen_addresses'), current_setting('unix_socket_directories'), "
            "current_setting('server_version_num')::int / 10000, current_setting('server_encoding')"
        ).fetchone()
    assert row == ("127.0.0.1", "", 17, "UTF8")
    wrong = postgres.url.replace(postgres.password, "wrong")
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(wrong)


def test_psql_reaches_it(postgres: PostgresServer) -> None:
    answer = subprocess.run(
        [postgres.psql_path, postgres.url, "-tAc", "SELECT 6 * 7"], capture_output=True, text=True, check=True
    )
    assert answer.stdout.strip() == "42"


def test_a_killed_server_recovers_what_was_committed_on_the_same_url() -> None:
    with run_directory() as folder, PostgresServer(folder / "postgres", durable=False) as server:
        url = server.url
        with psycopg.connect(url) as connection:
            connection.execute("CREATE TABLE kept AS SELECT generate_series(1, 1000) AS n")
        server.kill()
        with pytest.raises(psycopg.OperationalError):
            psycopg.connect(url)
        server.restart()
        with psycopg.connect(url) as connection:
            assert connection.execute("SELECT count(*) FROM kept").fetchone() == (1000,)


def test_data_and_password_outlive_a_stop() -> None:
    with run_directory() as folder:
        with PostgresServer(folder / "postgres", durable=False) as server:
            password = server.password
            with psycopg.connect(server.url) as connection:
                connection.execute("CREATE TABLE kept AS SELECT 1 AS n")
        with PostgresServer(folder / "postgres", durable=False) as server:
            assert server.password == password
            with psycopg.connect(server.url) as connection:
                assert connection.execute("SELECT n FROM kept").fetchone() == (1,)


def test_a_taken_port_is_one_clear_line() -> None:
    with run_directory() as folder, socket.socket() as other:
        port = free_port()
        other.bind(("127.0.0.1", port))
        other.listen()
        with pytest.raises(LocalStackError) as raised:
            PostgresServer(folder / "postgres", port).start()
    assert str(port) in str(raised.value)
    assert "\n" not in str(raised.value)
    assert "another port" in str(raised.value)


def test_a_failed_start_shows_the_end_of_the_log() -> None:
    with run_directory() as folder:
        server = PostgresServer(folder / "postgres", settings={"shared_buffers": "nonsense"})
        with pytest.raises(LocalStackError, match="shared_buffers"):
            server.start()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_the_server_dies_with_its_owner(number: signal.Signals) -> None:
    with run_directory() as folder:
        owner = subprocess.Popen(
            [sys.executable, "-c", OWNER, str(folder / "postgres")],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        with owner:
            assert owner.stdout is not None
            pid = int(owner.stdout.readline())
            assert is_running(pid)
            owner.send_signal(number)
        assert wait_gone(pid)


def test_the_server_dies_with_its_guard() -> None:
    with run_directory() as folder, PostgresServer(folder / "postgres", durable=False) as server:
        pid = server.pid
        guard = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        os.kill(guard, signal.SIGKILL)
        assert wait_gone(pid)


def test_root_can_fall_back_to_the_user_nobody() -> None:
    with run_directory() as folder:
        if os.geteuid() != 0:
            assert ordinary_identity(folder / "postgres") == Identity()
            return
        identity = nobody_identity(folder / "postgres")
        assert identity == Identity(uid=65534)
        with PostgresServer(folder / "postgres", durable=False, identity=identity) as server:
            assert Path(f"/proc/{server.pid}").stat().st_uid == 65534
            with psycopg.connect(server.url) as connection:
                assert connection.execute("SELECT 1").fetchone() == (1,)


def test_the_fallback_names_the_directory_nobody_cannot_reach() -> None:
    with run_directory() as folder:
        closed = folder / "closed"
        closed.mkdir(mode=0o700)
        with pytest.raises(LocalStackError, match=str(closed)):
            nobody_identity(closed / "postgres")


def test_it_starts_below_a_directory_that_only_its_owner_can_enter() -> None:
    with run_directory() as folder:
        closed = folder / "closed"
        closed.mkdir(mode=0o700)
        with (
            PostgresServer(closed / "postgres", durable=False) as server,
            psycopg.connect(server.url) as connection,
        ):
            assert connection.execute("SELECT 1").fetchone() == (1,)


def test_a_fresh_database_for_each_test(database: str, postgres: PostgresServer) -> None:
    with psycopg.connect(database) as connection:
        tables = connection.execute("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'").fetchone()
        assert tables == (0,)
        connection.execute("CREATE TABLE mine (n int)")
    assert database.startswith(postgres.url.rpartition("/")[0])
