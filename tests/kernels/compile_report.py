"""Compile every kernel for GPUs that are not there: ``python -m tests.kernels.compile_report`` prints a line for each.

Each op's Triton backend is called on the inputs that its module in tests/ops/inputs has for it, its launches are
recorded in place of being executed, and what was launched is compiled for each architecture and assembled by ptxas.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas, sm_arch_from_capability
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import JITFunction, create_function_from_signature

from detr_fast.ops.dispatch import OPS
from tests.ops.inputs import CompileCase

ARCHITECTURES = (80, 89, 90, 100, 120)


@dataclass(frozen=True)
class Launch:
    """One kernel as it was launched, and the most registers that a thread of it may take."""

    name: str
    kernel: JITFunction
    args: tuple[Any, ...]
    kwargs: dict[str, Any]  # the other arguments, and options of the compiler such as num_warps
    registers: int


def record_launches(op: str, case: CompileCase) -> list[Launch]:
    """Return the launches of an op's forward and backward function."""
    launches: list[Launch] = []

    def record(kernel: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        number = 1 + sum(launch.kernel is kernel for launch in launches)
        name = f"{op}, {case.name}: {kernel.__name__}, launch {number}"
        launches.append(Launch(name, kernel, args, kwargs, case.registers[kernel.__name__]))

    backend = OPS[op].backends["triton"]
    run, JITFunction.run = JITFunction.run, record
    try:
        outputs = backend.forward(*case.arguments)
        if backend.backward is not None:
            outputs = [outputs] if isinstance(outputs, Tensor) else outputs
            needed = (True,) * OPS[op].signature.num_differentiable
            backend.backward([torch.empty_like(x) for x in outputs], needed, *case.arguments)
    finally:
        JITFunction.run = run
    return launches


def all_launches() -> list[Launch]:
    """Return the launches of every op that has a Triton backend."""
    launches = []
    for op in sorted(OPS):
        if "triton" in OPS[op].backends:
            for case in import_module(f"tests.ops.inputs.{op}").compile_cases():
                launches += record_launches(op, case)
    return launches


def compile_launch(launch: Launch, architecture: int) -> dict[str, Any]:
    """Return registers, spills and shared memory of one kernel on one architecture, by ptxas."""
    target = GPUTarget("cuda", architecture, 32)
    source, options = _specialize(launch, target)
    compiled = triton.compile(source, target=target, options=options)
    log = _assemble(compiled.asm["ptx"], architecture)
    return {
        "name": launch.name,
        "kernel": launch.kernel.__name__,
        "architecture": architecture,
        "registers": int(_number(r"Used (\d+) registers", log)),
        "spill_stores": int(_number(r"(\d+) bytes spill stores", log)),
        "spill_loads": int(_number(r"(\d+) bytes spill loads", log)),
        "stack": int(_number(r"(\d+) bytes stack frame", log)),
        "shared": compiled.metadata.shared,
        "limit": launch.registers,
    }


def _specialize(launch: Launch, target: GPUTarget) -> tuple[ASTSource, dict[str, Any]]:
    """Return what the JIT would compile for a launch; it derives types, constants and alignments from the arguments."""
    kernel, backend = launch.kernel, make_backend(target)
    bind = create_function_from_signature(kernel.signature, kernel.params, backend)
    bound, specialization, options = bind(*launch.args, **launch.kwargs)
    options, signature, constants, attributes = kernel._pack_args(
        backend, launch.kwargs, bound, specialization, options
    )
    return ASTSource(kernel, signature, constants, attributes), options.__dict__


def _assemble(ptx: str, architecture: int) -> str:
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "kernel.ptx"
        source.write_text(ptx)
        name = f"--gpu-name={sm_arch_from_capability(architecture)}"
        command = [get_ptxas(architecture).path, "-v", name, str(source), "-o", str(source.with_suffix(".cubin"))]
        return subprocess.run(command, check=True, capture_output=True, text=True).stderr


def _number(pattern: str, log: str) -> str:
    found = re.search(pattern, log)
    if not found:
        raise RuntimeError(f"ptxas did not report {pattern!r}:\n{log}")
    return found[1]


_LAUNCHES: list[Launch] = []  # inherited by the forked processes


def _compile(index: tuple[int, int]) -> dict[str, Any]:
    number, architecture = index
    return compile_launch(_LAUNCHES[number], architecture)


def report() -> Iterator[dict[str, Any]]:
    """Compile every launch for every architecture, in as many processes as there are cores."""
    _LAUNCHES[:] = all_launches()
    indices = [(number, architecture) for number in range(len(_LAUNCHES)) for architecture in ARCHITECTURES]
    with ProcessPoolExecutor(os.cpu_count(), get_context("fork")) as pool:
        yield from pool.map(_compile, indices)


if __name__ == "__main__":
    for row in report():
        print(json.dumps(row))
        sys.stdout.flush()
