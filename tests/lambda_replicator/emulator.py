"""AWS's Runtime Interface Emulator around the packaged zip, as Lambda would run it.

Its path contains only the zip, the runtime client and boto3. So a dependency that is missing from the zip fails here,
while the local stack would lend its own.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pipeline.local.process import ServerProcess, free_port

ROOT = Path(__file__).parents[2]
ENVIRONMENT = ROOT / ".venv-rie"
# Lambda's Python runtime provides its client, and boto3 with its dependencies.
RUNTIME = ("awslambdaric", "runtime_client*.so", "simplejson", "snapshot_restore_py")
SDK = ("boto3", "botocore", "s3transfer", "dateutil", "jmespath", "urllib3", "six")
HANDLER = "lambda_replicator.handler.lambda_handler"


def site_packages() -> Path:
    """The packages of .venv-rie, which `make .venv-rie/.ready` sets up."""
    program = "import sysconfig; print(sysconfig.get_path('platlib'))"
    python = ENVIRONMENT / "bin" / "python"
    return Path(subprocess.run([python, "-c", program], check=True, capture_output=True, text=True).stdout.strip())


def interpreter() -> str:
    """The base interpreter, not an environment's: -S then leaves out every site-packages."""
    return os.path.realpath(sys.executable)


def make_runtime(folder: Path) -> Path:
    """Fill a folder with the files of /var/runtime on Lambda, and nothing else of any environment."""
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


def unpack(archive: Path, folder: Path) -> Path:
    """Unpack the zip, as Lambda does."""
    with zipfile.ZipFile(archive) as zipped:
        zipped.extractall(folder)
    return folder


@dataclass(frozen=True)
class Function:
    """The folders of a function's code and runtime, and its variables."""

    task_root: Path
    runtime: Path
    environment: Mapping[str, str]

    def variables(self) -> dict[str, str]:
        """The complete environment of its process."""
        return {
            "PATH": "/usr/bin:/bin",
            "PYTHONPATH": f"{self.task_root}:{self.runtime}",
            "PYTHONDONTWRITEBYTECODE": "1",
            "LAMBDA_TASK_ROOT": str(self.task_root),
            "AWS_LAMBDA_FUNCTION_TIMEOUT": "30",
            "AWS_LAMBDA_FUNCTION_NAME": "employees-replicator",
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            **self.environment,
        }


class Emulator:
    """The function behind the emulator, in an otherwise empty environment; its first invocation starts it."""

    def __init__(self, function: Function, log: Path) -> None:
        self.log = log
        self._port = free_port()
        self._process = ServerProcess(
            "lambda",
            [
                str(site_packages() / "samcli" / "local" / "rapid" / "aws-lambda-rie-x86_64"),
                "--runtime-interface-emulator-address",
                f"127.0.0.1:{self._port}",
                "--runtime-api-address",
                f"127.0.0.1:{free_port()}",
                "/bin/sh",
                "-c",
                f'cd "{function.task_root}" && exec "{interpreter()}" -S -m awslambdaric {HANDLER}',
            ],
            log_path=log,
            env=function.variables(),
        )

    def __enter__(self) -> Self:
        """Wait until it listens."""
        self._process.wait_ready(self._answers, timeout_seconds=30)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Stop it."""
        self._process.stop()

    def invoke(self, event: dict[str, Any] | list[Any]) -> dict[str, Any]:
        """Send one event, return the function's answer or its error."""
        url = f"http://127.0.0.1:{self._port}/2015-03-31/functions/function/invocations"
        request = urllib.request.Request(url, data=json.dumps(event).encode())
        with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310 - loopback
            return json.loads(answer.read())

    def _answers(self) -> bool:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{self._port}/", timeout=1).close()
        except urllib.error.HTTPError as error:
            error.close()
            return True
        except OSError:
            return False
        return True
