"""Compiles the kernels for GPUs that are not there and prints what ptxas says of each: one JSON object a line.

A program of its own, because Triton's interpreter, which the tests use, cannot be switched off in a process.
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
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import triton
from detr_fast.kernels.linear_sum_assignment import launch_options as assignment_options
from detr_fast.kernels.linear_sum_assignment import linear_sum_assignment_kernel
from detr_fast.kernels.pairwise_box import (
    BACKWARD_BLOCK,
    FORWARD_BLOCK,
    pairwise_box_bwd_kernel,
    pairwise_box_fwd_kernel,
)
from detr_fast.kernels.set_loss_kernels import set_loss_bwd_kernel, set_loss_fwd_kernel, set_loss_reduce_kernel
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas, sm_arch_from_capability
from triton.compiler import ASTSource

from detr_fast.kernels.match_cost import constants as match_cost_constants
from detr_fast.kernels.match_cost import match_cost_kernel
from detr_fast.kernels.set_loss import launch_options as set_loss_options
from detr_fast.kernels.set_loss import loss_weights, reduce_options
from detr_fast.kernels.sine_coordinate_embedding import constants as coordinate_constants
from detr_fast.kernels.sine_coordinate_embedding import (
    sine_coordinate_embedding_bwd_kernel,
    sine_coordinate_embedding_fwd_kernel,
)
from detr_fast.kernels.sine_position_encoding import sine_position_encoding_kernel
from detr_fast.ops.weights import LossWeights, MatchWeights

ARCHITECTURES = (80, 89, 90, 100, 120)


@dataclass(frozen=True)
class KernelCase:
    """One kernel at one shape, and the most registers a thread of it may take."""

    name: str
    kernel: Any
    signature: dict[str, str]  # run-time arguments and their types
    constexprs: dict[str, Any]
    num_warps: int
    ceiling: int


def _sine(name: str, dtype: str, ceiling: int, **constexprs: Any) -> KernelCase:
    constants = {
        "NUM_FEATS": 128,
        "LOG2_TEMPERATURE": 13.287712379549449,
        "NORMALIZE": True,
        "SCALE": 6.283185307179586,
        "EPS": 1e-6,
        "OFFSET": 0.0,
        "INTERLEAVE": True,
        "CHANNELS_LAST": False,
        "COMPUTE": triton.language.float32,
        "BLOCK_H": 32,
        "BLOCK_W": 64,
        "BLOCK_P": 16,
        **constexprs,
    }
    signature = {"mask_ptr": "*i1", "out_ptr": f"*{dtype}", "height": "i32", "width": "i32"}
    return KernelCase(f"sine {name}", sine_position_encoding_kernel, signature, constants, 4, ceiling)


def _coordinates(num_coordinates: int, num_feats: int, dtype: str, ceilings: tuple[int, int]) -> list[KernelCase]:
    constants = coordinate_constants(num_coordinates, num_feats, 10000.0, 6.283185307179586, "yxwh", torch.float32)
    name = f"coordinates {num_coordinates} {dtype}"
    coordinates, strides = {"coordinates_ptr": f"*{dtype}"}, {"row_stride": "i32", "coordinate_stride": "i32"}
    forward = {**coordinates, "out_ptr": f"*{dtype}", **strides, "num_blocks": "i32"}
    backward = {
        **coordinates,
        "grad_ptr": f"*{dtype}",
        "grad_coordinates_ptr": f"*{dtype}",
        **strides,
        "grad_row_stride": "i32",
        "num_blocks": "i32",
    }
    contiguous = {"grad_feature_stride": 1}  # a stride of 1 is a constant to Triton
    return [
        KernelCase(f"{name} forward", sine_coordinate_embedding_fwd_kernel, forward, constants, 4, ceilings[0]),
        KernelCase(
            f"{name} backward", sine_coordinate_embedding_bwd_kernel, backward, constants | contiguous, 4, ceilings[1]
        ),
    ]


def _pairwise(kind: str, centres: bool, eps: float, ceilings: tuple[int, int]) -> list[KernelCase]:
    constants = {
        "KIND": kind,
        "CENTRES": centres,
        "EPS": eps,
        "COMPUTE": triton.language.float32,
    }
    boxes = {"a_ptr": "*fp32", "b_ptr": "*fp32"}
    strides = {"stride_a": "i32", "stride_b": "i32"}
    counts = {"num_a": "i32", "num_b": "i32"}
    forward = {**boxes, "out_ptr": "*fp32", **strides, **counts}
    grad_strides = dict.fromkeys(("grad_stride_batch", "grad_stride_a", "grad_stride_b"), "i32")
    backward = {**boxes, "grad_ptr": "*fp32", "grad_a_ptr": "*fp32", **strides, **grad_strides, **counts}
    return [
        KernelCase(f"pairwise {kind} {way}", kernel, signature, {**constants, **block}, 4, ceiling)
        for way, kernel, signature, block, ceiling in (
            ("forward", pairwise_box_fwd_kernel, forward, FORWARD_BLOCK, ceilings[0]),
            ("backward", pairwise_box_bwd_kernel, backward, BACKWARD_BLOCK, ceilings[1]),
        )
    ]


def _match_cost(num_classes: int, dtype: str, weights: MatchWeights, ceiling: int) -> KernelCase:
    predicted = {"logits_ptr": f"*{dtype}", "boxes_ptr": f"*{dtype}"}
    targets = {"labels_ptr": "*i64", "target_boxes_ptr": "*fp32", "offsets_ptr": "*i32"}
    counts = dict.fromkeys(("num_images", "num_queries", "num_targets"), "i32")
    return KernelCase(
        f"match_cost {weights.class_cost} eps {weights.focal_eps} {num_classes} {dtype}",
        match_cost_kernel,
        {**predicted, **targets, "out_ptr": "*fp32", **counts},
        match_cost_constants(num_classes, weights, triton.language.float32),
        4,
        ceiling,
    )


def _assignment(largest_image: int, num_queries: int, ceiling: int) -> KernelCase:
    options = assignment_options(largest_image, num_queries)
    num_warps = options.pop("num_warps")
    pointers = {"cost_ptr": "*fp32", "offsets_ptr": "*i32", "index_ptr": "*i64", "status_ptr": "*i64"}
    counts = dict.fromkeys(("num_images", "num_groups", "num_targets", "num_queries"), "i32")
    name = f"assignment {largest_image} of {num_queries}"
    return KernelCase(name, linear_sum_assignment_kernel, {**pointers, **counts}, options, num_warps, ceiling)


def _set_loss(num_classes: int, dtype: str, weights: LossWeights, ceilings: tuple[int, int]) -> list[KernelCase]:
    options = set_loss_options(300, num_classes, weights, torch.float32)
    num_warps = options.pop("num_warps")
    predicted = {"logits_ptr": f"*{dtype}", "boxes_ptr": f"*{dtype}"}
    targets = {"labels_ptr": "*i64", "target_boxes_ptr": "*fp32", "offsets_ptr": "*i32", "index_ptr": "*i64"}
    counts = dict.fromkeys(("num_images", "num_queries", "num_classes", "num_targets", "num_groups"), "i32")
    forward = {**predicted, **targets, "partial_ptr": "*fp32", "status_ptr": "*i64", **counts}
    backward = {
        **predicted,
        **targets,
        "num_boxes": "*fp32",
        "class_normalizer": "*fp32",
        "grad_losses_ptr": "*fp32",
        "grad_total_ptr": "*fp32",
        "grad_logits_ptr": f"*{dtype}",
        "grad_boxes_ptr": f"*{dtype}",
        "num_layers": "i32",
        **counts,
    }
    upstream = {"FROM_LOSSES": True, "FROM_TOTAL": True, "ON_DEVICE": True, **loss_weights(weights)}
    name = f"set_loss {weights.class_loss} {weights.focal_gamma} {num_classes} {dtype}"
    return [
        KernelCase(f"{name} forward", set_loss_fwd_kernel, forward, options, num_warps, ceilings[0]),
        KernelCase(f"{name} backward", set_loss_bwd_kernel, backward, upstream | options, num_warps, ceilings[1]),
    ]


def _set_loss_reduce(num_layers: int, ceiling: int) -> KernelCase:
    pointers = {"partial_ptr": "*fp32", "num_boxes": "fp32", "class_normalizer": "fp32"}
    signature = {**pointers, "losses_ptr": "*fp32", "total_ptr": "*fp32", "num_layers": "i32", "num_partials": "i32"}
    options = reduce_options(num_layers)
    num_warps = options.pop("num_warps")
    constants = {"SOFTMAX": True, "ON_DEVICE": False, "DTYPE": triton.language.float32}
    constants |= {**loss_weights(LossWeights()), **options}
    name = f"set_loss reduce {num_layers} layers"
    return KernelCase(name, set_loss_reduce_kernel, signature, constants, num_warps, ceiling)


CASES = [
    _sine("bchw fp32", "fp32", 80),
    _sine("blc fp32", "fp32", 48, CHANNELS_LAST=True, BLOCK_W=16, BLOCK_P=64),
    _sine("blc bf16 apart", "bf16", 64, CHANNELS_LAST=True, INTERLEAVE=False, BLOCK_W=16, BLOCK_P=64),
    *_coordinates(4, 128, "fp32", (80, 80)),
    *_coordinates(2, 256, "bf16", (80, 104)),
    *_pairwise("iou", False, 0.0, (80, 128)),
    *_pairwise("giou", True, 1e-6, (96, 168)),
    *_pairwise("l1", False, 0.0, (64, 96)),
    _match_cost(5, "bf16", MatchWeights.mmdet2(), 96),
    _match_cost(92, "fp32", MatchWeights.detr(), 128),
    _match_cost(91, "fp32", MatchWeights.deformable(), 112),
    _match_cost(91, "fp32", MatchWeights(class_cost="focal", focal_eps=0.0), 112),
    _match_cost(366, "fp32", MatchWeights.detr(), 128),
    _assignment(20, 100, 208),
    _assignment(100, 100, 208),
    _assignment(100, 300, 208),
    _assignment(300, 300, 208),
    _assignment(63, 900, 232),
    _assignment(300, 900, 232),
    *_set_loss(5, "bf16", LossWeights.mmdet2(), (72, 72)),
    *_set_loss(92, "fp32", LossWeights.detr(), (128, 144)),
    *_set_loss(91, "fp32", LossWeights.deformable(), (96, 144)),
    *_set_loss(91, "fp32", LossWeights.rt_detr(), (112, 144)),
    *_set_loss(91, "bf16", LossWeights.lw_detr(), (160, 144)),
    *_set_loss(366, "fp32", LossWeights(class_loss="focal", focal_gamma=1.5), (144, 112)),
    _set_loss_reduce(6, 144),
    _set_loss_reduce(13, 144),
]


def compile_case(case: KernelCase, architecture: int) -> dict[str, Any]:
    """Registers, spills and shared memory of one kernel on one architecture, by ptxas."""
    source = ASTSource(
        fn=case.kernel,
        signature={**case.signature, **dict.fromkeys(case.constexprs, "constexpr")},
        constexprs=case.constexprs,
        attrs={
            (position,): [["tt.divisibility", 16]]  # as tensors of PyTorch are aligned
            for position, type_ in enumerate(case.signature.values())
            if type_.startswith("*")
        },
    )
    target = GPUTarget("cuda", architecture, 32)
    compiled = triton.compile(source, target=target, options={"num_warps": case.num_warps})
    log = _assemble(compiled.asm["ptx"], architecture)
    return {
        "name": case.name,
        "architecture": architecture,
        "registers": int(_number(r"Used (\d+) registers", log)),
        "spill_stores": int(_number(r"(\d+) bytes spill stores", log)),
        "spill_loads": int(_number(r"(\d+) bytes spill loads", log)),
        "stack": int(_number(r"(\d+) bytes stack frame", log)),
        "shared": compiled.metadata.shared,
        "ceiling": case.ceiling,
    }


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


def _compile_numbered(place: tuple[int, int]) -> dict[str, Any]:
    number, architecture = place
    return compile_case(CASES[number], architecture)


def report() -> Iterator[dict[str, Any]]:
    """Each case on each architecture, in as many processes as there are cores."""
    places = list(product(range(len(CASES)), ARCHITECTURES))
    with ProcessPoolExecutor(os.cpu_count(), get_context("fork")) as pool:
        yield from pool.map(_compile_numbered, places)


if __name__ == "__main__":
    for row in report():
        print(json.dumps(row))
        sys.stdout.flush()
