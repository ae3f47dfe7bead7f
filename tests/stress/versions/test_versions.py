"""Histories hold every version, whatever the order, repetition and mixture: generated runs, and mutations of them."""

from __future__ import annotations

from collections.abc import Iterator
from uuid import uuid4

import psycopg
import pytest
from psycopg import sql

from pipeline.local.postgres import PostgresServer
from tests.stress.versions.generate import run_versions
from tests.stress.versions.world import System


@pytest.fixture(scope="session")
def versions(postgres: PostgresServer) -> Iterator[System]:
    name = f"versions_{uuid4().hex}"
    with psycopg.connect(postgres.url, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    system = System(postgres.url_of(name))
    yield system
    system.close()


@pytest.mark.parametrize("seed", range(4))
def test_histories_are_equal_whatever_the_order(versions: System, seed: int) -> None:
    assert run_versions(versions, seed, keys=40).checks == 4
