"""The widely copied handler, rebuilt with the same behaviour: a connection for each invocation, a statement for each
record, the whole table read at the end, every record logged.

`spec.options`: `select` keeps the read of the whole table (with its line of log), `log` keeps the logging. Its secret
is given instead of read from Secrets Manager; the original caches it with Powertools, so this is in its favour. For a
table with more columns than its three, or others, it has the same statements with those columns.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from aws_lambda_powertools import Logger

from tests.bench.contest import Spec, Work
from tests.bench.invocations import invocations
from tests.bench.reference import elements, plain, texts, to_json
from tests.bench.shapes import SHAPES, Shape

psycopg2 = importlib.import_module("psycopg2")
Handler = Callable[[dict[str, Any], Any], None]

CONTEXT = SimpleNamespace(
    function_name="replicator",
    memory_limit_in_mb=256,
    invoked_function_arn="arn:aws:lambda:eu-central-1:111122223333:function:replicator",
    aws_request_id="6f1a0c9e-0000-4000-8000-000000000001",
)


def make_handler(url: str, shape: Shape, *, select: bool, log: bool) -> Handler:
    """Return the handler."""
    logger = Logger(service="seed", level=logging.INFO if log else logging.CRITICAL)
    marks, assigned = ",".join(["%s"] * len(shape.fields)), ", ".join(f"{name} = %s" for name in shape.columns[1:])
    insert = f'INSERT INTO public."{shape.table}" VALUES ({marks})'
    update = f'UPDATE public."{shape.table}" SET {assigned} WHERE "{shape.key.column}" = %s'
    delete = f'DELETE FROM public."{shape.table}" WHERE "{shape.key.column}" = %s'
    values_of = {"narrow": _three_columns, "staff": _six_columns}.get(shape.name, partial(_columns, shape))

    def apply(cursor: Any, record: dict[str, Any]) -> None:  # noqa: ANN401 - psycopg2 has no types here
        _replace_elements(cursor, record, shape)
        change = record.get("dynamodb", {})
        key = change.get("Keys", {}).get(shape.key.attribute, {}).get(shape.key.tag)
        key, image = int(key) if shape.key.tag == "N" else key, change.get("NewImage", {})
        if record["eventName"] == "INSERT":
            logger.info("Inserting record", extra={"record": record})
            cursor.execute(insert, (key, *values_of(image)))
            logger.info("Record inserted successfully into Employees table")
        elif record["eventName"] == "MODIFY":
            logger.info("Modifying record", extra={"record": record})
            cursor.execute(update, (*values_of(image), key))
            logger.info("Record modified successfully into Employees table")
        elif record["eventName"] == "REMOVE":
            logger.info("Removing record", extra={"record": record})
            cursor.execute(delete, (key,))
            logger.info("Record removed successfully from Employees table")

    @logger.inject_lambda_context(log_event=log)
    def lambda_handler(event: dict[str, Any], context: Any) -> None:  # noqa: ANN401, ARG001 - as Lambda calls it
        try:
            database = psycopg2.connect(url)
            cursor = database.cursor()
            for record in event["Records"]:
                apply(cursor, record)
            records = None
            if select:
                cursor.execute(f'SELECT * FROM public."{shape.table}"')
                records = cursor.fetchall()
            cursor.close()
            database.commit()
            if select:
                logger.info("Received event: ", extra={"records": records})
            database.close()
        except Exception:
            logger.exception("Error while fetching data from PostgreSQL")

    return lambda_handler


def _replace_elements(cursor: Any, record: dict[str, Any], shape: Shape) -> None:  # noqa: ANN401 - psycopg2 has no types here
    """Delete the child rows of the changed item, and insert those of its new image."""
    child, change = shape.child, record["dynamodb"]
    if child is None:
        return
    if record["eventName"] != "INSERT":
        key = change["Keys"][shape.key.attribute][shape.key.tag]
        cursor.execute(f'DELETE FROM public."{child.table}" WHERE "{child.key.column}" = %s', (key,))
    if record["eventName"] != "REMOVE":
        marks = ",".join(["%s"] * len(child.fields))
        for element in elements(shape, change["NewImage"]):
            cursor.execute(f'INSERT INTO public."{child.table}" VALUES ({marks})', tuple(texts(child, element)))


def _three_columns(image: dict[str, Any]) -> tuple[Any, ...]:
    return image.get("empName", {}).get("S", "NA"), image.get("empDepartment", {}).get("S", "NA")


def _six_columns(image: dict[str, Any]) -> tuple[Any, ...]:
    attrs = to_json(plain(image["attrs"]))
    return (*_three_columns(image), image["salary"]["N"], image["active"]["BOOL"], attrs)


def _columns(shape: Shape, image: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(texts(shape, image)[1:])


def prepare(spec: Spec) -> Work:
    """Read the events; the first one is applied to warm up."""
    handler = make_handler(spec.url, SHAPES[spec.shape], select=spec.options["select"], log=spec.options["log"])
    return invocations(handler, CONTEXT, Path(spec.text_path))
