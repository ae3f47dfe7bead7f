"""Fixtures of the whole suite: real servers, started on demand, and an isolated environment.

Invariant: no test sees credentials, endpoints or databases of the person who runs it.
"""

import os
import signal
import tempfile
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest
from psycopg import sql

from pipeline.local.postgres import PostgresServer
from pipeline.local.stack import LocalStack
from tests.pgbouncer import NOT_INSTALLED, PgBouncer, program

FOREIGN_PREFIXES = ("AWS_", "DYNAURORA_", "DATABASE_", "PG", "POWERTOOLS_", "DAGSTER_")
TESTS = Path(__file__).parent


def pytest_configure() -> None:
    """Drop what could lead a test, or a process it starts, to somebody's real account or database.

    Also restore SIGINT, which a suite ignores if a shell runs it in the background.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    for name in [name for name in os.environ if name.startswith(FOREIGN_PREFIXES)]:
        del os.environ[name]
    os.environ["AWS_CONFIG_FILE"] = os.environ["AWS_SHARED_CREDENTIALS_FILE"] = os.devnull
    os.environ["AWS_EC2_METADATA_DISABLED"] = "true"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests that use the stack; block sockets in the tests of the core, which needs none."""
    for item in items:
        if "stack" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.stack)
        if item.path.is_relative_to(TESTS / "core"):
            item.add_marker(pytest.mark.disable_socket)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print one line if the pooler's tests were left out."""
    left_out = sum(NOT_INSTALLED in str(report.longrepr) for report in terminalreporter.stats.get("skipped", ()))
    if left_out:
        terminalreporter.write_line(f"{left_out} tests of poolers {NOT_INSTALLED}", yellow=True)


@contextmanager
def run_directory() -> Generator[Path]:
    """A directory for servers. Others may traverse it, in case PostgreSQL has to run as another user."""
    with tempfile.TemporaryDirectory(prefix="dynaurora-test-") as name:
        Path(name).chmod(0o711)
        yield Path(name)


@pytest.fixture(scope="session")
def postgres() -> Generator[PostgresServer]:
    """A PostgreSQL server for the session, fast rather than durable."""
    with run_directory() as folder, PostgresServer(folder / "postgres", durable=False) as server:
        yield server


@pytest.fixture
def database(postgres: PostgresServer) -> Generator[str]:
    """The URL of a fresh, empty database, dropped after the test with whatever still uses it."""
    name = f"test_{uuid4().hex}"
    with psycopg.connect(postgres.url, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    yield postgres.url_of(name)
    with psycopg.connect(postgres.url, autocommit=True) as connection:
        connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


@pytest.fixture(scope="session")
def stack() -> Generator[LocalStack]:
    """The whole local stack for the session. Tests share it: take table and bucket names of your own."""
    with run_directory() as folder, LocalStack(folder / "stack", durable=False) as running:
        yield running


@pytest.fixture
def pgbouncer() -> Generator[Callable[..., PgBouncer]]:
    """Start PgBouncers in front of URLs: `pgbouncer(url, mode="transaction", pool_size=1)`."""
    if program() is None:
        pytest.skip(NOT_INSTALLED)
    with run_directory() as folder, ExitStack() as running:

        def start(url: str, *, mode: str, pool_size: int = 5) -> PgBouncer:
            name = f"pgbouncer-{uuid4().hex[:6]}"
            return running.enter_context(PgBouncer(folder / name, url, mode=mode, pool_size=pool_size))

        yield start
