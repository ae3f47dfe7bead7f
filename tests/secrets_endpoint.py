"""Secrets Manager with one secret, which counts the requests for it; the emulated one does not count them."""

from __future__ import annotations

import json
import threading
from collections.abc import Generator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

SECRET_ID = "dynaurora/database"


class SecretsEndpoint:
    """An endpoint for AWS_ENDPOINT_URL; it answers with `secret`, and `fetches` counts the answers."""

    def __init__(self, secret: dict[str, Any]) -> None:
        self.secret = secret
        self.fetches = 0
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._serving = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        self._serving.start()

    @property
    def environment(self) -> dict[str, str]:
        """The variables with which a process reads its secret here."""
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self._server.server_port}",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
            "DATABASE_SECRET_ID": SECRET_ID,
        }

    def close(self) -> None:
        """Stop."""
        self._server.shutdown()
        self._serving.join()
        self._server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                assert self.headers["X-Amz-Target"] == "secretsmanager.GetSecretValue"
                assert asked["SecretId"] == SECRET_ID
                endpoint.fetches += 1
                body = json.dumps({"Name": SECRET_ID, "SecretString": json.dumps(endpoint.secret)}).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/x-amz-json-1.1")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
                """Write nothing to the tests' output."""

        return Handler


@contextmanager
def secrets_endpoint(**secret: Any) -> Generator[SecretsEndpoint]:  # noqa: ANN401 - a secret's fields
    """An endpoint with this secret, for the block."""
    endpoint = SecretsEndpoint(secret)
    try:
        yield endpoint
    finally:
        endpoint.close()
