"""ministack on loopback: DynamoDB, Streams, Lambda, S3, Secrets Manager, CloudFormation and SQS for a laptop.

Invariant: state is in memory and everything it writes is in the run directory, so that stopping it leaves
nothing.

Facts about ministack 1.5.33, read in its source and seen when running it:
- One process, one event loop: each DynamoDB call is handled whole before the next, and the stream record of a
  write exists when the write is answered. The loop is also what bounds throughput.
- Streams: one shard a stream; sequence numbers of 30 digits, the first 20 being epoch milliseconds with
  leading zeros, the last 10 a counter over all tables; `eventID` is a UUID with dashes (AWS: 32 hex digits);
  creation times are whole seconds; a disabled stream stays readable; records go after 24 hours. The label has
  milliseconds; CloudFormation adds a `Z`.
- TTL deletes items without a stream record.
- Lambda functions (`LAMBDA_EXECUTOR=local`) run as child processes of ministack under *its* interpreter,
  whatever the runtime says, with its site-packages behind the unpacked zip: a missing dependency is noticed
  only if it is not among them (boto3, botocore, pydantic and PyYAML are; psycopg and Powertools are not). A
  worker is kept warm and imports the handler once; concurrent invocations get more workers. Its environment
  is ministack's own plus the function's variables, hence the bare environment given here; `AWS_ENDPOINT_URL`
  is inherited, and so points to the front that serves exports.
- The event source mapping wakes on a write, takes up to BatchSize records, and waits for the handler; no
  batching window.
- CloudFormation takes SAM templates when `aws-sam-translator` is installed beside it. It ignores
  `PointInTimeRecoverySpecification` of a table: enable PITR by `UpdateContinuousBackups` after deployment.
- Credentials are not checked. An access key of 12 digits is taken as the account, any other means
  000000000000.
"""

import http.client
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from pipeline.local.errors import LocalStackError
from pipeline.local.process import LOOPBACK, ServerProcess, free_port, require_free_port

ENVIRONMENT_DIR = Path(".venv-local")
ACCOUNT_ID = "000000000000"
REGION = "us-east-1"
START_ATTEMPTS = 3


class Ministack:
    """A ministack server. `endpoint_url` is what its functions are told to call; without one, itself."""

    def __init__(
        self,
        run_dir: Path,
        port: int | None = None,
        *,
        endpoint_url: str | None = None,
        environment_dir: Path = ENVIRONMENT_DIR,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """`port=None` takes a free one. The log is `<run_dir>/ministack.log`. `environment`: more variables for it."""
        self._run_dir = run_dir.absolute()
        self._scratch = self._run_dir / "ministack"
        self._fixed_port = port
        self._port = port
        self._endpoint_url = endpoint_url
        self._python = environment_dir.absolute() / "bin" / "python"
        self._more_environment = environment or {}
        self._process: ServerProcess | None = None

    def __enter__(self) -> Self:
        """Start."""
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop."""
        self.stop()

    @property
    def port(self) -> int:
        """The port of the running server."""
        if self._port is None:
            raise LocalStackError("ministack was not started; call start() first")
        return self._port

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://{LOOPBACK}:{self.port}"

    def start(self) -> None:
        """Start and return when it answers."""
        if not self._python.exists():
            raise LocalStackError(f"starting ministack: {self._python} is absent; run `make .venv-local/.ready` first")
        if self._fixed_port is not None:
            require_free_port(self._fixed_port, "ministack")
        for attempt in range(1, START_ATTEMPTS + 1):
            self._port = self._fixed_port or free_port()
            try:
                self._launch(self._port)
            except LocalStackError as error:
                if "already in use" not in str(error) or attempt == START_ATTEMPTS:
                    raise
            else:
                return

    def stop(self) -> None:
        """Stop the server and its function workers. Safe to call again."""
        if self._process is not None:
            self._process.stop()
            self._process = None
            shutil.rmtree(self._scratch, ignore_errors=True)

    def _launch(self, port: int) -> None:
        self._scratch.mkdir(parents=True, exist_ok=True)
        self._process = ServerProcess(
            "ministack",
            [str(self._python), "-m", "ministack"],
            log_path=self._run_dir / "ministack.log",
            env=self._environment(port),
        )
        self._process.wait_ready(self._healthy, timeout_seconds=60.0)

    def _healthy(self) -> bool:
        connection = http.client.HTTPConnection(LOOPBACK, self.port, timeout=2.0)
        try:
            connection.request("GET", "/_ministack/health")
            return connection.getresponse().status == http.HTTPStatus.OK
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def _environment(self, port: int) -> dict[str, str]:
        scratch = str(self._scratch)
        return {
            "PATH": os.environ.get("PATH", os.defpath),
            "HOME": scratch,
            "TMPDIR": scratch,
            "LC_ALL": "C.UTF-8",
            "TZ": "UTC",
            "GATEWAY_PORT": str(port),
            "BIND_HOST": LOOPBACK,
            "LOG_LEVEL": "WARNING",
            "LAMBDA_EXECUTOR": "local",
            "MINISTACK_REGION": REGION,
            "S3_DATA_DIR": f"{scratch}/s3",
            "STATE_DIR": f"{scratch}/state",
            # It would look for containers to remove, but the machine's Docker is not its concern.
            "DOCKER_HOST": f"unix://{scratch}/no-docker.sock",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_ENDPOINT_URL": self._endpoint_url or f"http://{LOOPBACK}:{port}",
            **self._more_environment,
        }
