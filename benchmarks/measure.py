"""From a case to its row: every implementation is checked, then all are timed in one interleaved run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from benchmarks import clock
from benchmarks.registry import Case, Row, Unavailable
from detr_fast import raise_faults


def measure(name: str, case: Case, device: torch.device, seconds: float = clock.SECONDS) -> Row:
    """Measure a case. What fails is in the row's errors, what cannot run in ``unavailable``; the rest is timed."""
    row = Row(name, case.sizes, case.protocol, case.subject, case.goals)
    calls: dict[str, clock.Call] = {}
    try:
        inputs = case.inputs()
        expected = case.expected(inputs)
    except Unavailable as reason:
        row.unavailable.update(dict.fromkeys(case.implementations, str(reason)))
        return row
    except Exception as error:  # what fails in one case does not stop the next
        row.errors["inputs"] = describe(error)
        return row

    def attempt(what: str, function: Callable[[], Any]) -> Any:
        try:
            result = function()
            raise_faults()
            return result
        except Unavailable as reason:
            row.unavailable[what] = str(reason)
        except Exception as error:
            row.errors[what] = describe(error)
        return None

    held: dict[str, int] = {}
    for implementation in case.implementations:
        prepared = attempt(implementation, lambda name=implementation: case.prepare(name, inputs, expected))
        if prepared is not None:
            calls[implementation], held[implementation] = prepared.call, prepared.held
    if calls:
        timed = attempt("timing", lambda: clock.interleaved(calls, device, case.protocol, seconds))
        row.times.update(timed or {})
    if case.has_memory:
        for implementation, call in calls.items():
            peak = attempt(implementation, lambda call=call: clock.peak_memory(call, device))
            if peak is not None:
                row.memory[implementation] = peak + held[implementation]
    if case.subject in row.times:
        for number, compute in case.numbers.items():
            value = attempt(number, lambda compute=compute: compute(inputs, row.times[case.subject]))
            if value is not None:
                row.numbers[number] = value
    return row


def describe(error: Exception) -> str:
    """Return an exception's type and message on one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
