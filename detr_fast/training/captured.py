"""A training step as one CUDA graph for each shape of its inputs."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from detr_fast.ops import use_backend
from detr_fast.ops.targets import Targets
from detr_fast.training.config import ConfigError
from detr_fast.training.monitor import TrainingError

# From the model and the inputs of the step to the total loss, a scalar, and scalars to log by their names.
ComputeLoss: TypeAlias = Callable[..., tuple[Tensor, Mapping[str, Tensor]]]

WARM_UPS = 3  # eager steps before a capture, in which libraries choose algorithms and kernels are compiled


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


class CudaRecorder:
    """Runs and records steps on a stream of a GPU; the graphs share a memory pool.

    Args:
        device: The GPU.
        generators: Random number generators that the graphs use, apart from the default one.
    """

    def __init__(self, device: torch.device, generators: Sequence[torch.Generator]) -> None:
        self._stream = torch.cuda.Stream(device)
        self._generators = generators
        self._pool: Any = None

    def reset(self) -> None:
        """Use another pool for further graphs."""
        self._pool = torch.cuda.graph_pool_handle()

    def run(self, step: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """Do a step eagerly, on the stream on which steps are recorded."""
        current = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "This instance was constructed with capturable=True")
            losses = step()
        current.wait_stream(self._stream)
        return losses

    def record(self, step: Callable[[], dict[str, Tensor]]) -> Callable[[], dict[str, Tensor]]:
        """Return a step as a graph, without doing it.

        Raises:
            ConfigError: The step cannot be recorded.
        """
        if torch.is_autocast_enabled("cuda") and torch.is_autocast_cache_enabled():
            raise ConfigError("a step cannot be captured under autocast; call the model under autocast in compute_loss")
        graph = torch.cuda.CUDAGraph()
        for generator in self._generators:
            graph.register_generator_state(generator)  # torch.cuda.graph registers the default generator
        try:
            # The threads of a data loader may call CUDA meanwhile, which the default mode forbids.
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
                losses = step()
                recorded = torch.stack([value.float() for value in losses.values()])
        except TrainingError:
            raise
        except RuntimeError as error:
            raise ConfigError(
                f"the step cannot be captured: {error}. The loss must not read a tensor on the host, and must not copy "
                "one to the device"
            ) from error
        names = list(losses)

        def replay() -> dict[str, Tensor]:
            graph.replay()
            values = recorded.clone()  # the next replay overwrites them
            return dict(zip(names, values.unbind(), strict=True))

        return replay


class StepGraphs:
    """The graphs of a step function, each with the buffers that it reads its inputs from.

    Args:
        function: The step.
        recorder: Makes a graph of it.
        device: The device of the model.
        max_targets: Number of targets of an image that the buffers have room for at first.
        max_graphs: Maximum number of graphs.
    """

    def __init__(
        self, function: StepFunction, recorder: CudaRecorder, device: torch.device, max_targets: int, max_graphs: int
    ) -> None:
        self._function = function
        self._recorder = recorder
        self._device = device
        self._max_targets = max_targets
        self._max_graphs = max_graphs
        self._buffers = _Buffers(device)
        self._graphs: dict[Hashable, _Graph] = {}
        self._groups: list[dict[str, Any]] = []
        self._rates: list[Tensor] = []
        self._warned = False

    def __call__(self, *inputs: Any, last: bool) -> dict[str, Tensor]:
        """Do a step: with a graph, or eagerly before it is captured and where there are too many."""
        self._hold_learning_rates()
        key = (last, self._function.model.training, *(_signature(value) for value in inputs))
        graph = self._graphs.get(key)
        if graph is None and len(self._graphs) >= self._max_graphs:
            self._warn()
            return self._function(*(_to(value, self._device) for value in inputs), last=last)
        needed = max((size for value in inputs if isinstance(value, Targets) for size in value.sizes), default=0)
        if needed > self._max_targets:
            self._max_targets = 1 << (needed - 1).bit_length()
        if graph is None or graph.max_targets < needed:
            buffers = [self._buffer(position, value) for position, value in enumerate(inputs)]
            graph = self._graphs[key] = _Graph(buffers, self._max_targets)
        graph.fill(inputs)

        def step() -> dict[str, Tensor]:
            # For few problems the solver on the host may be faster, but no graph contains it.
            with use_backend(batch_linear_sum_assignment="triton"):
                return self._function(*graph.buffers, last=last)

        if graph.warm_ups < WARM_UPS:
            graph.warm_ups += 1
            return self._recorder.run(step)
        if graph.replay is None:
            graph.replay = self._recorder.record(step)
        return graph.replay()

    def _hold_learning_rates(self) -> None:
        """Keep the learning rates in tensors that graphs read; drop the graphs of an optimizer's former state."""
        groups = self._function.optimizer.param_groups
        if groups is not self._groups or len(groups) != len(self._rates):
            self._groups, self._graphs = groups, {}
            self._rates = [torch.zeros((), device=self._device) for _ in groups]
            self._recorder.reset()
        for group, rate in zip(groups, self._rates, strict=True):
            if group["lr"] is not rate:
                rate.fill_(group["lr"])
                group["lr"] = rate

    def _buffer(self, position: int, value: Any) -> Any:
        if isinstance(value, Targets):
            return value.to(self._device, non_blocking=True).pad(self._max_targets)
        return value if value is None else self._buffers.like(position, value)

    def _warn(self) -> None:
        if not self._warned:
            warnings.warn(
                f"CUDA graphs of a step were captured for {self._max_graphs} shapes of its inputs; further shapes run "
                "eagerly. Batches of a few fixed sizes are faster",
                stacklevel=4,
            )
        self._warned = True


@dataclass
class _Graph:
    """A graph, once it is captured, and the inputs that it reads."""

    buffers: list[Any]
    max_targets: int
    warm_ups: int = 0
    replay: Callable[[], dict[str, Tensor]] | None = None

    def fill(self, inputs: Sequence[Any]) -> None:
        """Copy the inputs of a step into the buffers."""
        for buffer, value in zip(self.buffers, inputs, strict=True):
            if isinstance(buffer, Targets):
                buffer.copy_(value)
            elif buffer is not None:
                buffer.copy_(value, non_blocking=True)


class _Buffers:
    """Memory for the tensors that graphs read. All graphs share it, since they run one after the other."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._flat: dict[tuple[int, torch.dtype], Tensor] = {}

    def like(self, position: int, value: Tensor) -> Tensor:
        """Return a buffer for the input ``value`` of a position, with its shape and memory format."""
        key, form = (position, value.dtype), torch.empty_like(value, device="meta")
        if key not in self._flat or self._flat[key].numel() < form.numel():
            self._flat[key] = torch.empty(form.numel(), dtype=value.dtype, device=self._device)
        return self._flat[key].as_strided(form.shape, form.stride())


def _signature(value: Any) -> Hashable:
    """Return what a graph depends on.

    Raises:
        TypeError: A graph cannot read ``value``.
    """
    if isinstance(value, Tensor):
        return value.shape, value.dtype, torch.empty_like(value, device="meta").stride()
    if isinstance(value, Targets):
        return "targets", value.num_images, value.boxes.dtype
    if value is None:
        return None
    raise TypeError(
        f"the inputs of a captured step are tensors, Targets and None, got {type(value).__name__}; Targets.from_list "
        "packs labels and boxes"
    )


def _to(value: Any, device: torch.device) -> Any:
    return value if value is None else value.to(device, non_blocking=True)
