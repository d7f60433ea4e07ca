"""The computation of a training step, which asks the device for no number."""

from __future__ import annotations

from contextlib import nullcontext

from detr_fast.criterion import SetCriterion
from detr_fast.data import Batch
from detr_fast.training.config import OptimConfig
from detr_fast.training.monitor import LossMonitor, TrainingError
from detr_fast.training.state import RunState


class TrainingStep:
    """Computes the gradient of a batch; :meth:`RunState.step` then updates the weights.

    Neither synchronizes the host with a GPU: the losses and the norm of the gradient remain on the device until the
    monitor is asked for them.

    Args:
        state: The state of the run.
        criterion: The losses.
        monitor: Collects the losses and the norm of the gradient.
        config: The options of the optimizer.
    """

    def __init__(self, state: RunState, criterion: SetCriterion, monitor: LossMonitor, config: OptimConfig) -> None:
        self._state = state
        self._criterion = criterion
        self._monitor = monitor
        self._config = config

    def accumulate(self, batch: Batch, *, last: bool) -> None:
        """Add the gradient of a batch to that of the step.

        Args:
            batch: The batch, on the device; best in the memory format of the state.
            last: Whether this is the last batch of the step, after which the gradients of the ranks are averaged and
                clipped.

        Raises:
            TrainingError: The logits, the boxes or the targets are invalid, as far as the host can tell.
        """
        state, accelerator = self._state, self._state.accelerator
        where = f"step {state.progress.step + 1}, images {batch.image_ids}"
        with nullcontext() if last else accelerator.no_sync(state.model):
            output = state.model(batch.images, batch.padding)
            try:
                total, terms = self._criterion(output.logits.float(), output.boxes.float(), batch.targets)
            except ValueError as error:
                raise TrainingError(f"{where}: {error}; the last good checkpoint is kept") from error
            accelerator.backward(total / self._config.accumulate)
        if last and self._config.clip_norm:
            norm = accelerator.clip_grad_norm_(state.model.parameters(), self._config.clip_norm)
            if accelerator.scaler is None:  # a scaler skips steps whose gradient is not finite
                terms = {**terms, "grad_norm": norm}
        self._monitor.push(where, total, terms)
