"""Count the ops of a training step of DETR with ResNet-50, and what in it would prevent a CUDA graph.

Nothing is computed: the tensors are fake ones on ``cuda``, so that no GPU is needed. Each op of PyTorch that is no view
and no allocation counts once, and so does each op of this library; an op on a list of tensors, such as the fused AdamW,
counts once as well, although it launches a kernel for some dozens of tensors at a time. Attention counts as the ops of
its definition, which a fused kernel may replace on a GPU. Ops with which the host waits for the device, and copies
between host and device, are listed.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.fake_cuda import environment
from detr_fast import DETR, SetCriterion, Targets
from detr_fast.training import optim
from detr_fast.training.step_function import StepFunction
from detr_fast.training.step_graphs import StepGraphs

READS = {"_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select"}
NO_LAUNCH = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "detach", "_unsafe_view"}
NO_LAUNCH |= {"device", "promote_types", "_record_function_enter_new", "_record_function_exit"}
COPIES = {"_to_copy", "copy_", "lift_fresh", "lift_fresh_copy"}
OPTIMIZERS = {"for loop": {"foreach": False}, "foreach": {"foreach": True}, "fused": {"fused": True}}


class OpRecorder(TorchDispatchMode):
    """Records the ops that are launched on a GPU, and those that no CUDA graph may contain."""

    def __init__(self) -> None:
        super().__init__()
        self.launched: list[str] = []
        self.forbidden: list[str] = []
        self.is_paused = False

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.name().split("::")[1].split(".")[0]
        # It works in place, and PyTorch has no fake kernel for it.
        result = None if name == "_fused_adamw_" else function(*args, **(kwargs or {}))
        tensors = [x for x in torch.utils._pytree.tree_leaves((args, kwargs, result)) if isinstance(x, Tensor)]
        devices = {x.device.type for x in tensors}
        # A scalar on the host may be an argument of a launch, but not what is copied.
        is_copied = {"cpu", "cuda"} <= devices and (name in COPIES or all(x.dim() for x in tensors))
        if self.is_paused:
            return result
        if name in READS or is_copied:
            self.forbidden.append(function.name())
        if not function.is_view and name not in NO_LAUNCH and "cuda" in devices:
            self.launched.append(function.name())
        return result


@dataclass(frozen=True)
class Recorded:
    """The ops of a step."""

    graph: OpRecorder  # what is part of the graph
    outside: OpRecorder  # what a step does besides: copies into the buffers of the graph
    adamw: int  # number of ops of AdamW


class _Eager:
    """Does steps where they would be recorded as a graph."""

    def reset(self) -> None:
        pass

    def run(self, step: Callable[[], Any]) -> Any:
        return step()

    def record(self, step: Callable[[], Any]) -> Callable[[], Any]:
        return step


def detr_loss(model: nn.Module, images: Tensor, mask: Tensor | None, targets: Targets) -> Any:
    """Compute the losses of a batch under autocast, as ``detr-fast train`` does with bf16."""
    with torch.autocast("cuda", dtype=torch.bfloat16):
        output = model(images, mask)
    return SetCriterion()(output.logits.float(), output.boxes.float(), targets)


def record_step(
    build: Callable[[], nn.Module],
    images: int,
    height: int,
    width: int,
    compute_loss: Callable[..., Any] = detr_loss,
    **options: Any,
) -> Recorded:
    """Record a step after one that does not count, with the buffers of a captured step.

    Args:
        build: Builds the model.
        images: Number of images of the batch.
        height: Height of the images in pixels.
        width: Width of the images in pixels.
        compute_loss: The loss of a captured step.
        **options: Options of AdamW.
    """
    graph, outside, adamw = OpRecorder(), OpRecorder(), [0, 0]
    original = StepFunction.__call__

    def recorded(self: StepFunction, *inputs: Any, last: bool) -> dict[str, Tensor]:
        outside.is_paused = True
        with graph:
            losses = original(self, *inputs, last=last)
        outside.is_paused = False
        return losses

    device = torch.device("cuda", 0)
    with ExitStack() as stack:
        # Autocast asks for a real GPU, and clipping for real tensors.
        stack.enter_context(patch("torch.cuda.amp.common.amp_definitely_not_available", lambda: False))
        stack.enter_context(patch("torch.cuda.is_bf16_supported", lambda: True))
        stack.enter_context(patch("torch.nn.utils.clip_grad._has_foreach_support", lambda tensors, device: True))
        # PyTorch cannot copy the fake parameters of a model.
        stack.enter_context(patch.object(optim, "deepcopy", lambda model: build()))
        stack.enter_context(patch.object(StepFunction, "__call__", recorded))
        stack.enter_context(FakeTensorMode())
        stack.enter_context(device)
        model = build()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, capturable=True, **options)
        optimizer.register_step_pre_hook(lambda *_: adamw.append(len(graph.launched)))
        optimizer.register_step_post_hook(lambda *_: adamw.append(len(graph.launched)))
        function = StepFunction(
            model,
            compute_loss,
            optimizer,
            clip_norm=0.1,
            accumulate=1,
            moving_average=optim.MovingAverage(model, 0.9998),
            accelerator=None,
            keep_gradients=True,
        )
        step = StepGraphs(function, _Eager(), device, max_targets=100, max_graphs=1)  # type: ignore[arg-type]
        for _ in range(2):
            graph.launched.clear()
            outside.launched.clear()
            batch = (
                torch.empty(images, 3, height, width).to(memory_format=torch.channels_last),
                torch.empty(images, height, width, dtype=torch.bool),
                _targets([7] * images),
            )
            with outside:
                step(*batch, last=True)
    return Recorded(graph, outside, adamw[-1] - adamw[-2])


def _targets(sizes: Sequence[int]) -> Targets:
    offsets = torch.empty(len(sizes) + 1, dtype=torch.int32)
    return Targets(torch.empty(sum(sizes), dtype=torch.int64), torch.empty(sum(sizes), 4), list(sizes), offsets)


def main() -> int:
    """Print a table of the number of ops for each implementation of AdamW."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.launches", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=8, help="images of the batch; default: 8")
    parser.add_argument("--in-process", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not options.in_process:
        with tempfile.TemporaryDirectory() as directory:
            command = [sys.executable, "-m", "benchmarks.launches", "--in-process", *sys.argv[1:]]
            return subprocess.run(command, env=environment(Path(directory))).returncode
    print("| AdamW | ops of a step | of them in AdamW | host copies and reads | ops outside of the graph |")
    print("|---|---|---|---|---|")
    for name, implementation in OPTIMIZERS.items():
        found = record_step(DETR, options.images, 800, 1344, **implementation)
        forbidden = ", ".join(found.graph.forbidden) or "none"
        print(
            f"| {name} | {len(found.graph.launched)} | {found.adamw} | {forbidden} | {len(found.outside.launched)} |",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
