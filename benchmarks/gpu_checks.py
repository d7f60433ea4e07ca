"""What has to hold on a GPU before its times mean anything: tests, sanitizers, nothing that waits."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.conftest import coco_like_targets
from benchmarks.gpu_step_cases import criterion_step
from benchmarks.integration_steps import predictions
from detr_fast import SetCriterion, ops

ROOT = Path(__file__).parents[1]
TESTS_SECONDS, SANITIZER_SECONDS = 300, 90


@dataclass(frozen=True)
class Check:
    name: str
    passed: bool | None  # None: it was not run
    detail: str


def checks(device: torch.device) -> Iterator[Check]:
    yield run_tests()
    for tool in ("memcheck", "racecheck"):
        yield sanitize(tool)
    yield from nothing_waits(device)


def run_tests(arguments: Sequence[str] = ("-m", "gpu", "tests")) -> Check:
    """The tests that need a GPU; that some ran, and all that ran passed."""
    command = [sys.executable, "-m", "pytest", "-q", "--tb=short", *arguments]
    code, output = _run(command, TESTS_SECONDS)
    lines = output.strip().splitlines() or ["no output"]
    some = re.search(r"\d+ passed", lines[-1]) is not None
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    return Check("pytest -m gpu", code == 0 and some, "; ".join([lines[-1].strip("= "), *failed]))


def sanitize(tool: str, program: str = "benchmarks.launch_kernels") -> Check:
    name = f"compute-sanitizer --tool {tool}"
    if shutil.which("compute-sanitizer") is None:
        return Check(name, None, "compute-sanitizer is not on PATH")
    command = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "9"]
    if tool == "memcheck":
        command += ["--report-api-errors", "no"]
    # Each tensor gets memory of its own, so that reading past its end is seen.
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    code, output = _run([*command, sys.executable, "-m", program], SANITIZER_SECONDS, environment)
    summary = [line.lstrip("= ") for line in output.splitlines() if "SUMMARY" in line]
    return Check(name, code == 0, "; ".join(summary or output.strip().splitlines()[-1:]))


def nothing_waits(device: torch.device) -> Iterator[Check]:
    predicted, targets = predictions(6, 2, 100, 92, device), coco_like_targets(2).to(device)
    mask = torch.zeros(2, 32, 32, dtype=torch.bool, device=device)
    yield _does_not_wait("matcher and criterion", criterion_step(SetCriterion(), *predicted, targets))
    yield _does_not_wait("sine_position_encoding", lambda: ops.sine_position_encoding(mask))


def _does_not_wait(name: str, step: Callable[[], Any]) -> Check:
    name = f"{name}: nothing waits for the device"
    try:
        step()  # compiles
        torch.cuda.set_sync_debug_mode("error")
        step()
    except Exception as error:
        return Check(name, False, f"{type(error).__name__}: {error}")
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return Check(name, True, 'under torch.cuda.set_sync_debug_mode("error")')


def _run(command: list[str], seconds: float, environment: dict[str, str] | None = None) -> tuple[int, str]:
    """Exit status and output; a command that takes too long is ended, and says so."""
    try:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT, env=environment,
            timeout=seconds,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return 1, f"ended after {seconds} s"
    return done.returncode, done.stdout
