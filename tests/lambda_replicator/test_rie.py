"""The packaged zip under AWS's Runtime Interface Emulator, as Lambda would run it.

Nothing is on its path but the zip, the runtime client and boto3: a dependency that was left out fails here, while the
local stack would lend its own.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pipeline.local.process import ServerProcess, free_port

pytestmark = pytest.mark.rie

ROOT = Path(__file__).parents[2]
ENVIRONMENT = ROOT / ".venv-rie"
# What Lambda's Python runtime brings: its client, and boto3 with what that needs.
RUNTIME = ("awslambdaric", "runtime_client*.so", "simplejson", "snapshot_restore_py")
SDK = ("boto3", "botocore", "s3transfer", "dateutil", "jmespath", "urllib3", "six")
VALUE = "Trillian-4242"


def site_packages() -> Path:
    """Those of .venv-rie, which `make .venv-rie/.ready` sets up."""
    program = "import sysconfig; print(sysconfig.get_path('platlib'))"
    python = ENVIRONMENT / "bin" / "python"
    return Path(subprocess.run([python, "-c", program], check=True, capture_output=True, text=True).stdout.strip())


@pytest.fixture(scope="session")
def runtime_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What /var/runtime holds on Lambda, and nothing else of any environment."""
    folder = tmp_path_factory.mktemp("runtime")
    packages = site_packages()
    for pattern in RUNTIME:
        for path in packages.glob(pattern):
            (folder / path.name).symlink_to(path)
    for name in SDK:
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.origin is not None
        path = Path(spec.origin) if name == "six" else Path(spec.origin).parent
        (folder / path.name).symlink_to(path)
    return folder


@pytest.fixture(scope="session")
def task_root(tmp_path_factory: pytest.TempPathFactory, archive: Path) -> Path:
    """The zip, unpacked as Lambda does, and not writable."""
    folder = tmp_path_factory.mktemp("task")
    with zipfile.ZipFile(archive) as zipped:
        zipped.extractall(folder)
    return folder


@dataclass
class Emulator:
    """The function behind the emulator."""

    port: int
    log: Path

    def invoke(self, event: dict[str, Any]) -> dict[str, Any]:
        """Send one event, return the function's answer or its error."""
        url = f"http://127.0.0.1:{self.port}/2015-03-31/functions/function/invocations"
        request = urllib.request.Request(url, data=json.dumps(event).encode())
        with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310 (the same)
            return json.loads(answer.read())

    def answers(self) -> bool:
        """Whether it listens."""
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{self.port}/", timeout=1).close()
        except urllib.error.HTTPError as error:
            error.close()
            return True
        except OSError:
            return False
        return True


@pytest.fixture
def emulator(tmp_path: Path, runtime_folder: Path, task_root: Path, target: Any, cloud: Any) -> Iterator[Emulator]:
    """The zip's handler, with the secret of a fresh database, in an otherwise empty environment."""
    port, api_port = free_port(), free_port()
    binary = site_packages() / "samcli" / "local" / "rapid" / "aws-lambda-rie-x86_64"
    # The interpreter itself, not an environment's: -S leaves out every site-packages.
    interpreter = os.path.realpath(sys.executable)
    process = ServerProcess(
        "lambda",
        [
            str(binary),
            "--runtime-interface-emulator-address",
            f"127.0.0.1:{port}",
            "--runtime-api-address",
            f"127.0.0.1:{api_port}",
            "/bin/sh",
            "-c",
            f'cd "{task_root}" && exec "{interpreter}" -S -m awslambdaric lambda_replicator.handler.lambda_handler',
        ],
        log_path=tmp_path / "emulator.log",
        env={
            "PATH": "/usr/bin:/bin",
            "PYTHONPATH": f"{task_root}:{runtime_folder}",
            "PYTHONDONTWRITEBYTECODE": "1",
            "LAMBDA_TASK_ROOT": str(task_root),
            "AWS_LAMBDA_FUNCTION_TIMEOUT": "30",
            "AWS_LAMBDA_FUNCTION_NAME": "employees-replicator",
            "AWS_ENDPOINT_URL": cloud.url,
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "DATABASE_SECRET_ID": cloud.store_secret(target.secret),
            "PGSSLMODE": "prefer",
            "POWERTOOLS_LOG_LEVEL": "DEBUG",
        },
    )
    running = Emulator(port, tmp_path / "emulator.log")
    process.wait_ready(running.answers, timeout_seconds=30)
    yield running
    process.stop()


def test_the_zip_applies_batches(emulator: Emulator, target: Any, make_record: Any) -> None:
    begun = time.monotonic()
    event = {"Records": [make_record(1, 2001, name=VALUE), make_record(2, 2002), make_record(3, 2002, event="REMOVE")]}
    assert emulator.invoke(event) == {"batchItemFailures": []}
    assert time.monotonic() - begun < 30
    assert emulator.invoke({"Records": [make_record(4, 2003, name=VALUE)]}) == {"batchItemFailures": []}
    assert target.execute('SELECT "Id", "Name" FROM public."Employees" ORDER BY 1') == [(2001, VALUE), (2003, VALUE)]
    log = emulator.log.read_text()
    assert log.count('"message":"batch applied"') == 2
    assert '"Namespace":"Dynaurora"' in log
    assert VALUE not in log


def test_the_zip_fails_a_batch_without_telling_its_values(emulator: Emulator, target: Any, make_record: Any) -> None:
    """Lambda logs the exception and keeps it in the answer: both are read here."""
    target.execute(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " RAISE EXCEPTION 'bad row %', NEW USING DETAIL = NEW::text; END $$"
    )
    target.execute('CREATE TRIGGER refuse BEFORE INSERT ON replica."Employees" FOR EACH ROW EXECUTE FUNCTION refuse()')
    answer = emulator.invoke({"Records": [make_record(1, 1, name=VALUE)]})
    assert answer["errorType"] == "TerminalError"
    assert "P0001" in answer["errorMessage"]
    told = json.dumps(answer) + emulator.log.read_text()
    assert "batch failed, nothing of it is stored" in told
    assert VALUE not in told
    assert target.password not in told
    assert target.execute('SELECT count(*) FROM replica."Employees"') == [(0,)]
