"""A training step as a function that never reads a tensor on the host."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any, TypeAlias

import torch
from accelerate import Accelerator
from torch import Tensor, nn

# From the model and the inputs of the step to the total loss, a scalar, and scalars to log by their names.
ComputeLoss: TypeAlias = Callable[..., tuple[Tensor, Mapping[str, Tensor]]]


class StepFunction:
    """The gradient of a batch and, after the last batch of a step, clipping, the optimizer and the moving average.

    It never reads a tensor on the host, and its tensors are created on the device, so that the same function runs
    eagerly and while a CUDA graph is captured.

    Args:
        model: See :class:`CapturedStep`, as for the other arguments.
        compute_loss: From ``model`` and the inputs to the total and the terms.
        optimizer: Updates the parameters.
        clip_norm: Maximum norm of the gradient; 0 disables clipping.
        accumulate: Number of batches of a step.
        moving_average: Updated after the weights.
        accelerator: What prepared the model and the optimizer.
        keep_gradients: Whether gradients are set to zero and not to None after an update, so that their memory is the
            same in each step.
    """

    def __init__(
        self,
        model: nn.Module,
        compute_loss: ComputeLoss,
        optimizer: torch.optim.Optimizer,
        *,
        clip_norm: float,
        accumulate: int,
        moving_average: Any,
        accelerator: Accelerator | None,
        keep_gradients: bool,
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self._compute_loss = compute_loss
        self._clip_norm = clip_norm
        self._accumulate = accumulate
        self._moving_average = moving_average
        self._accelerator = accelerator
        self._keep_gradients = keep_gradients

    def __call__(self, *inputs: Any, last: bool) -> dict[str, Tensor]:
        """Compute the losses of a batch, on the device: the total is called ``loss``.

        Args:
            *inputs: What ``compute_loss`` takes.
            last: Whether this is the last batch of the step.
        """
        with nullcontext() if last else self._without_synchronization():
            total, terms = self._compute_loss(self.model, *inputs)
            self._backward(total / self._accumulate)
        losses = {"loss": total.detach()} | {name: term.detach() for name, term in terms.items()}
        if not last:
            return losses
        if self._clip_norm:
            norm = self._clip()
            if self._scaler is None:  # a scaler skips steps whose gradient is not finite
                losses["grad_norm"] = norm
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=not self._keep_gradients)
        if self._moving_average is not None:
            self._moving_average.update_parameters(self._unwrapped_model())
        return losses

    @property
    def _scaler(self) -> Any:
        return None if self._accelerator is None else self._accelerator.scaler

    def _backward(self, loss: Tensor) -> None:
        if self._accelerator is None:
            loss.backward()
        else:
            self._accelerator.backward(loss)

    def _clip(self) -> Tensor:
        clip = nn.utils.clip_grad_norm_ if self._accelerator is None else self._accelerator.clip_grad_norm_
        return clip(self.model.parameters(), self._clip_norm)

    def _without_synchronization(self) -> Any:
        return nullcontext() if self._accelerator is None else self._accelerator.no_sync(self.model)

    def _unwrapped_model(self) -> nn.Module:
        return self.model if self._accelerator is None else self._accelerator.unwrap_model(self.model)
