"""The suite's own promises: no sockets in the tests of the core, nobody's account or database in the environment."""

import os
import socket

import pytest
from pytest_socket import SocketBlockedError


def test_sockets_are_blocked_here() -> None:
    # The plug-in warns before it raises, and warnings are errors elsewhere.
    with pytest.warns(UserWarning, match="tried to use socket"), pytest.raises(SocketBlockedError):
        socket.socket()


def test_nothing_of_the_caller_reaches_the_tests() -> None:
    foreign = {name for name in os.environ if name.startswith(("AWS_", "DATABASE_", "PGHOST", "PGPASS"))}
    assert foreign <= {"AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE", "AWS_EC2_METADATA_DISABLED"}
    assert os.environ["AWS_CONFIG_FILE"] == os.devnull
