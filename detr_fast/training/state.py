"""The state of a run: what changes during training, and how it is saved and restored."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from detr_fast.checkpoints.state_dict import CheckpointError
from detr_fast.models import DETR
from detr_fast.training.config import TrainConfig
from detr_fast.training.device import fastest_memory_format
from detr_fast.training.optim import MovingAverage, build_optimizer, build_scheduler


@dataclass
class Progress:
    """The progress of a run.

    Attributes:
        epoch: Number of completed epochs.
        samples: Number of samples of the current epoch that all ranks have processed.
        step: Number of optimizer steps.
        best_ap: The best AP so far.
        evaluations_since_best: Number of evaluations since the one of the best AP.
        seconds: Time spent on training steps.
    """

    epoch: int = 0
    samples: int = 0
    step: int = 0
    best_ap: float = -1.0
    evaluations_since_best: int = 0
    seconds: float = 0.0


class RunState:
    """Model, optimizer, schedule, moving average, random states and progress of a run.

    Args:
        model: The model to train; it is moved to the device of the accelerator, compiled if the configuration says so,
            and wrapped for its ranks.
        config: The configuration of the run.
        accelerator: The accelerator of the run.
        steps_per_epoch: Number of optimizer steps per epoch.

    Attributes:
        memory_format: The memory format of the convolutional weights, and of the images that are fastest with them.
    """

    def __init__(self, model: DETR, config: TrainConfig, accelerator: Accelerator, *, steps_per_epoch: int) -> None:
        self.accelerator = accelerator
        self.memory_format = fastest_memory_format(accelerator.device)
        model.to(accelerator.device)
        model.to(memory_format=self.memory_format)  # type: ignore[call-overload]  # the overload has no annotation
        optimizer = build_optimizer(model, config.optim, capturable=config.capture)
        self.scheduler = build_scheduler(optimizer, config.optim, steps_per_epoch=steps_per_epoch, epochs=config.epochs)
        self.ema = MovingAverage(model, config.optim.ema_decay) if config.optim.ema_decay else None
        if config.compile:
            model.body.compile()
            model.transformer.compile()
        self.model, self.optimizer = accelerator.prepare(model, optimizer)
        self.progress = Progress()
        torch.manual_seed(config.seed + 1 + accelerator.process_index)  # dropout differs between ranks

    @property
    def weights(self) -> DETR:
        """The model to evaluate and save: the moving average of the weights if there is one."""
        model = self.accelerator.unwrap_model(self.model) if self.ema is None else self.ema.module
        assert isinstance(model, DETR)
        return model

    @property
    def learning_rate(self) -> float:
        """The current learning rate of the transformer."""
        return self._scheduled_rates()[0]

    def advance(self) -> None:
        """Update the schedule after the weights."""
        if not self.accelerator.optimizer_step_was_skipped:
            self.scheduler.step()

    def state_dict(self) -> dict[str, Any]:
        """Return the state as tensors and plain data; all ranks have to call it."""
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
        """Restore the state that :meth:`state_dict` returned.

        Args:
            state: The state, which :func:`check_state` accepts.

        Raises:
            CheckpointError: The state does not fit the configuration.
        """
        try:
            self.accelerator.unwrap_model(self.model).load_state_dict(state["model"])
            if self.ema is not None:
                self.ema.load_state_dict(state["ema"])
            self._load_optimizer(state["optimizer"])
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"the checkpoint was written with another configuration: {error}; resume with the "
                "config.yaml of the run, or choose another output directory"
            ) from error
        self._set_schedule(state["scheduler"]["last_epoch"])
        if self.accelerator.scaler is not None and state["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        vars(self.progress).update(state["progress"])
        ranks = state["random"]
        set_random_state(ranks[self.accelerator.process_index % len(ranks)])

    def _load_optimizer(self, state: dict[str, Any]) -> None:
        """Restore the moments; learning rates, weight decay and the like are those of the configuration.

        The moments get the strides of their parameters, which the fused implementation on a CPU takes for granted.
        """
        groups = self.optimizer.state_dict()["param_groups"]
        if [group["params"] for group in state["param_groups"]] != [group["params"] for group in groups]:
            raise ValueError("its optimizer has other groups of parameters")
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        for index, moments in state["state"].items():
            for name in ("exp_avg", "exp_avg_sq"):
                if moments[name].shape != parameters[index].shape:  # PyTorch accepts other shapes
                    raise ValueError(f"the optimizer's {name} of parameter {index} is {list(moments[name].shape)}")
                moments[name] = torch.empty_like(parameters[index]).copy_(moments[name])
            if moments["step"].numel() != 1:
                raise ValueError(f"the optimizer's step of parameter {index} is no number")
        self.optimizer.load_state_dict({"state": state["state"], "param_groups": groups})

    def _set_schedule(self, step: int) -> None:
        # The learning rates follow from the step and this schedule, which may be longer than the saved one.
        self.scheduler.last_epoch = step
        rates = self._scheduled_rates()
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        self.scheduler._last_lr = [*rates]

    def _scheduled_rates(self) -> list[float]:
        """Return the learning rate of each group; the optimizer may have it on the device only."""
        schedule = self.scheduler
        return [
            float(base) * factor(schedule.last_epoch)
            for base, factor in zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)
        ]


def check_state(state: Any) -> None:
    """Check the parts of a state that do not depend on the configuration of the run.

    Args:
        state: What a checkpoint contains.

    Raises:
        CheckpointError: The state lacks a part, or a part is malformed.
    """
    if not isinstance(state, dict):
        raise CheckpointError(f"it contains a {type(state).__name__}")
    missing = sorted(_PARTS.keys() - state.keys())
    if missing:
        raise CheckpointError(f"it has no {', '.join(missing)}")
    for name, is_valid in _PARTS.items():
        try:
            valid = is_valid(state[name])
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError):
            valid = False
        if not valid:
            raise CheckpointError(f"its part {name} is malformed")


def _is_state_dict(part: Any) -> bool:
    return bool(part) and all(isinstance(n, str) and isinstance(value, Tensor) for n, value in part.items())


def _is_progress(part: Any) -> bool:
    progress = Progress(**part)
    counts = (progress.epoch, progress.samples, progress.step, progress.evaluations_since_best)
    return (
        part.keys() == vars(progress).keys()
        and all(_is_count(count) for count in counts)
        and -1 <= progress.best_ap <= 1
        and 0 <= progress.seconds < float("inf")
    )


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _is_random(part: Any) -> bool:
    for state in part:
        random.Random().setstate(state["python"])
        np.random.RandomState().set_state(_numpy_state(state))
        torch.Generator().set_state(state["torch"])
        if not all(isinstance(device, Tensor) for device in state["cuda"]):
            return False
    return isinstance(part, list) and bool(part)


# What each part of a checkpoint has to satisfy, apart from fitting the model of the run.
_PARTS: dict[str, Callable[[Any], bool]] = {
    "model": _is_state_dict,
    "ema": lambda part: part is None or _is_state_dict(part),
    "optimizer": lambda part: isinstance(part["state"], dict) and isinstance(part["param_groups"], list),
    "scheduler": lambda part: _is_count(part["last_epoch"]),
    "scaler": lambda part: part is None or isinstance(part, dict),
    "progress": _is_progress,
    "random": _is_random,
    "config": lambda part: isinstance(part, dict),
    "data": lambda part: isinstance(part, dict),
}


def random_state() -> dict[str, Any]:
    """Return the states of the random number generators of Python, NumPy and PyTorch as plain data."""
    algorithm, keys, *rest = np.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        "numpy": [algorithm, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Restore the states that :func:`random_state` returned."""
    random.setstate(state["python"])
    np.random.set_state(_numpy_state(state))
    torch.set_rng_state(state["torch"])
    if len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])


def _numpy_state(state: dict[str, Any]) -> tuple[Any, ...]:
    algorithm, keys, *rest = state["numpy"]
    return algorithm, keys.numpy().astype(np.uint32), *rest
