"""Which type changes are widenings."""

from __future__ import annotations

import pytest

from pipeline.core.types.sql_types import parse_sql_type
from pipeline.core.types.widening import TypeChange, type_change

CATALOG, REWRITE, REFUSED, NONE = TypeChange.CATALOG, TypeChange.REWRITE, TypeChange.REFUSED, TypeChange.NONE


@pytest.mark.parametrize(
    ("stored", "wanted", "change"),
    [
        ("character varying(20)", "varchar(20)", NONE),
        ("timestamp with time zone", "timestamptz", NONE),
        ("numeric(12,0)", "numeric(12)", NONE),
        ("varchar(20)", "varchar(21)", CATALOG),
        ("varchar(20)", "varchar(19)", REFUSED),
        ("varchar(20)", "text", CATALOG),
        ("text", "varchar(20)", REFUSED),
        ("smallint", "integer", REWRITE),
        ("integer", "bigint", REWRITE),
        ("bigint", "integer", REFUSED),
        ("bigint", "numeric", REWRITE),
        ("bigint", "numeric(19)", REWRITE),
        ("bigint", "numeric(20,2)", REFUSED),
        ("smallint", "numeric(7,2)", REWRITE),
        ("bigint", "double precision", REFUSED),
        ("numeric(10,2)", "numeric", CATALOG),
        ("numeric(10,2)", "numeric(12,2)", CATALOG),
        ("numeric(10,2)", "numeric(12,4)", REWRITE),
        ("numeric(10,2)", "numeric(11,4)", REFUSED),
        ("numeric(10,2)", "numeric(10,1)", REFUSED),
        ("numeric", "numeric(38)", REFUSED),
        ("uuid", "text", REFUSED),
        ("date", "timestamptz", REFUSED),
    ],
)
def test_type_change(stored: str, wanted: str, change: TypeChange) -> None:
    assert type_change(parse_sql_type(stored), parse_sql_type(wanted)) is change
