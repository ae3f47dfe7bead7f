"""pandas frames written as CSV and sent by COPY, as pandas' own documentation advises for PostgreSQL."""

from __future__ import annotations

import io

import psycopg

from tests.bench.contest import Spec, Work
from tests.bench.rivals.pandas_frames import frames
from tests.bench.shapes import SHAPES

_NULL = "\\N"


def prepare(spec: Spec) -> Work:
    """Connect."""
    connection, shape = psycopg.connect(spec.url), SHAPES[spec.shape]
    copy = f"COPY {spec.table} ({', '.join(shape.columns)}) FROM STDIN (FORMAT csv, NULL '{_NULL}')"

    def work() -> None:
        with connection.cursor() as cursor, cursor.copy(copy.encode()) as sink:
            for frame in frames(spec):
                for field in shape.fields:
                    if field.tag == "B":
                        frame[field.column] = frame[field.column].map(_hex)
                    elif field.tag == "SS":
                        frame[field.column] = frame[field.column].map(_array)
                text = io.StringIO()
                frame.to_csv(text, index=False, header=False, na_rep=_NULL, lineterminator="\n")
                sink.write(text.getvalue())
        connection.commit()

    return work


def _hex(value: bytes | None) -> str | None:
    return value if value is None else "\\x" + value.hex()


def _array(values: list[str] | None) -> str | None:
    if values is None:
        return None
    return "{" + ",".join('"' + v.replace("\\", "\\\\").replace('"', '\\"') + '"' for v in values) + "}"
