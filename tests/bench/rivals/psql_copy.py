r"""The limit: psql's \copy of a ready-made text file into the same table, its key first, or key and indexes after."""

from __future__ import annotations

import subprocess

from tests.bench.contest import Spec, Work
from tests.bench.shapes import SHAPES


def prepare(spec: Spec) -> Work:
    """Compose the script. `spec.options["key_after"]` builds the key, and the shape's indexes, once the rows are in."""
    shape = SHAPES[spec.shape]
    columns = [*shape.columns, *([f'"{shape.unmapped}"'] if shape.unmapped else [])]
    script = [f"\\copy {spec.table} ({', '.join(columns)}) FROM '{spec.text_path}'"]
    if shape.child:
        child = shape.child_of(spec.table)
        script.append(f"\\copy {child} ({', '.join(shape.child.columns)}) FROM '{spec.options['child_path']}'")
    if spec.options.get("key_after"):
        script.append(f"ALTER TABLE {spec.table} ADD PRIMARY KEY ({shape.primary_key})")
        if shape.child:
            script.append(f"ALTER TABLE {shape.child_of(spec.table)} ADD PRIMARY KEY ({shape.child.primary_key})")
        for columns in shape.indexes:
            names = ", ".join(f'"{column}"' for column in columns)
            script.append(f"CREATE INDEX ON {spec.table} ({names})")

    def work() -> None:
        command = [spec.psql, "-X", "-q", "-v", "ON_ERROR_STOP=1", spec.url]
        subprocess.run([*command, *(part for line in script for part in ("-c", line))], check=True)

    return work
