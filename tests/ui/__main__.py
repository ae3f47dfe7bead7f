"""`make test-ui`: headless Chromium in Dagster's real UI, over the local stack, as the person on duty uses it.

Invariant: exit 0 only if every step was taken and the UI showed the truth. Without a browser it fails and says how to
get one. However it ends, no process is left running.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from pipeline.local.dagster_ui import DagsterHome, DagsterWebserver
from pipeline.local.demo import ARCHIVE
from pipeline.local.errors import LocalStackError
from pipeline.local.interrupts import unwind_on_signals
from pipeline.local.playground import Playground
from pipeline.local.screen import Screen
from pipeline.local.writer import put_items
from tests.ui.browser import BrowserError, Page, find_chromium, open_page
from tests.ui.cockpit import Cockpit
from tests.ui.outage import Outage
from tests.ui.tour import FAIL_SECONDS, ITEMS, NODES, WARN_SECONDS, Tour

RUN_DIR, RESULT = Path("build/test-ui"), Path("build/test-ui.json")
# Beside the run directory, which is emptied at the start.
TABLES = Path("build/test-ui-tables")
IMAGES = Path("docs/images")


def run(screen: Screen, images: Path | None) -> None:
    """Start everything, go through the tour, write the figures. Raises AssertionError."""
    browser = find_chromium()
    started = time.monotonic()
    screen.step("starting PostgreSQL 17, ministack and the export service; deploying the replicator")
    _write_mapping()
    with Playground(RUN_DIR, ARCHIVE, tables=TABLES, progress=screen.note) as playground:
        put_items(playground.dynamodb, "Employees", range(1, ITEMS + 1))
        # The same mappings as `make ui`, but by a path that is the same on every machine that takes screenshots.
        home = DagsterHome(RUN_DIR, {**playground.environment(), "DYNAURORA_TABLES": str(playground.tables)})
        screen.step("starting Dagster")
        dagster_started = time.monotonic()
        with (
            DagsterWebserver(home) as webserver,
            open_page(browser) as page,
            Outage(playground, range(1, ITEMS + 1)) as outage,
        ):
            cockpit = Cockpit(page, webserver.url)
            tour = Tour(cockpit, playground.stack.postgres.url, outage, images)
            try:
                cockpit.open_graph()
                cockpit.wait_for(*NODES)
                usable = time.monotonic()
                screen.step("Dagster's graph is on the page; going through the steps")
                tour.whole()
            except Exception:
                _keep_evidence(page)
                raise
            finally:
                for name, seconds in tour.seconds.items():
                    screen.note(f"{seconds:6.1f} s  {name}")
    figures = {
        "seconds": round(time.monotonic() - started, 1),
        "start_to_usable_page_seconds": round(usable - started, 1),
        "dagster_to_usable_page_seconds": round(usable - dagster_started, 1),
        "items": ITEMS,
        "steps": [{"step": name, "seconds": seconds} for name, seconds in tour.seconds.items()],
    }
    RESULT.write_text(json.dumps(figures, indent=2) + "\n")
    screen.step(f"all {len(tour.seconds)} steps done; figures in {RESULT}")


def _write_mapping() -> None:
    """The seed's mapping, with windows short enough for a tour."""
    TABLES.mkdir(parents=True, exist_ok=True)
    text = Path("tables/employees.yaml").read_text()
    freshness = f"freshness: {{warn: {WARN_SECONDS}s, fail: {FAIL_SECONDS}s}}"
    (TABLES / "employees.yaml").write_text(f"{text}{freshness}\n")


def _keep_evidence(page: Page) -> None:
    """Keep what the page shows, for whoever asks why a step failed."""
    (RUN_DIR / "failed.txt").write_text(f"{page.url}\n\n{page.inner_text('body')}\n")
    page.screenshot(path=RUN_DIR / "failed.png")


def main() -> int:
    """Run it; exit code 0 passed, 1 a step failed, 2 could not run."""
    parser = argparse.ArgumentParser(prog="make test-ui")
    parser.add_argument("--images", action="store_true", help=f"take the documentation's screenshots, in {IMAGES}")
    arguments = parser.parse_args()
    unwind_on_signals()
    screen = Screen()
    RESULT.unlink(missing_ok=True)
    try:
        run(screen, IMAGES if arguments.images else None)
    except (BrowserError, LocalStackError) as error:
        screen.console.print(f"test-ui: {error}", style="red", markup=False)
        return 2
    except KeyboardInterrupt:
        screen.console.print("test-ui: interrupted; everything it had started has ended", style="yellow")
        return 130
    except Exception as error:  # noqa: BLE001 - whatever it is, a step failed; Playwright's timeouts are among them
        what = f"{type(error).__name__}: {error}"
        screen.console.print(
            f"test-ui: {what}\nwhat the page showed: {RUN_DIR}/failed.png, {RUN_DIR}/failed.txt", markup=False
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
