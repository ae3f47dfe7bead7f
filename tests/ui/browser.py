"""The system's Chromium, driven by Playwright from its own environment (`.venv-ui`).

Playwright is imported by name, because the environment in which types are checked does not have it; the protocols
describe what we use. Invariant: no browser is ever downloaded, and none outlives its context.
"""

from __future__ import annotations

import importlib
import shutil
import sys
import sysconfig
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = ROOT / ".venv-ui"
NAMES = ("chromium", "chromium-browser", "google-chrome")
# Without a display, its own sandbox or a GPU, and without contacting anything but the page.
_FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
WIDTH, HEIGHT = 1400, 860
TIMEOUT_SECONDS = 60.0


class BrowserError(Exception):
    """There is no browser, or nothing to drive it with. The message has the remedy."""


class Locator(Protocol):
    """Elements of a page, looked up again at each use; actions wait until there is one."""

    @property
    def first(self) -> Locator: ...
    def locator(self, selector: str) -> Locator: ...
    def get_by_role(self, role: str, *, name: str = ..., exact: bool = ...) -> Locator: ...
    def get_by_text(self, text: str, *, exact: bool = ...) -> Locator: ...
    def click(self) -> None: ...
    def fill(self, value: str) -> None: ...
    def press(self, key: str) -> None: ...
    def count(self) -> int: ...
    def inner_text(self) -> str: ...
    def wait_for(self, *, state: str = ..., timeout: float = ...) -> None: ...
    def scroll_into_view_if_needed(self) -> None: ...


class Keyboard(Protocol):
    """Keys, as a person presses them."""

    def press(self, key: str) -> None: ...
    def type(self, text: str) -> None: ...


class Page(Protocol):
    """A tab."""

    @property
    def url(self) -> str: ...
    @property
    def keyboard(self) -> Keyboard: ...
    def goto(self, url: str) -> object: ...
    def reload(self) -> object: ...
    def locator(self, selector: str) -> Locator: ...
    def get_by_role(self, role: str, *, name: str = ..., exact: bool = ...) -> Locator: ...
    def get_by_text(self, text: str, *, exact: bool = ...) -> Locator: ...
    def get_by_placeholder(self, text: str) -> Locator: ...
    def set_viewport_size(self, viewport_size: dict[str, int]) -> None: ...
    def wait_for_url(self, url: str) -> None: ...
    def wait_for_timeout(self, timeout: float) -> None: ...
    def inner_text(self, selector: str) -> str: ...
    def screenshot(self, *, path: Path) -> bytes: ...


def find_chromium() -> str:
    """Return the path of Chromium. Raises BrowserError with the way to install it."""
    for name in NAMES:
        found = shutil.which(name)
        if found is not None:
            return found
    raise BrowserError(
        f"no browser: none of {', '.join(NAMES)} is on the path; install one (Debian: apt-get install chromium)"
    )


@contextmanager
def open_page(executable: str) -> Generator[Page]:
    """Open a tab of a headless browser. Raises BrowserError if Playwright is not installed."""
    with _playwright().sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=executable, args=list(_FLAGS))
        try:
            page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT}, timezone_id="UTC", locale="en-GB")
            page.set_default_timeout(TIMEOUT_SECONDS * 1000)
            yield page
        finally:
            browser.close()


def _playwright() -> Any:  # noqa: ANN401 - the environment that types are checked in has none
    packages = sysconfig.get_path("purelib", "venv", vars={"base": str(ENVIRONMENT)})
    if packages not in sys.path:
        sys.path.append(packages)  # after our own
    try:
        return importlib.import_module("playwright.sync_api")
    except ImportError as error:
        raise BrowserError("no Playwright: `make test-ui` sets up .venv-ui first") from error
