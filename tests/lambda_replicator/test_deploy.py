"""The unchanged template, deployed with its zip into the local stack: it creates, delivers, updates, refuses."""

from __future__ import annotations

import json
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.core.errors import TerminalError
from pipeline.dynamodb.streams.event_sources import event_source_mappings, waiting_objects
from pipeline.local.deploy import Deployment, deploy, remove

Deploy = Callable[..., Deployment]


@pytest.fixture
def deploy_stack(cloud: Any, archive: Path, target: Any) -> Iterator[Deploy]:
    """Deploys a stack for one test, whose template creates the table and the secret; removes it afterwards."""
    stack = f"t{uuid.uuid4().hex[:8]}"
    cloudformation = cloud.client("cloudformation")

    def run(**parameters: str | int) -> Deployment:
        given: dict[str, str | int] = {
            "SourceTableName": "Employees",
            "CreateSource": "true",
            "DatabaseSecretJson": json.dumps(target.secret),
            "TlsMode": "prefer",
            "PythonRuntime": f"python3.{sys.version_info.minor}",
            "BatchingWindowSeconds": 0,
            **parameters,
        }
        return deploy(
            cloudformation=cloudformation,
            s3=cloud.client("s3"),
            stack=stack,
            archive=archive,
            code_bucket="dynaurora-code",
            parameters=given,
        )

    yield run
    remove(cloudformation=cloudformation, stack=stack)


def wait_for(found: Callable[[], object], expected: object) -> None:
    """Wait until they are equal; if they do not become equal, show the difference."""
    deadline = time.monotonic() + 60
    while found() != expected and time.monotonic() < deadline:
        time.sleep(0.1)
    assert found() == expected


def test_what_is_written_to_the_table_arrives_in_the_view(cloud: Any, target: Any, deploy_stack: Deploy) -> None:
    deployed = deploy_stack(BatchSize=500)
    outputs = deployed.outputs
    mapping = cloud.client("lambda").get_event_source_mapping(UUID=outputs["EventSourceMappingId"])
    assert (mapping["BatchSize"], mapping["StartingPosition"]) == (500, "TRIM_HORIZON")
    assert mapping["EventSourceArn"] == outputs["SourceStreamArn"]
    assert mapping["DestinationConfig"]["OnFailure"]["Destination"].endswith(outputs["OnFailureBucketName"])
    (seen,) = event_source_mappings(cloud.client("lambda"), outputs["SourceStreamArn"]) or []
    assert (seen.mapping_id, seen.state) == (outputs["EventSourceMappingId"], "Enabled")
    bucket = seen.on_failure_bucket or ""
    assert bucket == outputs["OnFailureBucketName"]
    key = f"{seen.on_failure_prefix}shardId-1/2026/05/14/x"
    cloud.client("s3").put_object(Bucket=bucket, Key=key, Body=b"{}")
    waiting = waiting_objects(cloud.client("s3"), bucket, seen.on_failure_prefix)
    assert waiting is not None
    assert (waiting.count, waiting.oldest is not None, waiting.more) == (1, True, False)
    dynamodb = cloud.client("dynamodb")
    for number in range(1, 4):
        dynamodb.put_item(TableName="Employees", Item={"Id": {"N": str(number)}, "empName": {"S": "Akua"}})
    dynamodb.delete_item(TableName="Employees", Key={"Id": {"N": "2"}})
    rows = 'SELECT "Id", "Name", "Department" FROM public."Employees" ORDER BY 1'
    wait_for(lambda: target.execute(rows), [(1, "Akua", "NA"), (3, "Akua", "NA")])


def test_deploying_again_updates_the_stack_and_nothing_is_updated_twice(cloud: Any, deploy_stack: Deploy) -> None:
    first = deploy_stack(LogLevel="INFO")
    assert deploy_stack(LogLevel="INFO").outputs == first.outputs
    second = deploy_stack(LogLevel="DEBUG")
    assert second.outputs["EventSourceMappingId"] == first.outputs["EventSourceMappingId"]
    function = cloud.client("lambda").get_function_configuration(FunctionName=second.outputs["FunctionName"])
    assert function["Environment"]["Variables"]["POWERTOOLS_LOG_LEVEL"] == "DEBUG"


def test_neither_a_stream_nor_a_new_table_is_refused_with_the_reason(deploy_stack: Deploy) -> None:
    with pytest.raises(TerminalError, match="Give SourceStreamArn, or set CreateSource to true"):
        deploy_stack(CreateSource="false")


def test_a_resource_that_fails_is_named_with_its_reason(deploy_stack: Deploy) -> None:
    absent = "arn:aws:lambda:us-east-1:000000000000:layer:absent:1"
    with pytest.raises(TerminalError, match=r"Replicator \(AWS::Lambda::Function\): .*layer"):
        deploy_stack(CertificateLayerArn=absent)


def test_the_network_is_granted_only_in_a_vpc(cloud: Any, deploy_stack: Deploy) -> None:
    deployed = deploy_stack()
    role = cloud.client("lambda").get_function_configuration(FunctionName=deployed.outputs["FunctionName"])["Role"]
    policies = cloud.client("iam").list_role_policies(RoleName=role.rpartition("/")[2])["PolicyNames"]
    assert sorted(policies) == ["log", "on-failure", "secret", "stream"]
