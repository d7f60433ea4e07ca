"""A training step as one CUDA graph for each shape of its inputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from detr_fast.training.config import ConfigError
from detr_fast.training.step_function import ComputeLoss, StepFunction
from detr_fast.training.step_graphs import CudaRecorder, StepGraphs


class CapturedStep:
    """A training step, of any model and any loss, in one CUDA graph for each shape of its inputs.

    A graph contains the forward pass, matching and losses, the backward pass, clipping, the optimizer and the moving
    average; replaying it takes the host a single launch. The first three steps of each shape run eagerly, on a stream
    of their own, and count as all others do. The graphs share one memory pool, and their inputs share buffers. At most
    ``max_graphs`` graphs are captured, one for each shape, and a second one where gradients are accumulated; further
    shapes run eagerly, and a warning says so once.

    ``compute_loss`` must not read a tensor on the host, must not create one from numbers on the host, and must call the
    model under autocast itself where mixed precision is wanted. Matching and losses of this library, on targets in
    :class:`~detr_fast.Targets`, fulfill this; labels in a list of dictionaries do not, since their number is read
    on the host.

    The learning rates of the optimizer become tensors on the device, which a scheduler or an assignment to
    ``optimizer.param_groups`` may change; after ``optimizer.load_state_dict`` the graphs are captured anew. All other
    settings of the optimizer, and which parameters are trained, are part of the graphs: build another instance after
    changing them.

    A fault that kernels find on the device is kept there for :func:`detr_fast.raise_faults`, as in eager steps.

    Args:
        model: The model, on its device and in the mode in which it is trained.
        compute_loss: Takes the model and the inputs of the step; returns the total loss, a scalar with a gradient, and
            a mapping from names to scalars that are logged.
        optimizer: The optimizer; with ``capture`` one with ``capturable=True``, such as
            ``torch.optim.AdamW(..., fused=True, capturable=True)``.
        clip_norm: Maximum norm of the gradient; 0 disables clipping.
        accumulate: Number of batches whose gradients are averaged for an update.
        moving_average: Any object whose ``update_parameters(model)`` is called after each update; None for none.
        accelerator: The ``accelerate.Accelerator`` that prepared the model and the optimizer; None without Accelerate.
        capture: Whether graphs are captured. Otherwise the same function runs eagerly on any device, with inputs of any
            type.
        max_targets: Number of targets of an image that the buffers have room for. An image with more enlarges them to
            the next power of two, and the shapes concerned are captured again.
        max_graphs: Maximum number of graphs.
        generators: Random number generators, apart from PyTorch's default one, that the model draws from on the device.

    Raises:
        ConfigError: ``capture`` is set and the model is not on a GPU, is trained on several ranks or with a gradient
            scaler (float16), or the optimizer is not capturable.
    """

    def __init__(
        self,
        model: nn.Module,
        compute_loss: ComputeLoss,
        optimizer: torch.optim.Optimizer,
        *,
        clip_norm: float = 0.0,
        accumulate: int = 1,
        moving_average: Any = None,
        accelerator: Accelerator | None = None,
        capture: bool = True,
        max_targets: int = 100,
        max_graphs: int = 16,
        generators: Sequence[torch.Generator] = (),
    ) -> None:
        function = StepFunction(
            model,
            compute_loss,
            optimizer,
            clip_norm=clip_norm,
            accumulate=accumulate,
            moving_average=moving_average,
            accelerator=accelerator,
            keep_gradients=capture,
        )
        self._step: StepFunction | StepGraphs = function
        if capture:
            device = next(model.parameters()).device
            check_capture(device, accelerator)
            if isinstance(model, DistributedDataParallel):
                raise ConfigError("a step of several ranks cannot be captured; train with capture=False")
            if not all(group.get("capturable", False) for group in optimizer.param_groups):
                raise ConfigError(
                    "the optimizer reads its state on the host; build it with capturable=True, for example "
                    "torch.optim.AdamW(parameters, fused=True, capturable=True)"
                )
            self._step = StepGraphs(function, CudaRecorder(device, generators), device, max_targets, max_graphs)

    def __call__(self, *inputs: Any, last: bool = True) -> dict[str, Tensor]:
        """Train on a batch.

        Args:
            *inputs: What ``compute_loss`` takes after the model; with ``capture`` tensors, :class:`~detr_fast.Targets`
                and None. They are copied to the device, without synchronization where they are pinned.
            last: Whether this is the last batch of the step, after which the weights are updated.

        Returns:
            Scalars on the device by name, without gradient: ``loss``, the total; what ``compute_loss`` returned; and
            ``grad_norm``, the norm of the gradient before clipping, after the last batch of a step that clips.

        Raises:
            TypeError: ``capture`` is set and an input is of another type.
            ConfigError: ``compute_loss`` cannot be captured; the message gives the cause.
        """
        return self._step(*inputs, last=last)


def check_capture(device: torch.device, accelerator: Accelerator | None) -> None:
    """Check that a step can be captured.

    Args:
        device: The device of the model.
        accelerator: The accelerator of the run; None without Accelerate.

    Raises:
        ConfigError: It cannot; the message says why.
    """
    if device.type != "cuda":
        raise ConfigError(f"capture: a CUDA graph needs a GPU, but the model is on {device}; leave capture off")
    if accelerator is None:
        return
    if accelerator.num_processes > 1:
        raise ConfigError("capture: a step of several ranks cannot be captured; leave capture off, or train on one GPU")
    if accelerator.scaler is not None:
        raise ConfigError(
            "capture: the gradient scaler of fp16 reads numbers on the host; choose mixed_precision bf16 or no, or "
            "leave capture off"
        )
