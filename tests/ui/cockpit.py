"""Dagster's pages as a person uses them: what to click, and what to wait for.

Invariant: elements are found by their roles and by the words on them, and every wait is for something on the page. No
request goes to Dagster except through its UI.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import datetime

from tests.ui.browser import Page

PATIENCE_SECONDS = 180.0
_LOOK_EVERY_MS, _RELOAD_EVERY_MS = 500.0, 2000.0
_RUN_ENDS = ("Success", "Failure", "Canceled")


class Cockpit:
    """The UI at `url`, in one tab."""

    def __init__(self, page: Page, url: str) -> None:
        self.page, self._url = page, url

    def open(self, path: str) -> None:
        """Open a page of the UI by its address."""
        self.page.goto(f"{self._url}{path}")

    def text(self) -> str:
        """Return all the text on the page."""
        return self.page.inner_text("body")

    def wait_until(self, condition: Callable[[str], bool], what: str, seconds: float = PATIENCE_SECONDS) -> str:
        """Wait until the page's text is as wanted, and return it. Raises AssertionError."""
        deadline = time.monotonic() + seconds
        while True:
            text = self.text()
            if condition(text):
                return text
            assert time.monotonic() < deadline, f"not within {seconds:.0f} s: {what}"
            self.page.wait_for_timeout(_LOOK_EVERY_MS)

    def wait_for(self, *texts: str, seconds: float = PATIENCE_SECONDS) -> str:
        """Wait until every text is on the page."""
        return self.wait_until(lambda text: all(part in text for part in texts), f"{texts} to be read", seconds)

    def open_graph(self) -> None:
        """Open the lineage graph of everything."""
        self.open("/asset-groups/")

    def open_asset(self, *path: str, view: str = "overview") -> None:
        """Open the page of an asset."""
        self.open(f"/assets/{'/'.join(path)}?view={view}")
        self.page.get_by_role("tab", name="Overview").first.wait_for()

    def open_form(self, job: str) -> None:
        """Open the launchpad of a job."""
        self.open(f"/locations/dynaurora/jobs/{job}/playground")
        self.wait_for("margin_seconds?: Int", "Launch Run")

    def fill_in(self, form: str) -> None:
        """Replace the content of the open form: the defaults, or what was typed last."""
        self.page.locator(".CodeMirror").first.click()
        self.page.keyboard.press("Control+a")
        self.page.keyboard.type(form)
        # The launchpad checks the form when typing stops, and launches the form that it has checked.
        self.page.wait_for_timeout(1500)

    def press_launch(self) -> None:
        """Press the button that launches."""
        self.page.get_by_role("button", name="Launch Run").click()

    def launch(self, job: str, form: str) -> str:
        """Launch a job with a form; return the run's path once its page is open."""
        self.open_form(job)
        self.fill_in(form)
        self.press_launch()
        self.page.wait_for_url("**/runs/**")
        return self.page.url.removeprefix(self._url)

    def watch(self, *, expect: str = "Success") -> str:
        """Wait on a run's page until the run has ended as expected; return the page's text."""
        text = self.wait_until(lambda text: _ended(text) is not None, "the run has ended")
        assert _ended(text) == expect, f"the run ended with {_ended(text)}"
        return text

    def launch_backfill(self, asset: Sequence[str], first: datetime, last: datetime) -> None:
        """Launch a backfill over the hours from `first` to the hour that begins at `last`."""
        self.open_asset(*asset)
        self.page.get_by_role("button", name="Materialize").first.click()
        dialog = self.page.get_by_role("dialog")
        hours = dialog.locator("input[type=text]").first
        hours.fill(f"[{first:%Y-%m-%d-%H:00}...{last:%Y-%m-%d-%H:00}]")
        hours.press("Enter")
        count = round((last - first).total_seconds() / 3600) + 1
        self.wait_for(f"{count} partitions")
        dialog.get_by_role("button", name="Launch backfill").click()
        dialog.wait_for(state="hidden")

    def open_check(self, asset: Sequence[str], name: str) -> None:
        """Open a check's page."""
        self.open(f"/assets/{'/'.join(asset)}?view=checks&checkDetail={name}")
        self.wait_for("Latest execution")

    def watch_check(self, asset: Sequence[str], name: str, condition: Callable[[str], bool]) -> str:
        """Look at a check's page repeatedly until its text is as wanted; return it."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            self.open_check(asset, name)
            self.page.wait_for_timeout(_LOOK_EVERY_MS)  # the details come after the page
            text = self.text()
            if condition(text):
                return text
            assert time.monotonic() < deadline, f"not within {PATIENCE_SECONDS:.0f} s: the check {name} as wanted"
            self.page.wait_for_timeout(_RELOAD_EVERY_MS)


def _ended(text: str) -> str | None:
    lines = text.splitlines()
    return next((end for end in _RUN_ENDS if end in lines), None)
