"""A complete step in kernels: logits to gradients, in few launches, in a CUDA graph, never waiting for the device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from detr_fast import LossWeights, MatchWeights, Targets, ops, use_backend
from detr_fast.criterion import SetCriterion
from detr_fast.ops.faults import status_word

IN_TRITON = {"match_cost": "triton", "batch_linear_sum_assignment": "triton", "set_loss": "triton"}
ALLOCATIONS = {"aten::empty.memory_format", "aten::detach", "aten::_unsafe_view"}


class LaunchCounter(TorchDispatchMode):
    """Counts what would be launched on a GPU: Triton's kernels, and PyTorch's ops but views and allocations."""

    def __init__(self) -> None:
        super().__init__()
        self.launches: list[str] = []
        self._in_kernel = False

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if not (self._in_kernel or function.is_view or function.name() in ALLOCATIONS):
            self.launches.append(function.name())
        return function(*args, **(kwargs or {}))

    @contextmanager
    def kernel(self, name: str) -> Iterator[None]:
        self.launches.append(name)
        self._in_kernel = True  # the interpreter itself is written in PyTorch
        yield
        self._in_kernel = False


@pytest.fixture
def counter(device, monkeypatch):
    counter = LaunchCounter()
    if device.type == "cpu":
        from triton.runtime.interpreter import GridExecutor as Executor

        method, name_of = "__call__", lambda executor: executor.fn.__name__
    else:
        from triton.runtime.jit import JITFunction as Executor

        method, name_of = "run", lambda kernel: kernel.fn.__name__
    launch = getattr(Executor, method)

    def counted(self, *args, **kwargs):
        with counter.kernel(name_of(self)):
            return launch(self, *args, **kwargs)

    monkeypatch.setattr(Executor, method, counted)
    status_word(device)  # is made once in a process
    return counter


def _predictions(layers: int, images: int, queries: int, logits: int, device: torch.device) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    shape = (layers, images, queries)
    return (
        torch.randn(*shape, logits, device=device, requires_grad=True),
        torch.rand(*shape, 4, device=device, requires_grad=True),
    )


@pytest.mark.slow
@pytest.mark.parametrize(("layers", "sizes"), [(1, [2]), (6, [3, 0, 1, 9]), (3, [0, 0])])
@pytest.mark.parametrize("family", ["detr", "deformable"])
def test_few_launches_from_logits_to_gradients(device, counter, random_targets, layers, sizes, family):
    logits, boxes = _predictions(layers, len(sizes), 5, 4, device)
    targets = random_targets(sizes, 3).to(device)
    match, loss = getattr(MatchWeights, family)(), getattr(LossWeights, family)()
    with use_backend(**IN_TRITON), counter:
        query = ops.batch_linear_sum_assignment(ops.match_cost(logits, boxes, targets, weights=match), targets)
        total, _ = ops.weighted_set_loss(logits, boxes, targets, query, weights=loss)
        total.backward()
    assert "set_loss_bwd_kernel" in counter.launches
    assert len(counter.launches) <= 8, counter.launches


def test_the_criterions_logged_numbers_take_launches_that_do_not_grow(device, counter, random_targets):
    launches = []
    for layers, sizes in ((2, [2]), (6, [3, 0, 1, 9])):
        counter.launches.clear()
        predictions, targets = _predictions(layers, len(sizes), 5, 4, device), random_targets(sizes, 3).to(device)
        with use_backend(**IN_TRITON), counter:
            SetCriterion()(*predictions, targets).total.backward()
        launches.append(len(counter.launches))
    assert launches[0] == launches[1] <= 40, counter.launches


@pytest.mark.gpu
def test_nothing_waits_for_the_device(random_targets):
    targets = random_targets([3, 0, 9], 4).to("cuda")
    predictions = _predictions(6, 3, 20, 5, torch.device("cuda"))
    mask = torch.rand(2, 5, 7, device="cuda") > 0.7
    criterion = SetCriterion()
    for mode in ("default", "error"):  # compiled first, which may wait
        torch.cuda.set_sync_debug_mode(mode)
        try:
            criterion(*predictions, targets).total.backward()
            ops.sine_position_encoding(mask)
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@pytest.mark.parametrize("preset", ["detr", "mmdet2", "deformable"])
def test_a_cuda_graph_serves_other_batches_than_it_was_captured_with(random_targets, preset):
    criterion = SetCriterion.preset(preset)
    logits, boxes = _predictions(3, 3, 20, 5, torch.device("cuda"))
    batches = [random_targets(sizes, 4, seed).to("cuda") for seed, sizes in enumerate(([2, 3, 0], [0, 25, 1], [0] * 3))]
    static = batches[0].pad(30)

    def step(targets: Targets) -> tuple[Tensor, ...]:
        total = criterion(logits, boxes, targets).total
        return total, *torch.autograd.grad(total, (logits, boxes))

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step(static)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step(static)
    for batch in batches:
        static.copy_(batch)
        graph.replay()
        for actual, desired in zip(captured, step(batch), strict=True):
            torch.testing.assert_close(actual, desired)


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["detr", "deformable"])
def test_padded_targets_train_as_the_others(device, random_targets, preset):
    criterion = SetCriterion.preset(preset)
    logits, boxes = _predictions(2, 3, 6, 5, device)
    targets = random_targets([3, 0, 9], 4).to(device)
    results = []
    with use_backend(**IN_TRITON):
        for batch in (targets, targets.pad(10)):
            total = criterion(logits, boxes, batch).total
            results.append((total, *torch.autograd.grad(total, (logits, boxes))))
    for actual, desired in zip(*results, strict=True):
        torch.testing.assert_close(actual, desired)
