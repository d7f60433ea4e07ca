"""Optimizer, learning rate schedule, and moving average of the weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils._foreach_utils import _get_fused_kernels_supported_devices

from detr_fast.training.config import OptimConfig


def build_optimizer(model: nn.Module, config: OptimConfig, *, capturable: bool = False) -> torch.optim.AdamW:
    """Build AdamW for the trainable parameters; those of the backbone have their own learning rate.

    With a rate of 0 the backbone is frozen, as in facebookresearch/detr: its gradients are not computed, and do not
    count when the norm of the gradient is clipped. Its parameters remain in the optimizer, so that a run can be resumed
    with another rate. The fused implementation is used where PyTorch has one for the device of the parameters.

    Args:
        model: The model, on the device on which it is trained.
        config: The options of the optimizer.
        capturable: Whether a CUDA graph may contain its steps.
    """
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if config.backbone_lr == 0:
        for name, parameter in named:
            if name.startswith("backbone.0."):
                parameter.requires_grad_(False)
    groups = [
        {"params": [p for name, p in named if not name.startswith("backbone.0.")], "lr": config.lr},
        {"params": [p for name, p in named if name.startswith("backbone.0.")], "lr": config.backbone_lr},
    ]
    fused = all(p.device.type in _get_fused_kernels_supported_devices() for _, p in named)
    return torch.optim.AdamW(
        groups, lr=config.lr, weight_decay=config.weight_decay, fused=fused or None, capturable=capturable
    )


def build_scheduler(
    optimizer: torch.optim.Optimizer, config: OptimConfig, *, steps_per_epoch: int, epochs: int
) -> LambdaLR:
    """Build the learning rate schedule: a warm-up, then a step or a cosine.

    Args:
        optimizer: The optimizer.
        config: The options of the schedule.
        steps_per_epoch: Optimizer steps per epoch.
        epochs: Number of epochs.
    """
    total = steps_per_epoch * epochs
    drop_epoch = 2 / 3 * epochs if config.drop_epoch is None else config.drop_epoch
    decay = _step_decay(round(drop_epoch * steps_per_epoch))
    if config.schedule == "cosine":
        decay = _cosine_decay(config.warmup_steps, total)

    def factor(step: int) -> float:
        warmup = min(1.0, (step + 1) / (config.warmup_steps + 1))
        return warmup * decay(step)

    return LambdaLR(optimizer, factor)


def _step_decay(drop_step: int) -> Callable[[int], float]:
    return lambda step: 1.0 if step < drop_step else 0.1


def _cosine_decay(warmup: int, total: int) -> Callable[[int], float]:
    span = max(total - warmup, 1)
    return lambda step: 0.5 * (1 + math.cos(math.pi * min(max(step - warmup, 0) / span, 1.0)))


class MovingAverage(nn.Module):
    """An exponential moving average of the weights, on the device of the model.

    After n updates the decay is the minimum of ``decay`` and (1 + n) / (10 + n), so that the initial weights have
    little influence in short runs; the first update copies the weights. The number of updates is a buffer, so that an
    update asks the device for nothing. The state dict has the keys of ``torch.optim.swa_utils.AveragedModel``.

    Args:
        model: The model.
        decay: The final decay.
    """

    n_averaged: Tensor

    def __init__(self, model: nn.Module, decay: float) -> None:
        super().__init__()
        self.decay = decay
        self.module = deepcopy(model)
        device = next(model.parameters()).device
        self.register_buffer("n_averaged", torch.zeros((), dtype=torch.int64, device=device))

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Average the weights of the model in, and copy its buffers."""
        n = self.n_averaged
        decay = ((n + 1) / (n + 10)).clamp(max=self.decay) * (n > 0)
        averages: list[Tensor] = [*self.module.parameters()]
        weights: list[Tensor] = [*model.parameters()]
        torch._foreach_mul_(averages, decay)
        torch._foreach_add_(averages, torch._foreach_mul(weights, 1 - decay))
        if buffers := list(self.module.buffers()):
            torch._foreach_copy_(buffers, list(model.buffers()))
        n += 1


def describe_schedule(config: OptimConfig, epochs: int) -> str | None:
    """Describe what is unusual about the schedule of a run of ``epochs`` epochs; None if nothing is."""
    if config.schedule != "step" or config.drop_epoch is None or config.drop_epoch < epochs:
        return None
    return (
        f"optim.drop_epoch is {config.drop_epoch} and epochs is {epochs}, so that the learning rate is never lowered; "
        "without drop_epoch it is lowered after two thirds of the epochs"
    )
