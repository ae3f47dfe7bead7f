"""What the person sees of a local run: one line for each step, with the time since the start."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from rich.console import Console


@dataclass
class Screen:
    """Lines on the terminal; plain text if it is not a terminal."""

    console: Console = field(default_factory=lambda: Console(highlight=False, soft_wrap=True))
    started: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        """Time since the start."""
        return time.monotonic() - self.started

    def step(self, title: str) -> None:
        """Begin a step."""
        self.console.print(f"[dim]{self.seconds:6.1f} s[/]  [bold]{title}[/]")

    def note(self, text: str) -> None:
        """Print something within a step."""
        self.console.print(f"            {text}", style="dim", markup=False)
