r"""An expert by hand: \copy of ready-made text into an unlogged table without an index, then one INSERT ON CONFLICT."""

from __future__ import annotations

import subprocess

from tests.bench.contest import Spec, Work
from tests.bench.shapes import SHAPES


def prepare(spec: Spec) -> Work:
    """Compose the script."""
    shape = SHAPES[spec.shape]
    columns = [*shape.columns, *([f'"{shape.unmapped}"'] if shape.unmapped else [])]
    key, names = f'"{shape.key.column}"', ", ".join(columns)
    assignments = ", ".join(f"{column} = excluded.{column}" for column in columns if column != key)
    script = [
        f"CREATE UNLOGGED TABLE staged AS SELECT {names} FROM {spec.table} WITH NO DATA",
        f"\\copy staged FROM '{spec.text_path}'",
        f"INSERT INTO {spec.table} ({names}) SELECT * FROM staged ON CONFLICT ({key}) DO UPDATE SET {assignments}",
        "DROP TABLE staged",
    ]

    def work() -> None:
        command = [spec.psql, "-X", "-q", "-v", "ON_ERROR_STOP=1", spec.url]
        subprocess.run([*command, *(part for line in script for part in ("-c", line))], check=True)

    return work
