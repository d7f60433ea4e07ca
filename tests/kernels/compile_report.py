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
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from detr_fast.ops.dispatch import OPS
from tests.ops.inputs import CompileCase

ARCHITECTURES = (80, 89, 90, 100, 120)
_TYPES = {
    torch.bool: "i1",
    torch.int32: "i32",
    torch.int64: "i64",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.float32: "fp32",
    torch.float64: "fp64",
}


@dataclass(frozen=True)
class Launch:
    """One kernel as it was launched, and the most registers that a thread of it may take."""

    name: str
    kernel: JITFunction
    arguments: dict[str, Any]
    num_warps: int
    registers: int


def record_launches(op: str, case: CompileCase) -> list[Launch]:
    """Return the launches of an op's forward and backward function."""
    launches: list[Launch] = []

    def record(kernel: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        num_warps = kwargs.pop("num_warps", 4)
        arguments = dict(zip(kernel.arg_names, args, strict=False)) | kwargs
        name = f"{op}, {case.name}: {kernel.__name__}"
        launches.append(Launch(name, kernel, arguments, num_warps, case.registers[kernel.__name__]))

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
    """Return those of every op that has a Triton backend; a kernel that is launched twice alike is listed once."""
    launches = {}
    for op in sorted(OPS):
        if "triton" in OPS[op].backends:
            for case in import_module(f"tests.ops.inputs.{op}").compile_cases():
                launches.update({launch.name: launch for launch in record_launches(op, case)})
    return list(launches.values())


def compile_launch(launch: Launch, architecture: int) -> dict[str, Any]:
    """Return registers, spills and shared memory of one kernel on one architecture, by ptxas."""
    source = _source(launch)
    target = GPUTarget("cuda", architecture, 32)
    compiled = triton.compile(source, target=target, options={"num_warps": launch.num_warps})
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


def _source(launch: Launch) -> ASTSource:
    """Specialize the arguments as the JIT does: a 1 is a constant, multiples of 16 are known to be such."""
    signature, constants, attributes = {}, {}, {}
    for position, parameter in enumerate(launch.kernel.params):
        value = launch.arguments[parameter.name]
        is_one = isinstance(value, int) and value == 1 and not parameter.do_not_specialize
        if parameter.is_constexpr or is_one:
            signature[parameter.name] = "constexpr"
            constants[parameter.name] = value
        elif isinstance(value, Tensor):
            signature[parameter.name] = f"*{_TYPES[value.dtype]}"
            attributes[(position,)] = [["tt.divisibility", 16]]  # as PyTorch allocates
        else:
            signature[parameter.name] = "fp32" if isinstance(value, float) else "i32"
            if isinstance(value, int) and value % 16 == 0 and not parameter.do_not_specialize:
                attributes[(position,)] = [["tt.divisibility", 16]]
    return ASTSource(fn=launch.kernel, signature=signature, constexprs=constants, attrs=attributes)


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
