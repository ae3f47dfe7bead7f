"""What an event source mapping can invoke: a handler in this process, a function of ministack, or the Lambda runtime
emulator.

Invariant: every target gets the event as JSON carries it, and answers with what JSON can carry. A failure of the
function is a `FunctionError`; a function that was not run is a `ThrottledError`.
"""

import http.client
import json
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit

from pipeline.local.mapping_delivery import FunctionError, ThrottledError
from pipeline.local.ministack import ACCOUNT_ID, REGION
from pipeline.local.raw_aws import Json

if TYPE_CHECKING:
    from types_boto3_lambda import LambdaClient

Target = Callable[[Json], object]
EMULATOR_PATH = "/2015-03-31/functions/function/invocations"


@dataclass
class InvocationContext:
    """The context object a handler receives."""

    function_name: str
    timeout_seconds: float
    memory_limit_in_mb: int = 256
    function_version: str = "$LATEST"
    aws_request_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    started: float = field(default_factory=time.monotonic)

    @property
    def invoked_function_arn(self) -> str:
        """As Lambda would name it."""
        return f"arn:aws:lambda:{REGION}:{ACCOUNT_ID}:function:{self.function_name}"

    def get_remaining_time_in_millis(self) -> int:
        """How long the handler may still run."""
        return max(0, int((self.timeout_seconds - (time.monotonic() - self.started)) * 1000))


def in_process(
    handler: Callable[[Json, Any], object],
    *,
    function_name: str = "replicator",
    timeout_seconds: float = 60.0,
) -> Target:
    """Call a Python handler as the runtime does. It runs in a thread of its own, so that any error of it is
    caught.
    """
    threads = ThreadPoolExecutor(max_workers=1, thread_name_prefix=function_name)

    def invoke(event: Json) -> object:
        context = InvocationContext(function_name, timeout_seconds)
        running = threads.submit(lambda: json.dumps(handler(json.loads(json.dumps(event)), context)))
        error = running.exception()
        if error is not None:
            raise FunctionError(type(error).__name__, str(error)) from error
        return json.loads(running.result())

    return invoke


def lambda_function(client: "LambdaClient", function_name: str) -> Target:
    """Invoke a deployed function by Lambda's Invoke."""

    def invoke(event: Json) -> object:
        try:
            answer = client.invoke(FunctionName=function_name, Payload=json.dumps(event))
        except client.exceptions.TooManyRequestsException as error:
            raise ThrottledError(f"function {function_name} has no concurrency left") from error
        body = answer["Payload"].read()
        result: object = json.loads(body) if body else None
        if "FunctionError" in answer:
            raise _function_error(result)
        return result

    return invoke


def runtime_emulator(url: str, timeout_seconds: float = 900.0) -> Target:
    """Invoke through the Runtime Interface Emulator at `url`, which answers 200 also when the function
    failed.
    """
    address = urlsplit(url)
    path = address.path if address.path.strip("/") else EMULATOR_PATH

    def invoke(event: Json) -> object:
        connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=timeout_seconds)
        try:
            connection.request("POST", path, json.dumps(event))
            body = connection.getresponse().read()
        except OSError as error:
            raise ThrottledError(f"the runtime emulator at {url} cannot be reached") from error
        finally:
            connection.close()
        try:
            result: object = json.loads(body) if body else None
        except ValueError as error:
            raise FunctionError("Runtime.ExitError", body[:200].decode(errors="replace")) from error
        if isinstance(result, dict) and {"errorType", "errorMessage"} <= cast("dict[str, object]", result).keys():
            raise _function_error(cast("object", result))
        return cast("object", result)

    return invoke


def _function_error(result: object) -> FunctionError:
    answer = cast("dict[str, object]", result) if isinstance(result, dict) else {}
    return FunctionError(str(answer.get("errorType", "Unhandled")), str(answer.get("errorMessage", "")))
