"""`make ui`: the local stack with its writer ticking and Dagster's UI served, until Ctrl-C.

Invariant: everything it starts ends with it.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from pipeline.core.errors import ReplicationError
from pipeline.local.dagster_ui import DagsterHome, DagsterWebserver
from pipeline.local.demo import ARCHIVE
from pipeline.local.errors import LocalStackError
from pipeline.local.interrupts import unwind_on_signals
from pipeline.local.ministack import ENVIRONMENT_DIR
from pipeline.local.playground import Playground
from pipeline.local.screen import Screen
from pipeline.local.writer import Writer, put_items

# Not the Ids of the walk-through in docs/quick-start.md.
IDENTIFIERS = range(10_001, 15_001)
NEVER = 10**9
WRITES_PER_SECOND = 20.0
RUN_DIR = Path("build/ui")
MARGIN_SECONDS = 2


def run(screen: Screen, arguments: argparse.Namespace) -> None:
    """Start everything, say where it is, and stay until interrupted."""
    screen.step("starting PostgreSQL 17, ministack and the export service; deploying the replicator")
    ports = (arguments.postgres_port, arguments.aws_port)
    with Playground(RUN_DIR, ARCHIVE, ports=ports, progress=screen.note) as playground:
        screen.step(f"putting {len(IDENTIFIERS):,} items into Employees, then {WRITES_PER_SECOND:.0f} writes a second")
        put_items(playground.dynamodb, "Employees", IDENTIFIERS)
        writer = Writer(playground.dynamodb, "Employees", IDENTIFIERS, WRITES_PER_SECOND, sample_every=NEVER)
        writer.start()
        home = DagsterHome(RUN_DIR, playground.environment())
        try:
            screen.step("starting Dagster")
            with DagsterWebserver(home, arguments.port) as webserver:
                _tell(screen, playground, webserver)
                screen.step("first load, so that there is something to see")
                home.execute_job("employees_full_load", {"margin_seconds": MARGIN_SECONDS}, on_line=screen.note)
                screen.step("ready; press Ctrl-C to stop everything")
                while True:
                    time.sleep(1)
        finally:
            writer.stop()


def _tell(screen: Screen, playground: Playground, webserver: DagsterWebserver) -> None:
    url = playground.stack.postgres.url
    screen.console.print(f"\n  Dagster     [bold]{webserver.url}[/]")
    screen.console.print(f"  Aurora      psql {url}", markup=False)
    screen.console.print(f"  DynamoDB    aws --endpoint-url {playground.stack.endpoint_url} dynamodb …\n", markup=False)
    path = RUN_DIR / "environment"
    path.write_text(shell_variables(playground) + "\n")
    screen.note(f"for the shell: . {path}")


def shell_variables(playground: Playground) -> str:
    """Return the lines that let a shell reach the playground: variables, and the AWS CLI and psql on the path."""
    path = f"{ENVIRONMENT_DIR.absolute() / 'bin'}:{Path(playground.stack.postgres.psql_path).parent}:$PATH"
    variables = {name: f"'{value}'" for name, value in playground.environment().items()} | {"PATH": f'"{path}"'}
    return "\n".join(f"export {name}={value}" for name, value in variables.items())


def main() -> int:
    """Serve until interrupted; exit code 0 after Ctrl-C, 2 if it could not start."""
    parser = argparse.ArgumentParser(prog="make ui")
    parser.add_argument("--port", type=int, default=3000, help="of Dagster's UI")
    parser.add_argument("--postgres-port", type=int)
    parser.add_argument("--aws-port", type=int)
    arguments = parser.parse_args()
    unwind_on_signals()
    screen = Screen()
    try:
        run(screen, arguments)
    except (LocalStackError, ReplicationError) as error:
        screen.console.print(f"ui: {error}", style="red", markup=False)
        return 2
    except KeyboardInterrupt:
        screen.step("stopped; nothing is left running")
    return 0


if __name__ == "__main__":
    sys.exit(main())
