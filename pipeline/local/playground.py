"""The local stack with the whole product on it: the mapping migrated, the replicator deployed from its template.

Invariant: it runs what AWS would run: the unchanged `lambda_replicator/template.yaml`, with the zip that `make lambda`
builds; only parameters differ. Everything ends with the context.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urlsplit

import boto3.session

from pipeline.aurora.schema.migrate import migrate
from pipeline.jobs.services import Services
from pipeline.local.deploy import Deployment, deploy
from pipeline.local.errors import LocalStackError
from pipeline.local.ministack import ENVIRONMENT_DIR, REGION
from pipeline.local.stack import LocalStack
from pipeline.mappings import load_mappings
from pipeline.settings import Settings

if TYPE_CHECKING:
    from types_boto3_dynamodb.client import DynamoDBClient

    from pipeline.core.model.mapping import TableMapping

CODE_BUCKET, EXPORT_BUCKET = "dynaurora-code", "dynaurora-exports"
# Stack name of the replicator for the demo's only table.
STACK = "dynaurora-employees"
# So that the hours of a day can be caught up, though the table is new.
RECOVERY_REACH_SECONDS = 25 * 3600.0


class Playground:
    """A stack on which the seed's table `Employees` is replicated. Use as a context manager."""

    def __init__(
        self,
        run_dir: Path,
        archive: Path,
        *,
        tables: Path = Path("tables"),
        ports: tuple[int | None, int | None] = (None, None),
        progress: Callable[[str], None],
    ) -> None:
        """`archive` is the zip, built for the Python that the local emulator runs on. `ports`: PostgreSQL, AWS."""
        self.archive, self.tables, self._progress = archive, tables, progress
        self.stack = LocalStack(
            run_dir,
            postgres_port=ports[0],
            aws_port=ports[1],
            fresh=True,
            export_delay_seconds=3.0,
            recovery_reach_seconds=RECOVERY_REACH_SECONDS,
            progress=progress,
        )
        self.deployment: Deployment | None = None

    def __enter__(self) -> Self:
        """Start the servers, migrate, deploy."""
        self.stack.start()
        try:
            self._set_up()
        except BaseException:
            self.stack.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop everything."""
        self.stack.stop()

    def environment(self) -> dict[str, str]:
        """Variables with which the product and the AWS CLI reach this playground and nothing else."""
        return {
            **self.stack.environment(),
            "DYNAURORA_TABLES": str(self.tables.absolute()),
            "DYNAURORA_EXPORT_BUCKET": EXPORT_BUCKET,
        }

    @cached_property
    def services(self) -> Services:
        """The product's own access to this playground."""
        return Services(Settings.from_environment(self.environment()))

    @cached_property
    def mapping(self) -> TableMapping:
        """The mapping of `Employees`."""
        return next(m for m in load_mappings(self.tables) if m.table == "Employees")

    @cached_property
    def dynamodb(self) -> DynamoDBClient:
        """A client as any application would make it."""
        return self._client("dynamodb")

    def replicate(self, *, on: bool) -> None:
        """Enable or disable the replicator's event source mapping, as an operator can; it resumes where it stopped."""
        if self.deployment is None:
            raise LocalStackError("switching the replicator: it is not deployed; enter the playground first")
        mapping_id = self.deployment.outputs["EventSourceMappingId"]
        self._client("lambda").update_event_source_mapping(UUID=mapping_id, Enabled=on)

    def _client(self, service: str) -> Any:  # noqa: ANN401 - the stubs type a client by its literal name
        session: Any = boto3.session.Session()
        return session.client(
            service,
            endpoint_url=self.stack.endpoint_url,
            region_name=REGION,
            aws_access_key_id="test",
            aws_secret_access_key="test",  # noqa: S106 - the emulator checks none
        )

    def _set_up(self) -> None:
        with self.services.connect("dynaurora migrate") as connection:
            migrate(connection, [self.mapping])
        self._progress("database migrated to the mapping")
        s3 = self._client("s3")
        s3.create_bucket(Bucket=EXPORT_BUCKET)
        self.deployment = deploy(
            cloudformation=self._client("cloudformation"),
            s3=s3,
            stack=STACK,
            archive=self.archive,
            code_bucket=CODE_BUCKET,
            parameters=self._parameters(),
        )
        self.dynamodb.update_continuous_backups(
            TableName="Employees", PointInTimeRecoverySpecification={"PointInTimeRecoveryEnabled": True}
        )
        self._progress(f"replicator deployed from its template ({self.archive.stat().st_size / 1e6:.1f} MB)")

    def _parameters(self) -> dict[str, str | int]:
        url = urlsplit(self.stack.postgres.url)
        secret = {
            "username": url.username,
            "password": url.password or "",
            "host": url.hostname,
            "port": url.port,
            "dbname": url.path.lstrip("/"),
        }
        return {
            "SourceTableName": "Employees",
            "CreateSource": "true",
            "DatabaseSecretJson": json.dumps(secret),
            "TlsMode": "disable",
            "PythonRuntime": f"python{emulator_python_version()}",
            "MappingName": self.mapping.name,
        }


def emulator_python_version() -> str:
    """Minor version of the Python that the local emulator runs functions with."""
    executable = ENVIRONMENT_DIR / "bin" / "python"
    code = "import sys; print('%d.%d' % sys.version_info[:2])"
    return subprocess.run(
        [executable, "-c", code], check=True, capture_output=True, text=True, env=dict(os.environ)
    ).stdout.strip()
