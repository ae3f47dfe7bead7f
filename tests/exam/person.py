"""A person who does what Dynaurora prints, and knows nothing else.

Invariant: Dynaurora printed every command that is run, except for two routine ones: `dynaurora status NAME --probe` to
see what there is to do, and `dynaurora reconcile NAME` once it says that there is nothing. Each runs in its own
process, typed as printed.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_COMMAND = re.compile(r"`((?:dynaurora|chronyc) [^`]+)`")
# These only look: the person looks anyway, before and after each step.
_LOOKS = ("dynaurora status", "chronyc tracking")
_MOST_LOOKS = 25
_COMMAND_SECONDS = 900.0


@dataclass(frozen=True, slots=True)
class Answer:
    """The outcome of a command."""

    command: str
    code: int
    text: str
    seconds: float


@dataclass(slots=True)
class Repair:
    """What the person did, from the first look to a copy that Dynaurora calls proven."""

    proven: bool = False
    looks: int = 0
    followed: list[Answer] = field(default_factory=list[Answer])


@dataclass(frozen=True)
class Person:
    """`wait`: let a minute pass before the next look."""

    name: str
    environment: Mapping[str, str] = field(repr=False)
    wait: Callable[[], None]
    transcript: TextIO

    def look(self, *, quietly: bool = False) -> Answer:
        """See what there is to do."""
        return self.run(f"dynaurora status {self.name} --probe", quietly=quietly)

    def put_right(self) -> Repair:
        """Do what is printed until nothing is, and until a reconciliation finds nothing either."""
        repair = Repair()
        for _ in range(_MOST_LOOKS):
            repair.looks += 1
            looked = self.look()
            to_do = printed(looked)
            if not looked.code and not to_do:
                looked = self.run(f"dynaurora reconcile {self.name}")
                if not looked.code:
                    repair.proven = True
                    break
                to_do = printed(looked)
            self._follow(repair, to_do)
            self.wait()
        return repair

    def _follow(self, repair: Repair, to_do: list[str]) -> None:
        for command in to_do:
            repair.followed.append(answer := self.run(command))
            if answer.code:
                repair.followed += [self.run(further) for further in printed(answer) if further != command]
                return  # and look again

    def run(self, command: str, *, quietly: bool = False) -> Answer:
        """Run a command as a person types it; `quietly`: leave it out of the transcript."""
        started = time.monotonic()
        done = subprocess.run(
            shlex.split(command),
            env=dict(self.environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=_COMMAND_SECONDS,
            check=False,
        )
        answer = Answer(command, done.returncode, done.stdout, round(time.monotonic() - started, 1))
        if not quietly:
            self.transcript.write(f"$ {command}\n{answer.text}[exit {answer.code}, {answer.seconds:.1f} s]\n\n")
            self.transcript.flush()
        return answer


def printed(answer: Answer) -> list[str]:
    """Return the commands that an answer names, in order, without those that only look."""
    found = [" ".join(command.split()) for command in _COMMAND.findall(answer.text)]
    return [command for command in dict.fromkeys(found) if not command.startswith(_LOOKS)]
