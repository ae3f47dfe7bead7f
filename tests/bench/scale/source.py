"""A stand-in for DynamoDB in the scale run: it answers reads by key with the second state of the source.

Items are made from the keys, so it holds none. It answers BatchGetItem and DescribeTable; every other call fails, so
the product goes on without a stream, as with a table whose stream is off.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Generator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.bench.scale import rows
from tests.bench.scale.exports import TABLE_ARN


@contextmanager
def serving(items: int) -> Generator[str]:
    """Serve on a free port; yields the URL."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version, wbufsize, disable_nagle_algorithm = "HTTP/1.1", -1, True

        def do_POST(self) -> None:
            """Answer one call."""
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            operation = self.headers["X-Amz-Target"].rpartition(".")[2]
            answer = _answer(operation, request, items)
            content = json.dumps(answer or {"__type": "x#ValidationException", "message": operation}).encode()
            self.send_response(200 if answer else 400)
            self.send_header("Content-Type", "application/x-amz-json-1.0")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002 - the name of the base class
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


def _answer(operation: str, request: dict[str, Any], items: int) -> dict[str, Any] | None:
    if operation == "DescribeTable":
        key = {"AttributeName": "Id", "KeyType": "HASH"}
        table = {"TableName": "Employees", "TableArn": TABLE_ARN, "TableStatus": "ACTIVE", "KeySchema": [key]}
        return {"Table": table | {"AttributeDefinitions": [{"AttributeName": "Id", "AttributeType": "N"}]}}
    if operation != "BatchGetItem":
        return None
    ((table, asked),) = request["RequestItems"].items()
    numbers = [int(key["Id"]["N"]) for key in asked["Keys"]]
    found = [(number, rows.second_state(number, items)) for number in numbers]
    return {
        "Responses": {table: [json.loads(rows.item(number, state)) for number, state in found if state is not None]},
        "UnprocessedKeys": {},
    }
