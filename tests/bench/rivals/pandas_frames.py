"""Data frames of an export's items, in pieces that memory holds."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import pandas as pd

from tests.bench.contest import Spec
from tests.bench.rivals.boto3_rows import rows
from tests.bench.shapes import SHAPES

_ROWS_AT_ONCE = 20_000


def frames(spec: Spec) -> Iterator[pd.DataFrame]:
    """Yield frames of object columns, so that numbers stay Decimal."""
    made = rows(spec)
    columns = [field.column for field in SHAPES[spec.shape].fields]
    while some := list(islice(made, _ROWS_AT_ONCE)):
        yield pd.DataFrame(some, columns=columns, dtype=object)
