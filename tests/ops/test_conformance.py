"""Every backend of every op against the reference, by one rule; a backend is tested by being registered."""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from detr_fast.ops.dispatch import OPS, REFERENCE
from tests.ops.conformance import as_arrays, assert_as_exact, cast, run
from tests.ops.inputs import Case

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
SEED = int(os.environ.get("DETR_FAST_TEST_SEED") or torch.seed() % 2**32)  # of the cases called random
DRAWS = 8  # of a case's inputs, over which plain PyTorch's error is taken: that of one may be small by chance


def cases_of(op: str) -> Iterator[Case]:
    return import_module(f"tests.ops.inputs.{op}").conformance_cases()


def _device_marks(op: str, backend: str) -> dict[str, list[pytest.MarkDecorator]]:
    """The devices that a backend can run on, with what has to be there for it."""
    refusal = OPS[op].backends[backend].refusal
    marks: dict[str, list[pytest.MarkDecorator]] = {"cpu": [], "cuda": [pytest.mark.gpu]}
    if torch.cuda.is_available() and backend == "triton":
        marks["cpu"].append(pytest.mark.skip(reason="Triton's interpreter is off where there is a GPU"))
    if "it runs on the CPU only" in (refusal(torch.device("cuda")) or ""):
        del marks["cuda"]
    return marks


def _parameters() -> Iterator[Any]:
    for op in sorted(OPS):
        for backend in [name for name in OPS[op].backends if name != REFERENCE]:
            for device, marks in _device_marks(op, backend).items():
                for dtype in DTYPES:
                    # The interpreter takes most of the time; float32 tells most.
                    slow = [pytest.mark.slow] if backend == "triton" and dtype != torch.float32 else []
                    for case in cases_of(op):
                        name = f"{op}-{backend}-{device}-{str(dtype).removeprefix('torch.')}-{case.name}"
                        yield pytest.param(op, backend, device, dtype, case, marks=[*marks, *slow], id=name)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the interpreter's, of inf - inf and the like
@pytest.mark.parametrize(("op", "backend", "device", "dtype", "case"), [*_parameters()])
def test_backend_is_as_exact_as_plain_pytorch(
    op: str, backend: str, device: str, dtype: torch.dtype, case: Case, empty_is_nan: None
) -> None:
    """Outputs and gradients; DETR_FAST_TEST_SEED repeats the random inputs of a run."""
    found, cpu, where = OPS[op], torch.device("cpu"), torch.device(device)
    prepare = list if found.signature.takes_tensors else as_arrays
    rng = torch.Generator().manual_seed(SEED if case.name.startswith("random") else 0)
    arguments = case.make(dtype, rng)
    result = run(found, prepare(arguments), backend, where, case.gradients)
    has_errors = any(x.is_floating_point() for x in result)
    draws = [arguments, *(case.make(dtype, rng) for _ in range(DRAWS - 1 if has_errors else 0))]
    used = torch.float32 if dtype == torch.float64 else dtype
    plain = [run(found, prepare(cast(x, used)), REFERENCE, where, case.gradients) for x in draws]
    exact = [run(found, prepare(cast(x, torch.float64)), REFERENCE, cpu, case.gradients) for x in draws]
    for index, each in enumerate(zip(result, zip(*plain, strict=True), zip(*exact, strict=True), strict=True)):
        try:
            assert_as_exact(*each)
        except AssertionError as error:
            raise AssertionError(f"result {index}, DETR_FAST_TEST_SEED={SEED}: {error}") from error


def test_every_op_has_inputs():
    modules = {path.stem for path in (Path(__file__).parent / "inputs").glob("*.py")} - {"__init__"}
    assert modules == set(OPS)
