"""Everything that changes while a model is trained, and how it is saved and restored."""

from __future__ import annotations

import random
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from detr_fast.checkpoints.state_dict import CheckpointError
from detr_fast.models import DETR
from detr_fast.training.config import TrainConfig
from detr_fast.training.optim import build_ema, build_optimizer, build_scheduler


@dataclass
class Progress:
    """How far a run has come."""

    epoch: int = 0
    samples: int = 0  # of this epoch, over all ranks: the sampler's place
    step: int = 0  # optimiser steps
    best_ap: float = -1.0
    seconds: float = 0.0  # spent on training steps


class RunState:
    """Model, optimiser, schedule, moving average, random states and progress of a run.

    Args:
        model: to be trained; it is moved to the accelerator's device and wrapped for its ranks.
        config: of the run.
        accelerator: of the run.
        total_steps: optimiser steps of the whole run.
    """

    def __init__(self, model: DETR, config: TrainConfig, accelerator: Accelerator, *, steps_per_epoch: int) -> None:
        self.accelerator = accelerator
        optimizer = build_optimizer(model, config.optim)
        self.scheduler = build_scheduler(optimizer, config.optim, steps_per_epoch=steps_per_epoch, epochs=config.epochs)
        self.ema = build_ema(model, config.optim.ema_decay).to(accelerator.device) if config.optim.ema_decay else None
        self.model, self.optimizer = accelerator.prepare(model, optimizer)
        self.progress = Progress()
        torch.manual_seed(config.seed + 1 + accelerator.process_index)  # the ranks' dropout differs

    @property
    def weights(self) -> DETR:
        """The model to evaluate and to save: the moving average where there is one."""
        model = self.accelerator.unwrap_model(self.model) if self.ema is None else self.ema.module
        assert isinstance(model, DETR)
        return model

    @property
    def learning_rate(self) -> float:
        """The transformer's current rate."""
        return float(self.scheduler.get_last_lr()[0])

    def step(self) -> None:
        """Step optimiser, schedule and moving average with the gradients at hand."""
        self.optimizer.step()
        self.optimizer.zero_grad()
        if not self.accelerator.optimizer_step_was_skipped:
            self.scheduler.step()
        if self.ema is not None:
            self.ema.update_parameters(self.accelerator.unwrap_model(self.model))

    def state_dict(self) -> dict[str, Any]:
        """Plain data that :meth:`load` restores; to be called on all ranks."""
        scaler = self.accelerator.scaler
        return {
            "model": self.accelerator.unwrap_model(self.model).state_dict(),
            "ema": None if self.ema is None else self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": {"last_epoch": self.scheduler.last_epoch},
            "scaler": None if scaler is None else scaler.state_dict(),
            "progress": asdict(self.progress),
            "random": gather_object([random_state()]),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Go back to what :meth:`state_dict` gave.

        Raises:
            CheckpointError: the state is another configuration's.
        """
        try:
            self.accelerator.unwrap_model(self.model).load_state_dict(state["model"])
            if self.ema is not None:
                self.ema.load_state_dict(state["ema"])
            self.optimizer.load_state_dict(state["optimizer"])
        except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"the checkpoint was written with another configuration: {error}; resume with the run's own "
                "config.yaml, or train into another output directory"
            ) from error
        self._set_schedule(state["scheduler"]["last_epoch"])
        if self.accelerator.scaler is not None and state["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        vars(self.progress).update(state["progress"])
        ranks = state["random"]
        set_random_state(ranks[self.accelerator.process_index % len(ranks)])

    def _set_schedule(self, step: int) -> None:
        # The schedule is a function of the step; a longer run than the one saved goes on by its own.
        self.scheduler.last_epoch = step
        rates = [
            base * factor(step) for base, factor in zip(self.scheduler.base_lrs, self.scheduler.lr_lambdas, strict=True)
        ]
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        self.scheduler._last_lr = rates


def random_state() -> dict[str, Any]:
    """The states of Python's, NumPy's and torch's generators."""
    algorithm, keys, *rest = np.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        "numpy": [algorithm, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Put back what :func:`random_state` gave."""
    random.setstate(state["python"])
    algorithm, keys, *rest = state["numpy"]
    np.random.set_state((algorithm, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
