"""Promote from Dagster: new columns are filled, and a run that leaves work for a person says all of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import dagster as dg

from dagster_project.definitions import build
from tests.dagster_project.conftest import Code
from tests.dagster_project.test_full_load import failure, logged

JOB = "employees_promote"


def person(number: int, **attributes: Any) -> dict[str, Any]:  # noqa: ANN401 - attribute values
    return {"Id": {"N": str(number)}, **attributes}


def gain(code: Code, *columns: str) -> None:
    """Add columns to the mapping, as a person does, and reload the definitions."""
    path = code.folder / "employees.yaml"
    lines = "".join(f"      {column}\n" for column in columns)
    path.write_text(path.read_text().replace("    indexes:", f"{lines}    indexes:"))
    code.definitions = build(code.folder, code.resource)


def output(result: dg.ExecuteInProcessResult) -> dict[str, Any]:
    (event,) = [event for event in result.all_events if event.is_successful_output]
    return {name: value.value for name, value in event.step_output_data.metadata.items()}


def rows(table: Any) -> Sequence[Any]:  # noqa: ANN401 - the records of table metadata
    return [record.data for record in getattr(table, "records", table)]


def test_columns_are_filled_from_the_jsonb_column_one_attribute_or_all(code: Code) -> None:
    code.migrate()
    code.replicate(*[person(n, room={"S": f"room {n}"}, floor={"N": str(n)}) for n in range(3)])
    gain(code, "Room: {attribute: room, type: text}", "Floor: {attribute: floor, type: integer}")
    code.migrate()
    result = code.run(JOB, {"attribute": "room"})
    assert result.success
    assert code.query('SELECT "Id", "Room", "Floor" FROM "Employees" ORDER BY 1') == [
        (n, f"room {n}", None) for n in range(3)
    ]
    assert code.run(JOB).success
    assert code.query('SELECT sum("Floor") FROM "Employees"') == [(3,)]
    found = output(result)
    assert (found["filled"], found["refused"]) == (3, 0)
    (record,) = rows(found["attributes"])
    assert (record["view"], record["attribute"], record["columns"]) == ("public.Employees", "room", "Room")
    assert (record["filled"], record["finished"]) == (3, True)
    assert any(line.startswith("3 rows filled from room; ") for line in logged(code, result.run_id))
    again = code.run(JOB)
    assert output(again)["filled"] == 0
    assert "nothing waits in a jsonb column for a column of the mapping" in logged(code, again.run_id)


def test_a_value_that_does_not_fit_fails_the_run_and_the_others_are_filled(code: Code) -> None:
    code.migrate()
    code.replicate(person(1, room={"S": "A1"}), person(2, room={"N": "2"}))
    gain(code, "Room: {attribute: room, type: text}")
    code.migrate()
    result = code.run(JOB)
    description, found = failure(result)
    assert not result.success
    assert description == "1 rows were filled, and 1 values do not fit their column and stay in the jsonb column"
    assert "launch employees_promote again" in str(found["next step"])
    assert "Room: accepts S, and the attribute is of type N" in str(found["attributes"])
    assert code.query('SELECT "Id", "Room" FROM "Employees" ORDER BY 1') == [(1, "A1"), (2, None)]


def test_a_database_without_the_column_is_told_to_be_migrated_first(code: Code) -> None:
    code.migrate()
    gain(code, "Room: {attribute: room, type: text}")
    description, found = failure(code.run(JOB))
    assert "nothing was started" in description
    assert "run `dynaurora migrate employees`" in str(found["next step"])
