"""What must pass on a GPU before times mean anything: the tests, compute-sanitizer, and no synchronizations.

``python -m benchmarks.gpu_checks`` launches every Triton kernel on small inputs; compute-sanitizer runs over it.
"""

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

from benchmarks.cases import criterion, normalize_and_pad, sine_position_encoding
from benchmarks.registry import small_cases
from detr_fast import raise_faults
from detr_fast.ops.dispatch import OPS

ROOT = Path(__file__).parents[1]
TESTS_SECONDS, SANITIZER_SECONDS = 300, 90


@dataclass(frozen=True)
class Check:
    """The outcome of a check."""

    name: str
    passed: bool | None  # None: it was not run
    detail: str


def checks(device: torch.device) -> Iterator[Check]:
    """Run all checks."""
    yield run_tests()
    for tool in ("memcheck", "racecheck"):
        yield sanitize(tool)
    yield from check_synchronization(device)


def run_tests(arguments: Sequence[str] = ("-m", "gpu", "tests")) -> Check:
    """Run the tests that need a GPU; it passes if some ran, and all that ran passed."""
    command = [sys.executable, "-m", "pytest", "-q", "--tb=short", *arguments]
    code, output = _run(command, TESTS_SECONDS)
    lines = output.strip().splitlines() or ["no output"]
    some = re.search(r"\d+ passed", lines[-1]) is not None
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    return Check("pytest -m gpu", code == 0 and some, "; ".join([lines[-1].strip("= "), *failed]))


def sanitize(tool: str) -> Check:
    """Run a tool of compute-sanitizer over every kernel."""
    name = f"compute-sanitizer --tool {tool}"
    if shutil.which("compute-sanitizer") is None:
        return Check(name, None, "compute-sanitizer is not on PATH")
    command = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "9"]
    if tool == "memcheck":
        command += ["--report-api-errors", "no"]
    # Each tensor gets an allocation of its own, so that reads past its end are found.
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    code, output = _run([*command, sys.executable, "-m", "benchmarks.gpu_checks"], SANITIZER_SECONDS, environment)
    summary = [line.lstrip("= ") for line in output.splitlines() if "SUMMARY" in line]
    return Check(name, code == 0, "; ".join(summary or output.strip().splitlines()[-1:]))


def launch_kernels(device: torch.device) -> None:
    """Run the Triton backend of each op on the small cases, forward and backward, and with deterministic algorithms."""
    was_deterministic = torch.are_deterministic_algorithms_enabled()
    try:
        for deterministic in (False, True):
            torch.use_deterministic_algorithms(deterministic, warn_only=True)
            for _, case in small_cases(device, only=[name for name, op in OPS.items() if "triton" in op.backends]):
                case.implementations["triton"](case.inputs()).call()
    finally:
        torch.use_deterministic_algorithms(was_deterministic)
    raise_faults()


def check_synchronization(device: torch.device) -> Iterator[Check]:
    """Check that the criterion, the encoding and the images do not synchronize with the device."""
    cases = (
        ("matcher and criterion", criterion.case(device, "detr", 6, 2, 100), "detr_fast"),
        ("sine_position_encoding", sine_position_encoding.case(device, 2, 32, 32), "triton"),
        ("normalize_and_pad", normalize_and_pad.case(device, 2, 64, 96), "triton"),
    )
    for name, case, implementation in cases:
        name = f"{name}: no synchronization"
        if device.type == "cpu":  # where the kernels run in Triton's interpreter at best
            implementation = case.subject
        yield does_not_synchronize(name, case.implementations[implementation](case.inputs()).call)


def does_not_synchronize(name: str, step: Callable[[], Any]) -> Check:
    """Run a step, first to compile it, then with synchronizations raising an error."""
    try:
        step()
        torch.cuda.set_sync_debug_mode("error")
        step()
    except Exception as error:
        return Check(name, False, f"{type(error).__name__}: {error}")
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return Check(name, True, 'under torch.cuda.set_sync_debug_mode("error")')


def _run(command: list[str], seconds: float, environment: dict[str, str] | None = None) -> tuple[int, str]:
    """Return the exit status and the output of a command, which is ended where it takes too long."""
    try:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT, env=environment,
            timeout=seconds,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return 1, f"ended after {seconds} s"
    return done.returncode, done.stdout


if __name__ == "__main__":
    launch_kernels(torch.device("cuda"))
    torch.cuda.synchronize()
