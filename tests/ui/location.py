"""The cost of the code location in each process that loads it: `python -m tests.ui.location`, CPU seconds, as JSON.

Each figure is the lowest of several processes, so that other work on the machine matters little.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.ui.browser import ROOT

ROUNDS, MANY = 3, 50
_IMPORT = "import dagster_project.definitions"
_LOAD = """
import sys
from pathlib import Path
from dagster_project.definitions import build
build(Path(sys.argv[1])).get_repository_def().load_all_definitions()
"""
_TIME = "\nimport time; print(time.process_time())"


def costs() -> dict[str, float]:
    """Return CPU seconds: Dagster alone, our import, and the definitions of 1 and of 50 tables, imports included."""
    text = (ROOT / "tables" / "employees.yaml").read_text()
    with tempfile.TemporaryDirectory() as name:
        for number in range(MANY):
            (Path(name) / f"t{number}.yaml").write_text(
                text.replace("name: employees", f"name: t{number}")
                .replace("table: Employees", f"table: T{number}")
                .replace("  Employees:", f"  T{number}:")
            )
        return {
            "dagster_import_cpu_seconds": _least("import dagster"),
            "import_cpu_seconds": _least(_IMPORT),
            "load_1_table_cpu_seconds": _least(_LOAD, str(ROOT / "tables")),
            f"load_{MANY}_tables_cpu_seconds": _least(_LOAD, name),
        }


def _least(script: str, *arguments: str) -> float:
    command = [sys.executable, "-c", script + _TIME, *arguments]
    taken = (subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT) for _ in range(ROUNDS))
    return round(min(float(done.stdout.splitlines()[-1]) for done in taken), 2)


if __name__ == "__main__":
    sys.stdout.write(json.dumps(costs(), indent=2) + "\n")
