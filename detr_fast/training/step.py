"""The computation of a training step, which asks the device for no number."""

from __future__ import annotations

from torch import Tensor, nn

from detr_fast.criterion import SetCriterion
from detr_fast.data import Batch
from detr_fast.ops.targets import Targets
from detr_fast.training.captured import CapturedStep
from detr_fast.training.config import TrainConfig
from detr_fast.training.monitor import LossMonitor, TrainingError
from detr_fast.training.state import RunState


class TrainingStep:
    """A training step of a run: the gradient of one or several batches, the update of the weights, and the schedule.

    It does not synchronize the host with a GPU: the losses and the norm of the gradient remain on the device until the
    monitor is asked for them.

    Args:
        state: The state of the run.
        criterion: The losses.
        monitor: Collects the losses and the norm of the gradient.
        config: The configuration of the run.

    Raises:
        ConfigError: ``config.capture`` is set, and the step cannot be captured.
    """

    def __init__(self, state: RunState, criterion: SetCriterion, monitor: LossMonitor, config: TrainConfig) -> None:
        self._state = state
        self._criterion = criterion
        self._monitor = monitor
        self._where = ""
        self._step = CapturedStep(
            state.model,
            self._compute_loss,
            state.optimizer,
            clip_norm=config.optim.clip_norm,
            accumulate=config.optim.accumulate,
            moving_average=state.ema,
            accelerator=state.accelerator,
            capture=config.capture,
        )

    def __call__(self, batch: Batch, *, last: bool) -> None:
        """Add the gradient of a batch to that of the step, and finish the step after its last batch.

        Args:
            batch: The batch, on the device; best in the memory format of the state.
            last: Whether this is the last batch of the step.

        Raises:
            TrainingError: The logits, the boxes or the targets are invalid, as far as the host can tell.
        """
        self._where = f"step {self._state.progress.step + 1}, images {batch.image_ids}"
        losses = self._step(batch.images, batch.padding, batch.targets, last=last)
        self._monitor.push(self._where, losses.pop("loss"), losses)
        if last:
            self._state.advance()

    def _compute_loss(
        self, model: nn.Module, images: Tensor, mask: Tensor | None, targets: Targets
    ) -> tuple[Tensor, dict[str, Tensor]]:
        output = model(images, mask)
        try:
            return self._criterion(output.logits.float(), output.boxes.float(), targets)
        except ValueError as error:
            raise TrainingError(f"{self._where}: {error}; the last good checkpoint is kept") from error
