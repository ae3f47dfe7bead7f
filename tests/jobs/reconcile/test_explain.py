"""One item explained: what the source holds, what is stored, what each flow knows about it, and the verdict."""

from __future__ import annotations

import json
import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from pipeline.aurora.sessions.connection import Connection
from pipeline.cli import main
from pipeline.commands.key_argument import parse_key
from pipeline.core.errors import ConfigurationError
from pipeline.core.model.mapping import TableMapping
from pipeline.jobs.explain import Explanation, ItemInTarget, explain
from tests.jobs.conftest import named, record
from tests.jobs.reconcile.conftest import Probe, Source, execute, item, replicated


def explained(source: Source, number: int, **more: Any) -> tuple[Explanation, ItemInTarget]:  # noqa: ANN401 - passed on
    explanation = explain(source.services, source.mapping, {"Id": {"N": str(number)}}, **more)
    (target,) = explanation.targets
    return explanation, target


def test_an_equal_item_shows_where_it_stands(source: Source) -> None:
    explanation, target = explained(source, 3)
    assert (explanation.source, explanation.attributes, explanation.needs_person) == ("exists", 2, False)
    assert (target.state, target.verdict, target.version, target.next_step) == ("live", "equal", None, None)
    assert target.columns == {"Name": True, "Department": True, "attributes": True}
    assert target.values == {}
    replicated(source, named(3, 7, "streamed", at=source.now.timestamp()))
    source.put(item(3, "streamed"))
    explanation, target = explained(source, 3, values=True)
    assert (target.verdict, target.sequence_number) == ("equal", str(10**20 + 7))
    assert f"{target.stream_created:%Y-%m-%dT%H:%M}" == "2026-05-14T10:00"
    assert target.values["Name"] == ("streamed", "streamed")
    assert [writer.writer for writer in explanation.writers] == ["test"]


def test_a_difference_is_in_flight_until_replication_has_passed_it(source: Source, probe: Probe) -> None:
    source.put(item(3, "newer"))
    probe.through = source.now - timedelta(hours=1)
    explanation, target = explained(source, 3)
    assert (target.verdict, target.kind, explanation.needs_person) == ("in flight", "different", False)
    assert target.columns == {"Name": False, "Department": True, "attributes": True}
    probe.through = None
    explanation, target = explained(source, 3, patience=timedelta(seconds=10))
    assert (target.verdict, explanation.needs_person) == ("drift", True)
    assert target.next_step == "run `dynaurora reconcile employees --repair`"


def test_a_row_whose_newer_state_was_rejected_names_the_reject(source: Source) -> None:
    replicated(source, named(3, 1, "x" * 30, at=source.now.timestamp() - 60))
    source.put(item(3, "mended"))
    explanation, target = explained(source, 3)
    (reject,) = explanation.rejects
    assert target.verdict == "behind"
    assert target.next_step == f"see `dynaurora rejects show {reject.id}`, then `dynaurora rejects replay employees`"
    source.put(item(3, "y" * 30))
    explanation, target = explained(source, 3)
    assert (target.verdict, explanation.needs_person) == ("cannot be stored", True)
    assert "y" * 30 not in target.why


def test_what_was_found_of_it_before_is_told(source: Source, connection: Connection) -> None:
    execute(connection, """DELETE FROM replica."Employees" WHERE "Id" = 3""")
    source.reconcile(repair=True)
    _, target = explained(source, 3)
    (drift,) = target.drift
    assert (drift.kind, drift.repaired, target.verdict) == ("missing", True, "equal")


def test_absent_items_and_tombstones(source: Source) -> None:
    explanation, target = explained(source, 404)
    assert (explanation.source, target.state, target.verdict) == ("absent", "absent", "equal")
    replicated(source, record(5, 1, "REMOVE", at=source.now.timestamp()))
    source.delete(5)
    _, target = explained(source, 5)
    assert (target.state, target.verdict) == ("tombstone", "equal")


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["Name=7"], "does not name a key attribute"),
        (['{"Id": {"S": "7"}}'], "of a different type than the table's"),
        (['{"Id": {"N": "x"}}'], "of a different type than the table's"),
        (['{"Id"'], "is not JSON"),
        (['{"Id": {"N": "7"}, "x": {"S": "y"}}'], "exactly the table's key attributes"),
    ],
)
def test_a_wrong_key_says_how_to_give_it(employees: TableMapping, texts: list[str], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message) as refused:
        parse_key(employees, texts)
    assert """'{"Id": {"N": "7"}}' or --key Id=7""" in str(refused.value)
    assert parse_key(employees, ["Id=7"]) == parse_key(employees, ['{"Id": {"N": "7"}}']) == {"Id": {"N": "7"}}


def test_the_command_explains_without_values_unless_asked(
    source: Source, database: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source.put(item(3, "x" * 30))
    mapping = (Path(__file__).parents[3] / "tables" / "employees.yaml").read_text()
    (tmp_path / "employees.yaml").write_text(mapping.replace("table: Employees", f"table: {source.mapping.table}"))
    environment = dict(os.environ) | {"DATABASE_URL": database, "DYNAURORA_TABLES": str(tmp_path)}
    assert main(["reconcile", "employees", "--key", "Id=4"], environment) == 0
    told = capsys.readouterr().out
    assert "public.Employees: the row is live, from a snapshot, as of " in told
    assert "  = equal: the stored row is what the source holds\n" in told
    assert "name 4" not in told
    assert main(["reconcile", "employees", "--key", "Id=4", "--values"], environment) == 0
    assert "  Name: source 'name 4', stored 'name 4'\n" in capsys.readouterr().out
    assert main(["reconcile", "employees", "--key", '{"Id": {"N": "3"}}', "--json"], environment) == 1
    assert json.loads(capsys.readouterr().out)["targets"][0]["verdict"] == "cannot be stored"
    assert main(["reconcile", "employees", "--values"], environment) == 2
    assert main(["reconcile", "employees", "--key", "Name=x"], environment) == 2
