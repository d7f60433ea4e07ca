"""One line of the report: what is measured, against whom, and what it is held to."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch

from benchmarks.gpu_timing import Step, Times, in_turns
from benchmarks.peers import PeerMissing

UNITS = {  # what a row's numbers are called: how a goal is written
    "ratio": "{}x as fast",
    "us": "{} us",
    "memory": "{}x the output",
    "bandwidth": "{} of a copy's bandwidth",
}


@dataclass(frozen=True)
class Goal:
    """A bound on one of a row's numbers, from below or from above."""

    number: str
    at_least: float | None = None
    at_most: float | None = None

    def __str__(self) -> str:
        sign, limit = (">=", self.at_least) if self.at_least is not None else ("<=", self.at_most)
        return f"{sign} {UNITS[self.number].format(f'{limit:g}')}"

    def met(self, numbers: Mapping[str, float]) -> bool:
        value = numbers.get(self.number, math.nan)  # which meets nothing
        return value >= self.at_least if self.at_least is not None else value <= self.at_most


@dataclass(frozen=True)
class Sides:
    """Two ways to do the same, ready to be timed."""

    ours: Step
    theirs: Step
    check: Callable[[], None]  # raises AssertionError where they do not agree
    more: Callable[[Times], dict[str, float]] = lambda times: {}  # numbers beside the ratio, from our times


@dataclass(frozen=True)
class Case:
    """What there is to measure."""

    table: str
    what: str
    peer: str
    build: Callable[[torch.device], Sides]  # raises PeerMissing
    goals: tuple[Goal, ...] = ()


@dataclass(frozen=True)
class Row:
    """What was measured of it."""

    table: str
    what: str
    peer: str
    goals: tuple[Goal, ...] = ()
    ours: Times | None = None
    theirs: Times | None = None
    numbers: dict[str, float] = field(default_factory=dict)
    not_measured: str = ""  # why not, where nothing is wrong with that
    error: str = ""

    @property
    def missed(self) -> list[str]:
        """The goals that were measured and missed."""
        return [f"{goal}" for goal in self.goals if self.ours and not goal.met(self.numbers)]


def measure(case: Case, device: torch.device) -> Row:
    """Check that both sides agree, then time them; whatever goes wrong is in the row."""
    row = {"table": case.table, "what": case.what, "peer": case.peer, "goals": case.goals}
    try:
        sides = case.build(device)
        sides.check()
        ours, theirs = in_turns([sides.ours, sides.theirs], device)
        numbers = {"ratio": theirs.median / ours.median, "us": ours.median, **sides.more(ours)}
        _raise_faults()
    except PeerMissing as missing:
        return Row(**row, not_measured=str(missing))
    except Exception as error:  # one row's fault is not the next one's
        return Row(**row, error=" ".join(f"{type(error).__name__}: {error}".split())[:300])
    return Row(**row, ours=ours, theirs=theirs, numbers=numbers)


def _raise_faults() -> None:
    if faults := sys.modules.get("detr_fast.ops.faults"):
        faults.raise_faults()
