"""The ops as torch.compile, FakeTensorMode and torch.library see them; kernels run in Triton's interpreter."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses import FakeTensorMode

from detr_fast import LossWeights, MatchWeights, Targets, ops, use_backend
from detr_fast.criterion import SetCriterion
from detr_fast.ops import faults
from detr_fast.ops.dispatch import OPS

SIZES = [3, 0, 7]


@pytest.fixture(autouse=True)
def compiled_anew():
    torch._dynamo.reset()


@pytest.fixture
def predictions() -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(2, 3, 6, 5, requires_grad=True), torch.rand(2, 3, 6, 4, requires_grad=True)


@pytest.fixture(params=["cpp", "triton"])
def backend(request):
    if request.param == "triton" and torch.cuda.is_available():
        pytest.skip("Triton's interpreter is off where there is a GPU")
    return request.param


def _opchecks() -> Iterator[Any]:
    """The first and the last case of every op for each of its backends."""
    for name, op in OPS.items():
        if op.custom_op is None:
            continue
        cases = [*import_module(f"tests.ops.inputs.{name}").conformance_cases()]
        for backend in op.backends:
            if backend in ("cpp", "triton"):
                for case in dict.fromkeys((cases[0], cases[-1])):
                    yield pytest.param(op, case, backend, id=f"{name}-{backend}-{case.name}")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize(("op", "case", "backend"), [*_opchecks()])
def test_opcheck(op, case, backend):
    """Schema, fake kernel and autograd, which follow from the reference, are those of the backend."""
    if backend == "triton" and torch.cuda.is_available():
        pytest.skip("Triton's interpreter is off where there is a GPU")
    arguments = list(case.make(torch.float32, torch.Generator().manual_seed(0)))
    count = op.signature.num_differentiable
    arguments[:count] = [x.detach().requires_grad_() for x in arguments[:count]]
    torch.library.opcheck(getattr(torch.ops.detr_fast, op.name).default, (*op.signature.pack(arguments), backend))


def test_duals_have_a_fake_kernel():
    for sizes, offsets in (([], torch.tensor([0, 3, 3, 10], dtype=torch.int32)), ([3, 0, 7], None)):
        arguments = torch.rand(2, 10, 6), sizes, offsets, 7, 2, 1, True, "raise", "cpp"
        torch.library.opcheck(torch.ops.detr_fast.batch_linear_sum_assignment.default, arguments)


def _steps(predictions: tuple[Tensor, Tensor], run, targets: Targets) -> list[Tensor]:
    total = run(*predictions, targets)
    return [total, *torch.autograd.grad(total, predictions)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("preset", "name"), [("detr", "cpp"), ("mmdet2", "triton"), ("deformable", "triton"), ("deformable", "reference")]
)
def test_the_criterion_compiles_whole_and_once_for_all_batches(predictions, random_targets, name, preset):
    criterion = SetCriterion.preset(preset)
    compiler = CompileCounterWithBackend("aot_eager")

    def total(logits: Tensor, boxes: Tensor, targets: Targets) -> Tensor:
        return criterion(logits, boxes, targets).total

    compiled = torch.compile(total, fullgraph=True, backend=compiler)
    with use_backend(match_cost=name, set_loss=name, batch_linear_sum_assignment=name):
        for seed, sizes in enumerate([SIZES, [2, 1, 0], [8, 0, 1], [1, 1, 1], [0, 12, 4]]):
            targets = random_targets(sizes, 4, seed)
            eager, compiled_outputs = (_steps(predictions, run, targets) for run in (total, compiled))
            for actual, desired in zip(compiled_outputs, eager, strict=True):
                torch.testing.assert_close(actual, desired)
    # Once for the first sizes, once for all others.
    assert compiler.frame_count <= 2


@pytest.mark.slow
def test_inductor(predictions, random_targets):
    targets = random_targets(SIZES, 4)

    def run(logits: Tensor, boxes: Tensor) -> Tensor:
        cost = ops.match_cost(2 * logits, boxes, targets)
        total, _ = ops.weighted_set_loss(2 * logits, boxes, targets, ops.batch_linear_sum_assignment(cost, targets))
        return total + ops.pairwise_box_iou(boxes, targets.boxes, box_format="cxcywh").sum()

    eager, compiled = run(*predictions), torch.compile(run, fullgraph=True)(*predictions)
    torch.testing.assert_close(compiled, eager)
    for actual, desired in zip(
        torch.autograd.grad(compiled, predictions), torch.autograd.grad(eager, predictions), strict=True
    ):
        torch.testing.assert_close(actual, desired)


def test_the_solvers_faults_are_raised_from_compiled_code(backend, random_targets):
    targets = random_targets([1, 2], 3)
    cost = torch.rand(1, 3, 4)
    cost[0, 2, 1] = float("nan")
    solve = torch.compile(ops.batch_linear_sum_assignment, fullgraph=True, backend="aot_eager")

    def solve_and_read() -> None:
        solve(cost, targets, backend=backend)
        faults.raise_faults()

    with pytest.raises(ValueError, match="layer 0, image 1, target 1: the matching cost contains NaN"):
        solve_and_read()


def test_a_label_out_of_range_is_found_in_compiled_code(predictions, random_targets):
    compiled = torch.compile(ops.match_cost, fullgraph=True, backend="aot_eager")
    with pytest.raises(ValueError, match=r"image 2, target \d: label \d+ is out of range for 4 classes"):
        compiled(*(x.detach() for x in predictions), random_targets([0, 0, 30], 9), backend="cpp")


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("groups", [1, 2])
def test_matcher_criterion_and_encoding_with_fake_tensors(device, groups, random_targets):
    """Nothing asks the device for a number: there are none."""
    targets = random_targets(SIZES, 4)
    criterion = SetCriterion(MatchWeights.deformable(), LossWeights.deformable(), groups=groups)
    with FakeTensorMode():
        labels, offsets = (torch.empty(n, dtype=t, device=device) for n, t in ((10, torch.int64), (4, torch.int32)))
        fake = Targets(labels, torch.empty(10, 4, device=device), targets.sizes, offsets)
        logits = torch.empty(2, 3, 6, 5, device=device, requires_grad=True)
        boxes = torch.empty(2, 3, 6, 4, device=device, requires_grad=True)
        index = criterion.matcher(logits, boxes, fake)
        assert index.shape == ((2, 10) if groups == 1 else (2, groups, 10))
        total, terms = criterion(logits, boxes, fake)
        assert all(value.device.type == device for value in terms.values())
        total.backward()
        assert (logits.grad.shape, boxes.grad.shape) == (logits.shape, boxes.shape)
        assert ops.pairwise_box_iou(boxes, fake.boxes).shape == (2, 3, 6, 10)
        encoding = ops.sine_position_encoding(torch.empty(2, 3, 4, dtype=torch.bool, device=device), layout="blc")
        assert encoding.shape == (2, 12, 256)


def test_every_op_of_tensors_is_a_torch_op():
    names = {name.split("::")[1] for name in torch._C._dispatch_get_all_op_names() if name.startswith("detr_fast::")}
    for name, op in OPS.items():
        assert (name in names) == op.signature.takes_tensors
        assert (f"{name}_backward" in names) == bool(op.signature.num_differentiable)
