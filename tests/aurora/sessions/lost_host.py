"""A PostgreSQL server for clients in another network namespace: prints its URL, and ends when its input does.

`python -m tests.aurora.sessions.lost_host serve FOLDER ADDRESS`; as a client, `… hold URL` keeps an advisory lock in a
statement whose answer never ends, and `… ask URL` sends a statement for each line of its input.
"""

import sys
from contextlib import closing
from pathlib import Path

import psycopg

from pipeline.aurora.sessions.connection import connect
from pipeline.local.postgres import PostgresServer

HOLD = """SELECT pg_try_advisory_lock(4711), repeat('x', 10000), pg_sleep(0.01) FROM generate_series(1, 1000000)"""

SESSIONS = """
SELECT application_name, count(l.pid) FROM pg_stat_activity AS a
  LEFT JOIN pg_locks AS l ON l.pid = a.pid AND l.locktype = 'advisory'
 WHERE client_addr = '10.64.0.2' GROUP BY 1 ORDER BY 1
"""


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def serve(folder: Path, address: str) -> None:
    server = PostgresServer(folder / "postgres", durable=False, settings={"listen_addresses": f"127.0.0.1,{address}"})
    with server:  # the first start makes the folder
        pass
    with (folder / "postgres" / "pg_hba.conf").open("a") as rules:
        rules.write("host all all 10.0.0.0/8 scram-sha-256\n")
    with server:
        say(server.url)
        sys.stdin.read()


def hold(url: str) -> None:
    with closing(connect(url, application_name="lost")) as connection:
        say("connected")
        connection.execute(HOLD)


def ask(url: str) -> None:
    with closing(connect(url, application_name="asking")) as connection:
        say("connected")
        sys.stdin.readline()
        try:
            connection.execute("SELECT 1")
        except psycopg.Error as error:
            say(type(error).__name__)


def sessions(url: str) -> None:
    with closing(psycopg.connect(url)) as connection:
        for name, locks in connection.execute(SESSIONS):
            say(f"{name} holds its lock" if locks else name)


if __name__ == "__main__":
    command, *arguments = sys.argv[1:]
    if command == "serve":
        serve(Path(arguments[0]), arguments[1])
    else:
        {"hold": hold, "ask": ask, "sessions": sessions}[command](arguments[0])
