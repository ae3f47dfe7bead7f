"""Dynaurora's replicator: the Lambda function's own handler, with all its logging and counting."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

from lambda_replicator.handler import lambda_handler
from tests.bench.contest import Spec, Work
from tests.bench.invocations import invocations

CONTEXT = SimpleNamespace(
    aws_request_id="6f1a0c9e-0000-4000-8000-000000000001",
    get_remaining_time_in_millis=lambda: 600_000,
)


def prepare(spec: Spec) -> Work:
    """Set the function's environment; `spec.location` is the folder of mappings."""
    os.environ["DATABASE_URL"] = spec.url
    os.environ["DYNAURORA_TABLES"] = spec.location
    return invocations(lambda_handler, CONTEXT, Path(spec.text_path))
