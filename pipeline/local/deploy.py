"""Deploys the replicator's template with its zip through CloudFormation, to the local stack or to any endpoint.

Invariant: it deploys the unchanged template file and sends it to the service whole; only parameters differ between a
laptop and AWS. A deployment that fails says which resource failed and why.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from botocore.exceptions import ClientError, WaiterError

from pipeline.core.errors import TerminalError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from types_boto3_cloudformation import CloudFormationClient
    from types_boto3_cloudformation.type_defs import ParameterTypeDef
    from types_boto3_s3 import S3Client
    from types_boto3_s3.literals import BucketLocationConstraintType

TEMPLATE = Path(__file__).resolve().parents[2] / "lambda_replicator" / "template.yaml"
# A template in the request itself may be this long; a longer one must be in S3.
_INLINE_LIMIT_BYTES = 51_200


@dataclass(frozen=True)
class Deployment:
    """A stack that is up: its outputs by name (FunctionName, SourceStreamArn, EventSourceMappingId …)."""

    stack: str
    outputs: Mapping[str, str]


def deploy(
    *,
    cloudformation: CloudFormationClient,
    s3: S3Client,
    stack: str,
    archive: Path,
    code_bucket: str,
    parameters: Mapping[str, str | int],
    template: Path = TEMPLATE,
) -> Deployment:
    """Upload the zip, create or update the stack, wait for it. Raises TerminalError naming what failed.

    The bucket is created if it is missing. The zip's key is its digest, so CloudFormation sees a new zip as a change,
    and the same zip as none.
    """
    key = _upload(s3, archive, code_bucket)
    values = {"CodeBucket": code_bucket, "CodeKey": key, **parameters}
    body = template.read_text()
    request: dict[str, Any] = {
        "StackName": stack,
        "Parameters": [_parameter(name, value) for name, value in values.items()],
        "Capabilities": ["CAPABILITY_IAM", "CAPABILITY_AUTO_EXPAND"],
    }
    if len(body.encode()) <= _INLINE_LIMIT_BYTES:
        request["TemplateBody"] = body
    else:
        request["TemplateURL"] = _upload_template(s3, body, code_bucket)
    _apply(cloudformation, stack, request)
    described = cloudformation.describe_stacks(StackName=stack)["Stacks"][0]
    outputs = {o.get("OutputKey", ""): o.get("OutputValue", "") for o in described.get("Outputs", [])}
    return Deployment(stack=stack, outputs=outputs)


def remove(*, cloudformation: CloudFormationClient, stack: str) -> None:
    """Delete the stack and wait. The on-failure bucket and its contents stay."""
    cloudformation.delete_stack(StackName=stack)
    cloudformation.get_waiter("stack_delete_complete").wait(
        StackName=stack, WaiterConfig={"Delay": 1, "MaxAttempts": 300}
    )


def _apply(cloudformation: CloudFormationClient, stack: str, request: dict[str, Any]) -> None:
    """Create the stack, or update the one that is there, and wait until it is complete."""
    exists = _exists(cloudformation, stack)
    try:
        if exists:
            cloudformation.update_stack(**request)
        else:
            cloudformation.create_stack(**request)
    except ClientError as error:
        message = error.response.get("Error", {}).get("Message", "")
        if "No updates are to be performed" in message:
            return
        raise TerminalError(f"deploying stack {stack}: CloudFormation refused it: {message}") from error
    waiter = cloudformation.get_waiter("stack_update_complete" if exists else "stack_create_complete")
    try:
        waiter.wait(StackName=stack, WaiterConfig={"Delay": 1, "MaxAttempts": 900})
    except WaiterError as error:
        raise TerminalError(
            f"deploying stack {stack}: {failure(cloudformation, stack)}",
            hint="correct the cause, delete the stack if it is in ROLLBACK_COMPLETE, and deploy again",
        ) from error


def failure(cloudformation: CloudFormationClient, stack: str) -> str:
    """The first resource that failed and the service's reason, from the stack's own events."""
    events = cloudformation.describe_stack_events(StackName=stack)["StackEvents"]
    for event in sorted(events, key=lambda e: e["Timestamp"]):
        reason = event.get("ResourceStatusReason", "")
        if event.get("ResourceStatus", "").endswith("FAILED") and "cancelled" not in reason.lower():
            return f"{event.get('LogicalResourceId')} ({event.get('ResourceType')}): {reason}"
    stacks = cloudformation.describe_stacks(StackName=stack)["Stacks"]
    return f"{stacks[0]['StackStatus']}: {stacks[0].get('StackStatusReason', 'no reason given')}"


def _exists(cloudformation: CloudFormationClient, stack: str) -> bool:
    try:
        found = cloudformation.describe_stacks(StackName=stack)["Stacks"]
    except ClientError as error:
        if "does not exist" in error.response.get("Error", {}).get("Message", ""):
            return False
        raise
    return found[0]["StackStatus"] != "DELETE_COMPLETE"


def _parameter(name: str, value: str | int) -> ParameterTypeDef:
    return {"ParameterKey": name, "ParameterValue": str(value)}


def _upload(s3: S3Client, archive: Path, bucket: str) -> str:
    content = archive.read_bytes()
    key = f"dynaurora/{hashlib.sha256(content).hexdigest()[:16]}/{archive.name}"
    _ensure_bucket(s3, bucket)
    s3.put_object(Bucket=bucket, Key=key, Body=content)
    return key


def _upload_template(s3: S3Client, body: str, bucket: str) -> str:
    key = f"dynaurora/{hashlib.sha256(body.encode()).hexdigest()[:16]}/template.yaml"
    s3.put_object(Bucket=bucket, Key=key, Body=body.encode())
    return f"{s3.meta.endpoint_url}/{bucket}/{key}"


def _ensure_bucket(s3: S3Client, bucket: str) -> None:
    try:
        s3.head_bucket(Bucket=bucket)
    except ClientError as error:
        if error.response.get("Error", {}).get("Code") not in {"404", "NoSuchBucket"}:
            raise
        region = cast("BucketLocationConstraintType", s3.meta.region_name)
        # us-east-1 is the only Region that must not be named here.
        if s3.meta.region_name == "us-east-1":
            s3.create_bucket(Bucket=bucket)
        else:
            s3.create_bucket(
                Bucket=bucket,
                CreateBucketConfiguration={"LocationConstraint": region},
            )
