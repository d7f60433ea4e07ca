"""The CUDA graphs of a training step."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from detr_fast.ops import use_backend
from detr_fast.ops.targets import Targets
from detr_fast.training.config import ConfigError
from detr_fast.training.monitor import TrainingError
from detr_fast.training.step_function import StepFunction

WARM_UPS = 3  # eager steps before a capture, in which libraries choose algorithms and kernels are compiled


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
