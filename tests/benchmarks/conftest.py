from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import clock
from benchmarks.registry import Case, Goal, Implementation


@pytest.fixture(autouse=True)
def _few_rounds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(clock, "ROUNDS", (2, 2))
    monkeypatch.setattr(clock, "FLUSHED", 2**10)
    monkeypatch.setattr(clock, "CPU_CACHES", tmp_path)


@pytest.fixture
def make_case() -> Callable[..., Case]:
    """Builds a case of two implementations of x + 1, with a goal for the ratio and one for the time."""

    def make(**changed: Any) -> Case:
        arguments: dict[str, Any] = {
            "sizes": "a",
            "subject": "fast",
            "inputs": lambda: torch.ones(3),
            "implementations": {
                "fast": lambda x: Implementation(lambda: x + 1),
                "peer": lambda x: Implementation(lambda: [x, 1], lambda output: output[0] + output[1]),
            },
            "expected": lambda x: torch.full_like(x, 2.0, dtype=torch.float64),
            "goals": (Goal("ratio", 10, "peer"), Goal("us", 100)),
        }
        return Case(**{**arguments, **changed})

    return make
