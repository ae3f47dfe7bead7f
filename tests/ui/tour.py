"""A day of the person on duty, click by click: load, watch, look, catch up, find damage, repair it.

Invariant: the UI's statements are compared with the database, which is queried directly.
"""

from __future__ import annotations

import re
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg

from tests.ui.cockpit import Cockpit
from tests.ui.outage import Outage

ITEMS = 500
# Low enough that reconciliation decides every row.
MARGIN_SECONDS = 2
ARRIVE_SECONDS = 30.0
# Short enough that an outage of seconds counts as one.
WARN_SECONDS, FAIL_SECONDS = 5, 12
EXPORT = ("employees", "s3_export")
AURORA, CATCH_UP = ("employees", "aurora_table"), ("employees", "catch_up")
REPLICATION, RECONCILIATION = ("employees", "replication"), ("employees", "reconciliation")
NODES = ("dynamodb_table", "s3_export", "replication", "aurora_table", "reconciliation", "catch_up")
_DAMAGED = "altered by hand"


@dataclass
class Tour:
    """Goes through the steps, each timed; `images` is the folder for screenshots, None for none."""

    cockpit: Cockpit
    database_url: str
    outage: Outage
    images: Path | None
    seconds: dict[str, float] = field(default_factory=dict[str, float])

    def whole(self) -> None:
        """Take every step. Raises AssertionError if the UI does not show the truth."""
        with self._step("open the graph"):
            self.cockpit.open_graph()
            self.cockpit.wait_for(*NODES)
        with self._step("a wrong form starts nothing"):
            self._wrong_form()
        with self._step("launch a full load from its form and watch it"):
            self._full_load()
        with self._step("damage a row by hand, launch a reconciliation with the load's export"):
            self._damage()
            # Replication has long passed that export, so the row is called drift without a wait.
            export = self._location_of_export()
            reconciliation = self._reconcile(f"manifest: {export}")
        with self._step("meanwhile the table's page: rows, columns, plots, lineage"):
            self._table_page()
        with self._step("the reconciliation ends: parity turns red"):
            self._turned_red(reconciliation)
        with self._step("repair it, prove it: parity turns green"):
            self._turn_green(export)
        with self._step("freshness and lag"):
            self._freshness()
        with self._step("the replicator stands still while writes go on; launch a backfill over three hours"):
            self.outage.begin()
            last = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - timedelta(hours=1)
            self.cockpit.launch_backfill(CATCH_UP, last - timedelta(hours=2), last)
        with self._step("lag turns red"):
            self._lag_red()
        with self._step("the replicator runs again: lag turns green"):
            self._lag_green()
        with self._step("the backfill has turned its hours green"):
            self._hours()
        if self.images is not None:
            # Wide enough that the nodes show their checks.
            self.cockpit.page.set_viewport_size({"width": 2100, "height": 820})
            self.cockpit.open_graph()
            self.cockpit.wait_for("2 / 2 Passed", *NODES)
            self._shot("graph")

    @contextmanager
    def _step(self, name: str) -> Generator[None]:
        started = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - started, 1)

    def _shot(self, name: str) -> None:
        if self.images is not None:
            self.cockpit.page.wait_for_timeout(2500)  # until animations have ended
            self.cockpit.page.screenshot(path=self.images / f"{name}.png")

    def _names(self) -> list[str]:
        with psycopg.connect(self.database_url) as connection:
            return [str(name) for (name,) in connection.execute('SELECT "Name" FROM public."Employees"').fetchall()]

    def _wrong_form(self) -> None:
        cockpit = self.cockpit
        cockpit.open_form("employees_full_load")
        cockpit.wait_for("margin_seconds: 300", "workers: 2", "Files loaded at the same time in a run, 1 to 32")
        cockpit.fill_in("workers: 99")
        cockpit.press_launch()
        cockpit.wait_for("workers: input should be less than or equal to 32")
        cockpit.open("/runs")
        cockpit.wait_for("No runs")

    def _full_load(self) -> None:
        cockpit = self.cockpit
        cockpit.launch("employees_full_load", f"margin_seconds: {MARGIN_SECONDS}\nworkers: 2")
        cockpit.wait_for(" in progress")
        self._shot("running_load")
        text = cockpit.watch()
        assert f"{ITEMS} of {ITEMS} rows" in text, "the log shows the rows"
        assert len(self._names()) == ITEMS

    def _location_of_export(self) -> str:
        """Read the location of the last export from its page."""
        self.cockpit.open_asset(*EXPORT)
        found = re.search(
            r"s3://\S+/manifest-summary\.json", self.cockpit.wait_for("/manifest-summary.json", "Row count")
        )
        assert found is not None
        return found[0]

    def _reconcile(self, form: str = "") -> str:
        """Launch a reconciliation; return its run's path."""
        return self.cockpit.launch("employees_reconcile", f"margin_seconds: {MARGIN_SECONDS}\n{form}")

    def _damage(self) -> None:
        with psycopg.connect(self.database_url) as connection:
            connection.execute(
                'UPDATE replica."Employees" SET "Name" = %s WHERE "Id" = (SELECT min("Id") FROM public."Employees")',
                [_DAMAGED],
            )

    def _turned_red(self, run: str) -> None:
        self.cockpit.open(run)
        self.cockpit.watch()
        self.cockpit.open_check(RECONCILIATION, "parity")
        self.cockpit.wait_for("1 of 1 differing rows are not repaired", "Failed", "launch employees_reconcile")
        self._shot("check_red")
        assert self._names().count(_DAMAGED) == 1

    def _turn_green(self, export: str) -> None:
        self._reconcile(f"manifest: {export}\nrepair: true")
        self.cockpit.watch()
        self.cockpit.open_check(RECONCILIATION, "parity")
        self.cockpit.wait_for("1 differing rows were found and repaired")
        assert _DAMAGED not in self._names()
        self._reconcile()
        self.cockpit.watch()
        self.cockpit.open_check(RECONCILIATION, "parity")
        self.cockpit.wait_for(f"{ITEMS} rows compared, none differs", "Passed")
        self._shot("check_green")

    def _table_page(self) -> None:
        cockpit = self.cockpit
        cockpit.open_asset(*AURORA)
        cockpit.wait_for("Row count", f"\n{ITEMS}\n", "varchar(20)", "from attribute empName", "public.Employees")
        self._shot("aurora_table")
        cockpit.page.get_by_role("button", name="Plots").first.click()
        cockpit.wait_for("rows_per_second", "dagster/row_count")
        cockpit.open_asset(*AURORA, view="lineage")
        cockpit.wait_for("replication", "s3_export", "reconciliation", "Nearest Neighbors")

    def _hours(self) -> None:
        self.cockpit.open_asset(*CATCH_UP, view="partitions")
        self.cockpit.wait_for("Materialized (3)", "Failed (0)")

    def _freshness(self) -> None:
        cockpit = self.cockpit
        cockpit.open_asset(*REPLICATION)
        cockpit.wait_for("Freshness policy\nPassing", "Fails if more than a minute")
        cockpit.open_check(REPLICATION, "lag")
        cockpit.wait_for("every change in the stream has arrived", "Passed")

    def _lag_red(self) -> None:
        def is_error(text: str) -> bool:
            found = re.search(r"keys have changes that have not arrived, the oldest made ([\d.]+) s ago", text)
            return found is not None and float(found[1]) > FAIL_SECONDS and "Failed" in text

        text = self.cockpit.watch_check(REPLICATION, "lag", is_error)
        assert "is Disabled" in text, "the check names what is disabled"
        self._shot("check_lag_red")
        assert not self.outage.compare().equal

    def _lag_green(self) -> None:
        self.outage.end()
        self.cockpit.watch_check(REPLICATION, "lag", lambda text: "Passed" in text)
        assert self.outage.calm() > 0
        # The last writes are still on their way.
        deadline = time.monotonic() + ARRIVE_SECONDS
        while not (compared := self.outage.compare()).equal:
            assert time.monotonic() < deadline, compared
            time.sleep(0.5)
        self.cockpit.watch_check(REPLICATION, "lag", lambda text: "Passed" in text)
