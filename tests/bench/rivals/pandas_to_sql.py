"""pandas.DataFrame.to_sql, with SQLAlchemy's multi-row INSERT; columns that need a cast go through a table of texts."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY

from tests.bench.contest import Spec, Work
from tests.bench.rivals.pandas_frames import frames
from tests.bench.shapes import SHAPES

_TYPES = {
    "bigint": sa.BigInteger(),
    "numeric": sa.Numeric(),
    "boolean": sa.Boolean(),
    "bytea": sa.LargeBinary(),
    "text[]": ARRAY(sa.Text),
}


def prepare(spec: Spec) -> Work:
    """Make the engine."""
    shape = SHAPES[spec.shape]
    engine = sa.create_engine(spec.url.replace("postgresql:", "postgresql+psycopg:", 1))
    nested = any(field.type == "jsonb" for field in shape.fields)
    types = {field.column: _TYPES.get(field.type, sa.Text()) for field in shape.fields}
    table = f"{spec.table}_texts" if nested else spec.table
    casts = ", ".join(f'"{field.column}"::{field.type}' for field in shape.fields)

    def work() -> None:
        with engine.begin() as connection:
            for frame in frames(spec):
                frame.to_sql(table, connection, if_exists="append", index=False, dtype=types, chunksize=5_000)  # type: ignore[arg-type]
            if nested:
                columns = ", ".join(shape.columns)
                connection.execute(sa.text(f"INSERT INTO {spec.table} ({columns}) SELECT {casts} FROM {table}"))
                connection.execute(sa.text(f"DROP TABLE {table}"))

    return work
