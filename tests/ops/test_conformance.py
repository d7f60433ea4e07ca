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
SEED = int(os.environ.get("DETR_FAST_TEST_SEED") or torch.seed() % 2**32)


def cases_of(op: str) -> Iterator[Case]:
    return import_module(f"tests.ops.inputs.{op}").conformance_cases()


def _devices(op: str, backend: str) -> Iterator[Any]:
    reason = OPS[op].backends[backend].refusal(torch.device("cpu"))
    interpreter_off = "TRITON" in (reason or "") and torch.cuda.is_available()
    yield pytest.param("cpu", marks=pytest.mark.skip(reason="the interpreter is off") if interpreter_off else [])
    if "it runs on the CPU only" not in (OPS[op].backends[backend].refusal(torch.device("cuda")) or ""):
        yield pytest.param("cuda", marks=pytest.mark.gpu)


def _parameters() -> Iterator[Any]:
    for op in sorted(OPS):
        for backend in OPS[op].backends:
            if backend == REFERENCE:
                continue
            for device in _devices(op, backend):
                for case in cases_of(op):
                    yield pytest.param(
                        op, backend, device.values[0], case, marks=device.marks,
                        id=f"{op}-{backend}-{device.values[0]}-{case.name}",
                    )  # fmt: skip


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the interpreter's, of inf - inf and the like
@pytest.mark.parametrize(("op", "backend", "device", "case"), [*_parameters()])
def test_backend_is_as_exact_as_plain_pytorch(op: str, backend: str, device: str, case: Case, empty_is_nan) -> None:
    """Outputs and gradients, in all dtypes. DETR_FAST_TEST_SEED repeats the random inputs of a run."""
    found = OPS[op]
    prepare = list if found.signature.takes_tensors else as_arrays
    for number, dtype in enumerate(DTYPES):
        rng = torch.Generator().manual_seed(SEED + number)
        arguments = case.make(dtype, rng)
        where = torch.device(device)
        exact = run(found, prepare(cast(arguments, torch.float64)), REFERENCE, torch.device("cpu"), case.gradients)
        plain = run(found, prepare(arguments), REFERENCE, where, case.gradients)
        result = run(found, prepare(arguments), backend, where, case.gradients)
        single: list[Any] = [None] * len(result)
        if dtype == torch.float64:
            in_float32 = cast(arguments, torch.float32)
            single = run(found, prepare(in_float32), REFERENCE, torch.device("cpu"), case.gradients)
        for index, each in enumerate(zip(result, plain, exact, single, strict=True)):
            try:
                assert_as_exact(*each)
            except AssertionError as error:
                raise AssertionError(f"{dtype}, result {index}, DETR_FAST_TEST_SEED={SEED}: {error}") from error


def test_every_op_has_inputs():
    modules = {path.stem for path in (Path(__file__).parent / "inputs").glob("*.py")} - {"__init__"}
    assert modules == set(OPS)
