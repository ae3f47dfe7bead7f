"""The template as CloudFormation reads it: parameters, permissions, the event source mapping's settings, the alarms."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from lambda_replicator import package

PATH = Path(__file__).parents[2] / "lambda_replicator" / "template.yaml"


class Loader(yaml.SafeLoader):
    """Reads `!Ref x` and the like as {"Ref": x}."""


def _intrinsic(loader: yaml.SafeLoader, suffix: str, node: yaml.Node) -> dict[str, Any]:
    if isinstance(node, yaml.ScalarNode):
        value: Any = loader.construct_scalar(node)
    elif isinstance(node, yaml.SequenceNode):
        value = loader.construct_sequence(node, deep=True)
    else:
        assert isinstance(node, yaml.MappingNode)
        value = loader.construct_mapping(node, deep=True)
    return {suffix if suffix in {"Ref", "Condition"} else f"Fn::{suffix}": value}


Loader.add_multi_constructor("!", _intrinsic)  # pyright: ignore[reportUnknownMemberType] (untyped in the stubs)


@pytest.fixture(scope="module")
def template() -> dict[str, Any]:
    """The file, parsed."""
    return yaml.load(PATH.read_text(), Loader)  # noqa: S506 (a SafeLoader with CloudFormation's tags)


def statements(template: dict[str, Any]) -> list[dict[str, Any]]:
    """Every statement of the role, the conditional ones included."""
    found: list[dict[str, Any]] = []

    def collect(node: Any) -> None:
        if isinstance(node, list):
            for part in node:  # pyright: ignore[reportUnknownVariableType]
                collect(part)
        elif isinstance(node, dict):
            if "Effect" in node:
                found.append(node)  # pyright: ignore[reportUnknownArgumentType]
            else:
                for part in node.values():  # pyright: ignore[reportUnknownVariableType]
                    collect(part)

    collect(template["Resources"]["Role"]["Properties"]["Policies"])
    return found


def actions(statement: dict[str, Any]) -> set[str]:
    """Its actions, one or many."""
    action = statement["Action"]
    return {action} if isinstance(action, str) else set(action)


def test_the_role_holds_what_is_needed_and_no_more(template: dict[str, Any]) -> None:
    allowed = {action for s in statements(template) if s["Effect"] == "Allow" for action in actions(s)}
    assert allowed == {
        "dynamodb:DescribeStream", "dynamodb:GetRecords", "dynamodb:GetShardIterator", "dynamodb:ListStreams",
        "secretsmanager:GetSecretValue", "logs:CreateLogStream", "logs:PutLogEvents", "s3:PutObject", "s3:ListBucket",
        "kms:Decrypt", "kms:GenerateDataKey",
        "ec2:CreateNetworkInterface", "ec2:DescribeNetworkInterfaces", "ec2:DescribeSubnets",
        "ec2:DeleteNetworkInterface", "ec2:AssignPrivateIpAddresses", "ec2:UnassignPrivateIpAddresses",
    }  # fmt: skip
    assert "ManagedPolicyArns" not in template["Resources"]["Role"]["Properties"]
    assert "Policies" not in template["Resources"]["Replicator"]["Properties"]


def test_only_network_interfaces_are_granted_on_everything_and_not_to_the_code(template: dict[str, Any]) -> None:
    broad = [s for s in statements(template) if s["Resource"] == "*"]
    assert {s["Effect"] for s in broad} == {"Allow", "Deny"}
    assert all(action.startswith("ec2:") for s in broad for action in actions(s))
    allow, deny = sorted(broad, key=lambda s: s["Effect"])
    assert actions(allow) == actions(deny)
    assert "lambda:SourceFunctionArn" in deny["Condition"]["ArnEquals"]
    network = template["Resources"]["Role"]["Properties"]["Policies"][-1]
    assert network["Fn::If"][0] == "HasVpc"


def test_stream_and_secret_are_read_by_their_own_arn(template: dict[str, Any]) -> None:
    by_action = {action: s["Resource"] for s in statements(template) for action in actions(s)}
    stream = {"Fn::If": ["CreatesSource", {"Fn::GetAtt": "SourceTable.StreamArn"}, {"Ref": "SourceStreamArn"}]}
    assert by_action["dynamodb:GetRecords"] == stream
    assert template["Resources"]["Replicator"]["Properties"]["Events"]["Stream"]["Properties"]["Stream"] == stream
    secrets = [s["Resource"] for s in statements(template) if "secretsmanager:GetSecretValue" in actions(s)]
    assert secrets[0]["Fn::If"][2] == {"Ref": "DatabaseSecretArn"}
    assert secrets[1:] == [{"Ref": "PrivacyKeySecretArn"}]
    variables = template["Resources"]["Replicator"]["Properties"]["Environment"]["Variables"]
    assert variables["PRIVACY_KEY_SECRET_ID"]["Fn::If"][:2] == ["HasPrivacyKey", {"Ref": "PrivacyKeySecretArn"}]


def test_the_mapping_loses_nothing(template: dict[str, Any]) -> None:
    mapping = template["Resources"]["Replicator"]["Properties"]["Events"]["Stream"]["Properties"]
    assert mapping["StartingPosition"] == "TRIM_HORIZON"
    assert mapping["FunctionResponseTypes"] == ["ReportBatchItemFailures"]
    assert mapping["BisectBatchOnFunctionError"] is True
    assert (
        mapping["DestinationConfig"]["OnFailure"]["Destination"]["Fn::Sub"][0] == "arn:${AWS::Partition}:s3:::${Bucket}"
    )
    assert mapping["MetricsConfig"] == {"Metrics": ["EventCount"]}
    assert "FilterCriteria" not in mapping


def test_every_setting_of_the_mapping_is_a_parameter(template: dict[str, Any]) -> None:
    mapping = template["Resources"]["Replicator"]["Properties"]["Events"]["Stream"]["Properties"]
    parameters = template["Parameters"]
    assert mapping["BatchSize"] == {"Ref": "BatchSize"}
    assert (parameters["BatchSize"]["Default"], parameters["BatchSize"]["MaxValue"]) == (100, 10_000)
    assert mapping["MaximumBatchingWindowInSeconds"] == {"Ref": "BatchingWindowSeconds"}
    assert mapping["MaximumRetryAttempts"] == {"Ref": "RetryAttempts"}
    assert mapping["ParallelizationFactor"] == {"Ref": "ParallelizationFactor"}
    assert mapping["MaximumRecordAgeInSeconds"] == {"Ref": "MaximumRecordAgeSeconds"}
    # Lambda discards records, whole and to S3, before the stream drops them.
    assert parameters["MaximumRecordAgeSeconds"]["Default"] < 86_400


def test_concurrency_is_stated_against_the_connections(template: dict[str, Any]) -> None:
    function = template["Resources"]["Replicator"]["Properties"]
    assert function["ReservedConcurrentExecutions"]["Fn::If"][1] == {"Ref": "ReservedConcurrency"}
    assert "max_connections" in template["Description"]
    assert "max_connections" in template["Parameters"]["ReservedConcurrency"]["Description"]


def test_the_alarms(template: dict[str, Any]) -> None:
    alarms = {
        r["Properties"]["MetricName"]: r["Properties"]
        for r in template["Resources"].values()
        if r["Type"] == "AWS::CloudWatch::Alarm"
    }
    assert set(alarms) == {
        "IteratorAge", "Errors", "Throttles", "OnFailureDestinationDeliveredEventCount", "DroppedEventCount", "Rejected"
    }  # fmt: skip
    assert alarms["IteratorAge"]["Statistic"] == "Maximum"
    assert alarms["Rejected"]["Namespace"] == "Dynaurora"
    for name in ("OnFailureDestinationDeliveredEventCount", "DroppedEventCount"):
        assert alarms[name]["Dimensions"] == [{"Name": "EventSourceMappingUUID", "Value": {"Ref": "ReplicatorStream"}}]
    assert all("AlarmActions" in alarm for alarm in alarms.values())


def test_the_table_made_here_is_fit_for_replication_and_export(template: dict[str, Any]) -> None:
    table = template["Resources"]["SourceTable"]
    assert table["Condition"] == "CreatesSource"
    assert table["Properties"]["StreamSpecification"] == {"StreamViewType": "NEW_IMAGE"}
    assert table["Properties"]["PointInTimeRecoverySpecification"] == {"PointInTimeRecoveryEnabled": True}
    assert template["Parameters"]["DatabaseSecretJson"]["NoEcho"] is True


def test_the_function_is_what_the_zip_was_built_for(template: dict[str, Any]) -> None:
    function = template["Resources"]["Replicator"]["Properties"]
    assert function["Architectures"] == ["x86_64"]
    assert package.PLATFORM.startswith("x86_64")
    assert template["Parameters"]["PythonRuntime"]["Default"] == f"python{package.PYTHON_VERSION}"
    assert function["Handler"] == "lambda_replicator.handler.lambda_handler"
    assert function["Environment"]["Variables"]["DATABASE_SSLMODE"] == {"Ref": "TlsMode"}
    assert template["Parameters"]["TlsMode"]["Default"] == ""  # require, or verify-full with a bundle
