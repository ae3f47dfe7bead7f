"""The code location: every mapping of the folder as a table, merged. A file that cannot be used is shown as broken.

Invariant: importing this module reads no file and no environment. Loading it reads DYNAURORA_TABLES and that folder,
and connects to nothing, so the UI starts whatever the state of the database and AWS. A reload picks up new files.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import dagster as dg

from dagster_project.alerts import alerts_sensor
from dagster_project.broken import broken_definitions
from dagster_project.event_log import purge_events_job, purge_events_schedule
from dagster_project.history_sensor import history_sensor
from dagster_project.redrive import redrive_job, redrive_sensor
from dagster_project.resources import ServicesResource
from dagster_project.sensors import progress_sensor
from dagster_project.table import table_definitions
from pipeline.core.errors import ConfigurationError
from pipeline.core.mapping_files.yaml_fields import Problem
from pipeline.mappings import load_each
from pipeline.settings import DEFAULT_TABLES_FOLDER

if TYPE_CHECKING:
    from pipeline.core.model.mapping import TableMapping

LOCATION = RESOURCE = "dynaurora"


def build(folder: Path, services: ServicesResource | None = None) -> dg.Definitions:
    """Build the definitions of a folder of mapping files. What is wrong with the folder or a file is a broken node."""
    try:
        mappings, problems = load_each(folder)
    except ConfigurationError as error:  # no folder, or no file in it: the UI still comes up, and alerts are still sent
        mappings, problems = (), (Problem(str(folder), 1, "", str(error)),)
    tables: list[dg.Definitions] = []
    usable: list[TableMapping] = []
    broken = list(problems)
    for mapping in mappings:
        try:
            tables.append(table_definitions(mapping))
        except Exception as error:  # noqa: BLE001  what only Dagster finds wrong, such as a schedule, hides no other table
            broken.append(Problem(mapping.path, 1, "", f"Dagster cannot use it: {error}"))
        else:
            usable.append(mapping)
    purge_events = purge_events_job(usable)
    shared = dg.Definitions(
        jobs=[redrive_job(usable), purge_events],
        schedules=[purge_events_schedule(purge_events)],
        sensors=[progress_sensor(usable, broken), history_sensor(usable), redrive_sensor(), alerts_sensor()],
        resources={RESOURCE: services or ServicesResource()},
        # Each step has workers of its own. Another process would only cost its start.
        executor=dg.in_process_executor,
    )
    return dg.Definitions.merge(shared, broken_definitions(broken), *tables)


def tables_folder() -> Path:
    """Return the folder of mapping files that the environment names."""
    return Path(os.environ.get("DYNAURORA_TABLES") or DEFAULT_TABLES_FOLDER)


@dg.definitions
def defs() -> dg.Definitions:
    """What Dagster loads."""
    return build(tables_folder())
