"""One database for the tests of this folder; every test starts with empty tables."""

from __future__ import annotations

from collections.abc import Iterator
from uuid import uuid4

import psycopg
import pytest
from psycopg import sql

from pipeline.local.postgres import PostgresServer
from tests.stress.target import ONE_TARGET, TargetSystem


@pytest.fixture(scope="session")
def shared_system(postgres: PostgresServer) -> Iterator[TargetSystem]:
    name = f"stress_{uuid4().hex}"
    with psycopg.connect(postgres.url, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    system = TargetSystem(postgres.url_of(name))
    yield system
    system.close()


@pytest.fixture
def system(shared_system: TargetSystem) -> TargetSystem:
    shared_system.reset(ONE_TARGET)
    return shared_system
