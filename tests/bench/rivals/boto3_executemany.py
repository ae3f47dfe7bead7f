"""boto3's TypeDeserializer and psycopg's executemany, as in most hand-written loaders."""

from __future__ import annotations

from itertools import islice

import psycopg

from tests.bench.contest import Spec, Work
from tests.bench.rivals.boto3_rows import rows
from tests.bench.shapes import SHAPES

_ROWS_AT_ONCE = 1000


def prepare(spec: Spec) -> Work:
    """Connect."""
    connection, shape = psycopg.connect(spec.url), SHAPES[spec.shape]
    marks = ", ".join(f"%s::{field.type}" for field in shape.fields)
    insert = f"INSERT INTO {spec.table} ({', '.join(shape.columns)}) VALUES ({marks})"

    def work() -> None:
        made = rows(spec)
        with connection.cursor() as cursor:
            while some := list(islice(made, _ROWS_AT_ONCE)):
                cursor.executemany(insert.encode(), some)
        connection.commit()

    return work
