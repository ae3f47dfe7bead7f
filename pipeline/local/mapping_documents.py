"""The two JSON documents of an event source mapping: a record of the event, and the object left for discarded
records.

Invariant: both are as AWS writes them; sources are the Lambda developer guide and genuine documents.
"""

import json
import uuid
from datetime import UTC, datetime

from pipeline.local.mapping_delivery import Discard
from pipeline.local.ministack import ACCOUNT_ID, REGION
from pipeline.local.raw_aws import Json

FUNCTION_ARN = f"arn:aws:lambda:{REGION}:{ACCOUNT_ID}:function:replicator"


def event_record(record: Json, stream_arn: str) -> Json:
    """A GetRecords record in the form of a Lambda event."""
    event: Json = {
        "eventID": record["eventID"].replace("-", ""),
        "eventName": record["eventName"],
        "eventVersion": "1.1",
        "eventSource": "aws:dynamodb",
        "awsRegion": record["awsRegion"],
        "dynamodb": record["dynamodb"],
        "eventSourceARN": stream_arn,
    }
    identity: Json | None = record.get("userIdentity")
    if identity:
        event["userIdentity"] = {"type": identity["Type"], "principalId": identity["PrincipalId"]}
    return event


def failure_document(shard_id: str, stream_arn: str, discard: Discard, now: datetime) -> bytes:
    """The object that an S3 on-failure destination receives: metadata, and the whole event in `payload`."""
    first, last = (discard.records[index]["dynamodb"] for index in (0, -1))
    document: Json = {
        "requestContext": {
            "requestId": str(uuid.uuid4()),
            "functionArn": FUNCTION_ARN,
            "condition": discard.condition,
            "approximateInvokeCount": discard.invocations,
        },
        "responseContext": {"statusCode": 200, "executedVersion": "$LATEST"},
        "version": "1.0",
        "timestamp": now.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "DDBStreamBatchInfo": {
            "shardId": shard_id,
            "startSequenceNumber": first["SequenceNumber"],
            "endSequenceNumber": last["SequenceNumber"],
            "approximateArrivalOfFirstRecord": _arrival(first),
            "approximateArrivalOfLastRecord": _arrival(last),
            "batchSize": len(discard.records),
            "streamArn": stream_arn,
        },
        "payload": json.dumps({"Records": list(discard.records)}, separators=(",", ":")),
    }
    if discard.function_error:
        document["responseContext"]["functionError"] = "Unhandled"
    return json.dumps(document, separators=(",", ":")).encode()


def _arrival(change: Json) -> str:
    return datetime.fromtimestamp(change["ApproximateCreationDateTime"], UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
