"""Names in Dagster for one table: its assets, jobs, pools and schedules.

Invariant: every name follows from the mapping's name alone, so that history stays with a table across releases.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import dagster as dg

AssetJob = Any
"""What `dg.define_asset_job` returns; Dagster does not export the class."""


@dataclass(frozen=True, slots=True)
class TableKeys:
    """Names for the mapping `name`. Graph nodes show the last part of an asset key; the group shows the table."""

    name: str

    @property
    def dynamodb_table(self) -> dg.AssetKey:
        """The source table."""
        return dg.AssetKey([self.name, "dynamodb_table"])

    @property
    def s3_export(self) -> dg.AssetKey:
        """The newest export that was taken for a load."""
        return dg.AssetKey([self.name, "s3_export"])

    @property
    def replication(self) -> dg.AssetKey:
        """What the replicator applies from the stream."""
        return dg.AssetKey([self.name, "replication"])

    @property
    def aurora_table(self) -> dg.AssetKey:
        """The table that people query."""
        return dg.AssetKey([self.name, "aurora_table"])

    @property
    def reconciliation(self) -> dg.AssetKey:
        """The last proof that source and target are equal."""
        return dg.AssetKey([self.name, "reconciliation"])

    @property
    def catch_up(self) -> dg.AssetKey:
        """The hours that were caught up from incremental exports."""
        return dg.AssetKey([self.name, "catch_up"])

    @property
    def full_load_job(self) -> str:
        """Job that loads the table."""
        return f"{self.name}_full_load"

    @property
    def load_files_job(self) -> str:
        """Job of the runs that a load launches to share its files."""
        return f"{self.name}_load_files"

    @property
    def load_files_op(self) -> str:
        """Step of such a run, as run configuration names it."""
        return f"{self.name}__load_files"

    @property
    def reconcile_job(self) -> str:
        """Job that reconciles the table."""
        return f"{self.name}_reconcile"

    @property
    def catch_up_job(self) -> str:
        """Job that catches up hours of the past."""
        return f"{self.name}_catch_up"

    @property
    def purge_job(self) -> str:
        """Job that removes old tombstones and leftovers."""
        return f"{self.name}_purge"

    @property
    def purge_op(self) -> str:
        """Step of a purge, as run configuration names it."""
        return f"{self.name}__purge"

    @property
    def promote_job(self) -> str:
        """Job that fills new columns of the mapping."""
        return f"{self.name}_promote"

    @property
    def promote_op(self) -> str:
        """Step of a promotion, as run configuration names it."""
        return f"{self.name}__promote"

    @property
    def replay_job(self) -> str:
        """Job that replays rejects."""
        return f"{self.name}_replay_rejects"

    @property
    def replay_op(self) -> str:
        """Step of a replay, as run configuration names it."""
        return f"{self.name}__replay_rejects"

    @property
    def repoint_job(self) -> str:
        """Job that makes another table the source of record."""
        return f"{self.name}_repoint"

    @property
    def repoint_op(self) -> str:
        """Step of a switch, as run configuration names it."""
        return f"{self.name}__repoint"

    @property
    def load_pool(self) -> str:
        """Pool of the jobs that need the table for themselves, because they rewrite or compare all of it. They take
        turns.

        The table's advisory lock would refuse the second one; the pool makes it wait instead.
        """
        return f"{self.name}_load"

    @property
    def full_load_op(self) -> str:
        """Step of a load, as run configuration names it."""
        return f"{self.name}__full_load"

    @property
    def reconcile_op(self) -> str:
        """Step of a reconciliation, as run configuration names it."""
        return f"{self.name}__reconcile"

    @property
    def catch_up_op(self) -> str:
        """Step of a catch-up, as run configuration names it."""
        return f"{self.name}__catch_up"
