"""The few AWS calls that the export service makes, on the wire: requests and answers stay JSON as DynamoDB writes it.

Invariant: an attribute value is never converted, so the export contains exactly what was read from the table.

The caller's own credential scope is passed on, so that account and region are those of the export request.
"""

import http.client
import json
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from pipeline.local.process import LOOPBACK

# JSON as DynamoDB speaks it; its shape is known from the operation only.
Json = dict[str, Any]
STREAM_PAGE = 1000


class AwsError(Exception):
    """An AWS call answered with an error; `code` is its name."""

    def __init__(self, code: str, message: str) -> None:
        """`code` as in the service's own documentation."""
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message


@dataclass(frozen=True)
class RawAws:
    """Calls to the server at `port` in the name of `access_key` in `region`."""

    port: int
    access_key: str
    region: str

    def _authorization(self, service: str) -> str:
        scope = f"{self.access_key}/20200101/{self.region}/{service}/aws4_request"
        return f"AWS4-HMAC-SHA256 Credential={scope}, SignedHeaders=host, Signature=local"

    def _json_call(self, target: str, request: Json) -> Json:
        connection = http.client.HTTPConnection(LOOPBACK, self.port, timeout=60.0)
        try:
            headers = {"X-Amz-Target": target, "Content-Type": "application/x-amz-json-1.0"}
            headers["Authorization"] = self._authorization("dynamodb")
            connection.request("POST", "/", json.dumps(request).encode(), headers)
            response = connection.getresponse()
            answer: Json = json.loads(response.read() or b"{}")
        finally:
            connection.close()
        if response.status != http.HTTPStatus.OK:
            raise AwsError(str(answer.get("__type", "Unknown")).rpartition("#")[2], str(answer.get("message", "")))
        return answer

    def dynamodb(self, operation: str, request: Json) -> Json:
        """One DynamoDB call."""
        return self._json_call(f"DynamoDB_20120810.{operation}", request)

    def streams(self, operation: str, request: Json) -> Json:
        """One DynamoDB Streams call."""
        return self._json_call(f"DynamoDBStreams_20120810.{operation}", request)

    def kinesis(self, operation: str, request: Json) -> Json:
        """One Kinesis call."""
        return self._json_call(f"Kinesis_20131202.{operation}", request)

    def scan(self, table: str) -> Generator[Json]:
        """Every item of a table, by consistent reads of one page after another."""
        request: Json = {"TableName": table, "ConsistentRead": True}
        while True:
            page = self.dynamodb("Scan", request)
            yield from page["Items"]
            if "LastEvaluatedKey" not in page:
                return
            request["ExclusiveStartKey"] = page["LastEvaluatedKey"]

    def s3_put(self, bucket: str, key: str, body: bytes) -> str:
        """Write one object; returns its ETag without quotes."""
        connection = http.client.HTTPConnection(LOOPBACK, self.port, timeout=60.0)
        try:
            headers = {"Authorization": self._authorization("s3"), "Content-Type": "application/octet-stream"}
            connection.request("PUT", f"/{bucket}/{quote(key)}", body, headers)
            response = connection.getresponse()
            answer = response.read().decode(errors="replace")
        finally:
            connection.close()
        if response.status != http.HTTPStatus.OK:
            code = "NoSuchBucket" if "NoSuchBucket" in answer else f"S3Status{response.status}"
            raise AwsError(code, f"s3 refused an object in bucket {bucket}")
        return (response.getheader("ETag") or "").strip('"')

    def s3_has_bucket(self, bucket: str) -> bool:
        """Whether the bucket exists."""
        connection = http.client.HTTPConnection(LOOPBACK, self.port, timeout=60.0)
        try:
            connection.request("HEAD", f"/{bucket}", headers={"Authorization": self._authorization("s3")})
            return connection.getresponse().status == http.HTTPStatus.OK
        finally:
            connection.close()
