"""Columns as the UI shows them: a source's attributes, a target's columns, and which comes from which.

Invariant: each column of a target has its attribute as a column of the source, so that column lineage has two ends.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import dagster as dg

from pipeline.core.model.protection import Protect

if TYPE_CHECKING:
    from collections.abc import Collection

    from pipeline.core.model.mapping import Column, TableMapping, Target


def source_schema(mapping: TableMapping) -> dg.TableSchemaMetadataValue:
    """The attributes that the mapping names, with the types their columns take."""
    attributes: dict[str, set[str]] = {name: {tag} for name, tag in mapping.key.items()}
    for target in mapping.tables:
        for column in target.columns:
            if column.attribute not in mapping.key:
                attributes.setdefault(_origin(target, column), set()).update(_kinds(target, column))
    return dg.MetadataValue.table_schema(
        dg.TableSchema(
            [
                dg.TableColumn(
                    name,
                    type=" or ".join(sorted(tags)),
                    description="part of the table's key" if name in mapping.key else None,
                    constraints=dg.TableColumnConstraints(nullable=name not in mapping.key),
                )
                for name, tags in attributes.items()
            ]
        )
    )


def target_schema(mapping: TableMapping) -> dg.TableSchemaMetadataValue:
    """The columns of the mapping's views. With several targets, each column has its view in its name."""
    return dg.MetadataValue.table_schema(
        dg.TableSchema(
            [
                dg.TableColumn(
                    column_label(mapping, target, column),
                    type=column.type.sql,
                    description=_description(target, column),
                    constraints=_constraints(target, column),
                )
                for target in mapping.tables
                for column in target.columns
            ]
        )
    )


def column_lineage(mapping: TableMapping, source: dg.AssetKey) -> dg.TableColumnLineageMetadataValue:
    """Which attribute of the asset `source` fills which column."""
    return dg.MetadataValue.column_lineage(
        dg.TableColumnLineage(
            {
                column_label(mapping, target, column): [dg.TableColumnDep(source, _origin(target, column))]
                for target in mapping.tables
                for column in target.columns
            }
        )
    )


def column_label(mapping: TableMapping, target: Target, column: Column) -> str:
    """Name of a column in the UI."""
    return column.name if len(mapping.tables) == 1 else f"{target.view_name}.{column.name}"


def _origin(target: Target, column: Column) -> str:
    """Return the path from the item to a column's value: `lines[].sku` for list elements, `lines.*.sku` for a map."""
    if not target.parent or column not in target.own_columns:
        return column.attribute
    place = target.places[-1]
    return f"{place.attribute}{_EACH[place.type.name]}.{column.attribute}"


def _kinds(target: Target, column: Column) -> Collection[str]:
    if not target.parent or column not in target.places:
        return column.type.codec.tags
    return {target.member} if target.member and column == target.places[-1] else _EXPLODED[column.type.name]


# The type of the column for an element's place says which: an index into a list, or a name in a map.
_EACH = {"integer": "[]", "text": ".*"}
_EXPLODED = {"integer": {"L"}, "text": {"M"}}


def _description(target: Target, column: Column) -> str:
    text = f"from attribute `{_origin(target, column)}`"
    if column.capture:
        text = f"from the part `{column.capture}` of attribute `{column.attribute}`"
    elif target.member and column == target.places[-1]:
        text = f"a member of the set `{column.attribute}`"
    elif target.parent and column in target.places:
        text = f"the element's place in `{column.attribute}`"
    if column.epoch:
        text += f" (epoch {column.epoch})"
    if column.default is not None:
        text += f", {column.default!r} if it is missing"
    if column.protect:
        text += f", protected: {_PROTECTED[column.protect]}"
    return f"{column.description}; {text}" if column.description else text


_PROTECTED = {Protect.HASH: "its hash", Protect.MASK: "a mask", Protect.DROP: "nothing is stored"}


def _constraints(target: Target, column: Column) -> dg.TableColumnConstraints:
    is_key = column.name in target.primary_key
    indexed = [f"index {index}" for index in target.indexes if any(part.column == column.name for part in index.parts)]
    return dg.TableColumnConstraints(nullable=not is_key, other=[*(["primary key"] if is_key else []), *indexed])
