from __future__ import annotations

from pathlib import Path

import pytest
import torch
from triton.runtime.interpreter import InterpretedFunction

from benchmarks import gpu_checks

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="Triton's interpreter is off where there is a GPU")
def test_every_kernel_is_launched(monkeypatch):
    launched = set()
    launch = InterpretedFunction.run

    def record(self, *arguments, **options):
        launched.add(self.fn.__name__)
        return launch(self, *arguments, **options)

    monkeypatch.setattr(InterpretedFunction, "run", record)
    gpu_checks.launch_kernels(CPU)
    named = [line for path in (ROOT / "kernels").glob("*.py") for line in path.read_text().splitlines()]
    kernels = {line.removeprefix("def ").partition("(")[0] for line in named if line.startswith("def ")}
    assert launched == {name for name in kernels if name.endswith("_kernel")}


@pytest.mark.parametrize(
    ("test", "passed"),
    [("def test(): pass", True), ("def test(): assert 0", False), ("import pytest\ndef test(): pytest.skip()", False)],
)
def test_tests_have_to_run_and_to_pass(test, passed, tmp_path):
    (tmp_path / "test_one.py").write_text(test)
    check = gpu_checks.run_tests(["-p", "no:cacheprovider", str(tmp_path)])
    assert check.passed is passed
    assert ("1 passed" in check.detail) is passed


@pytest.mark.parametrize(("code", "passed"), [(0, True), (9, False)])
def test_a_sanitizer_is_judged_by_its_exit_status(code, passed, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpu_checks.sanitize("memcheck").passed is None
    tool = tmp_path / "compute-sanitizer"
    tool.write_text(f"#!/bin/sh\necho '========= ERROR SUMMARY: {code} errors'\nexit {code}\n")
    tool.chmod(0o755)
    check = gpu_checks.sanitize("memcheck")
    assert (check.passed, check.detail) == (passed, f"ERROR SUMMARY: {code} errors")


def test_a_step_that_synchronizes_fails_the_check_and_the_mode_is_restored(monkeypatch):
    modes = []
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)

    def step():
        if modes == ["error"]:
            raise RuntimeError("called a synchronizing CUDA operation")

    check = gpu_checks.does_not_synchronize("step", step)
    assert (check.passed, check.detail) == (False, "RuntimeError: called a synchronizing CUDA operation")
    assert modes == ["error", "default"]
    modes.clear()
    assert all(check.passed for check in gpu_checks.check_synchronization(CPU))
