"""DuckDB reads the export, Arrow carries it, ADBC's PostgreSQL driver copies it in.

It has no type for a number of 38 free digits and no jsonb: those columns go as text into a table of texts, and are cast
there. A list or map needs a Python function of ours, because its SQL does not descend into DynamoDB's JSON.
"""

from __future__ import annotations

import importlib
import json
from typing import Any

from tests.bench.contest import Spec, Work
from tests.bench.reference import holds_nul, plain, to_json
from tests.bench.shapes import SHAPES, Field

_CAST = {"bigint": "BIGINT", "boolean": "BOOLEAN"}
_ROWS_AT_ONCE = 50_000


def prepare(spec: Spec) -> Work:
    """Import the two libraries, which only this environment has."""
    duckdb, adbc = importlib.import_module("duckdb"), importlib.import_module("adbc_driver_postgresql.dbapi")
    shape = SHAPES[spec.shape]
    defaults = dict(shape.defaults)
    direct = all(field.type in {"bigint", "text", "boolean"} or "varchar" in field.type for field in shape.fields)
    selected = ", ".join(_select(field, defaults.get(field.column)) for field in shape.fields)
    query = (
        f"SELECT {selected} FROM (SELECT unnest(Item) FROM read_json({list(spec.files)},"
        f" format = 'newline_delimited', compression = 'gzip', maximum_object_size = 1000000,"
        f" columns = {{Item: 'STRUCT({', '.join(_member(field) for field in shape.fields)})'}}))"
    )

    def work() -> None:
        source, target = duckdb.connect(), adbc.connect(spec.url)
        source.create_function("nested", _nested, ["VARCHAR"], "VARCHAR", null_handling="special")
        source.create_function("texts", _texts, ["VARCHAR"], "VARCHAR", null_handling="special")
        reader = source.execute(query).to_arrow_reader(_ROWS_AT_ONCE)
        with target.cursor() as cursor:
            if direct:
                cursor.adbc_ingest(spec.table, reader, mode="append")
            else:
                cursor.adbc_ingest("texts", reader, mode="create")
                casts = ", ".join(f'"{field.column}"::{field.type}' for field in shape.fields)
                columns = ", ".join(shape.columns)
                cursor.execute(f"INSERT INTO {spec.table} ({columns}) SELECT {casts} FROM texts")
                cursor.execute("DROP TABLE texts")
        target.commit()

    return work


def _member(field: Field) -> str:
    return f'"{field.attribute}" JSON'


def _select(field: Field, default: str | None) -> str:
    name = f'"{field.attribute}"'
    value = f"{name}->>'$.{field.tag}'"
    if field.tag in {"L", "M"}:
        value = f"nested({name}::VARCHAR)"
    elif field.tag == "SS":
        value = f"texts({name}::VARCHAR)"
    elif field.tag == "B":
        value = f"'\\x' || lower(hex(from_base64({value})))"
    elif field.nul_is_null:
        value = f"CASE WHEN contains({value}, chr(0)) THEN NULL ELSE {value} END"
    if field.type in _CAST:
        value = f"CAST({value} AS {_CAST[field.type]})"
    if default is not None:
        value = f"coalesce({value}, '{default}')"
    return f'{value} AS "{field.column}"'


def _nested(text: str | None) -> str | None:
    if text is None:
        return None
    attribute: dict[str, Any] = json.loads(text)
    return None if holds_nul(attribute) else to_json(plain(attribute))


def _texts(text: str | None) -> str | None:
    if text is None:
        return None
    values = sorted(json.loads(text)["SS"])
    if holds_nul(values):
        return None
    return "{" + ",".join('"' + v.replace("\\", "\\\\").replace('"', '\\"') + '"' for v in values) + "}"
