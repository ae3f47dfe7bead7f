"""Roles for the tests of privileges: database roles that go with the test."""

from __future__ import annotations

from collections.abc import Callable, Generator

import pytest

from pipeline.aurora.sessions.connection import Connection


@pytest.fixture
def role(connection: Connection) -> Generator[Callable[[str], str]]:
    """Create a role of this test's own: `role("reader")` returns its name."""
    made: list[str] = []

    def create(name: str) -> str:
        made.append(f"{name}_{connection.info.dbname}")
        connection.execute(f"CREATE ROLE {made[-1]}".encode())
        return made[-1]

    yield create
    connection.execute("RESET ROLE")
    for name in reversed(made):  # who granted goes first
        connection.execute(f"DROP OWNED BY {name} CASCADE".encode())
        connection.execute(f"DROP ROLE {name}".encode())
