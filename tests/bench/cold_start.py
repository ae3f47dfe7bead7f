"""The cost of a new execution environment: the handler's import by dependency, the first invocation, the zip.

It runs with only what Lambda has: the unpacked zip, the runtime client and boto3, under AWS's own Runtime Interface
Emulator. The secret comes from a small server that answers as Secrets Manager does.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Generator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import urlsplit

from lambda_replicator import package
from pipeline.aurora.schema.migrate import migrate
from pipeline.aurora.sessions.connection import connect
from pipeline.core.mapping_files.mapping_file import read_mapping
from tests.bench.history import History
from tests.bench.rounds import Say
from tests.bench.server import BenchServer
from tests.bench.shapes import NARROW
from tests.lambda_replicator.emulator import Emulator, Function, interpreter, make_runtime, unpack

PARTS = ("boto3 and botocore", "psycopg and libpq", "Powertools", "PyYAML", "dynaurora", "Python's own")
_PART_OF = {
    "boto3": PARTS[0], "botocore": PARTS[0], "s3transfer": PARTS[0], "urllib3": PARTS[0], "dateutil": PARTS[0],
    "jmespath": PARTS[0], "six": PARTS[0], "psycopg": PARTS[1], "psycopg_binary": PARTS[1],
    "aws_lambda_powertools": PARTS[2], "jmespath_utils": PARTS[2], "yaml": PARTS[3], "_yaml": PARTS[3],
    "pipeline": PARTS[4], "lambda_replicator": PARTS[4],
}  # fmt: skip


def measure(server: BenchServer, *, runs: int, say: Say) -> dict[str, object]:
    """Build the zip and start it `runs` times."""
    with TemporaryDirectory(prefix="dynaurora-bench-") as name:
        folder = Path(name)
        archive, tables = folder / "lambda.zip", folder / "tables"
        tables.mkdir()
        (tables / "employees.yaml").write_text(NARROW.mapping)
        (folder / "runtime").mkdir()
        shares = package.build(archive, python_version=f"3.{sys.version_info.minor}", tables=tables)
        task_root = unpack(archive, folder / "task")
        with _secret(server.fresh("bench_cold")) as endpoint:
            environment = {"AWS_ENDPOINT_URL": endpoint, "DATABASE_SECRET_ID": "bench", "PGSSLMODE": "prefer"}
            function = Function(task_root, make_runtime(folder / "runtime"), environment)
            imports = [_imports(function) for _ in range(runs)]
            cpu = statistics.median(_import_cpu_ms(function) for _ in range(runs))
            say(f"  import: {statistics.median(sum(found.values()) for found in imports):.0f} ms")
            starts = [_first_invocations(function, folder / f"emulator-{n}.log") for n in range(runs)]
        first, second = (round(statistics.median(times), 1) for times in zip(*starts, strict=True))
        say(f"  first invocation: {first} ms, second {second} ms")
        return {
            "import_ms": {part: round(statistics.median(found[part] for found in imports), 1) for part in PARTS},
            "import_cpu_ms": round(cpu, 1),
            "import_total_ms": round(statistics.median(sum(found.values()) for found in imports), 1),
            "first_invocation_ms": first,
            "second_invocation_ms": second,
            "zip_bytes": archive.stat().st_size,
            "zip_shares_bytes": shares,
        }


def _imports(function: Function) -> Counter[str]:
    """Milliseconds of importing the handler, by dependency: each module's own time, without what it imports."""
    command = [interpreter(), "-S", "-X", "importtime", "-c", "import lambda_replicator.handler"]
    told = subprocess.run(command, check=True, capture_output=True, text=True, env=function.variables()).stderr
    found: Counter[str] = Counter()
    for line in told.splitlines():
        own, _, module = line.removeprefix("import time:").split("|")
        if own.strip().isdigit():
            found[_PART_OF.get(module.strip().partition(".")[0], PARTS[5])] += int(own) / 1000  # type: ignore[assignment]  # a float
    return found


def _import_cpu_ms(function: Function) -> float:
    """Processor milliseconds of importing the handler, the interpreter's start left out."""
    program = "import time; b = time.process_time(); import lambda_replicator.handler; print(time.process_time() - b)"
    command = [interpreter(), "-S", "-c", program]
    told = subprocess.run(command, check=True, capture_output=True, text=True, env=function.variables()).stdout
    return float(told) * 1000


def _first_invocations(function: Function, log: Path) -> tuple[float, float]:
    """Milliseconds of the first invocation, with everything that it has to start, and of the second."""
    history, times = History(1_000), list[float]()
    with Emulator(function, log) as emulator:
        for _ in range(2):
            event = json.loads(history.batch(100))
            began = time.perf_counter()
            answer = emulator.invoke(event)
            times.append((time.perf_counter() - began) * 1000)
            if answer != {"batchItemFailures": []}:
                raise RuntimeError(f"the function failed: {answer.get('errorType')}")
    return times[0], times[1]


@contextmanager
def _secret(url: str) -> Generator[str]:
    """Serve the secret of a database with the table of the seed, as Secrets Manager would; yields the endpoint."""
    with closing(connect(url, application_name="bench")) as connection:
        migrate(connection, [read_mapping(NARROW.mapping, "bench.yaml")])
    parts = urlsplit(url)
    secret = {
        "username": parts.username,
        "password": parts.password,
        "host": parts.hostname,
        "port": parts.port,
        "dbname": parts.path[1:],
    }
    answer = json.dumps({"Name": "bench", "ARN": "arn:bench", "SecretString": json.dumps(secret)}).encode()

    class Secrets(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("Content-Type", "application/x-amz-json-1.1")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
            """Say nothing."""

    serving = ThreadingHTTPServer(("127.0.0.1", 0), Secrets)
    threading.Thread(target=serving.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{serving.server_port}"
    finally:
        serving.shutdown()
        serving.server_close()
