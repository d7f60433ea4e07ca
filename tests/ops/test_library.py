"""The ops as torch.compile, FakeTensorMode and torch.library see them; kernels run in Triton's interpreter."""

from __future__ import annotations

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
def backend(request, monkeypatch):
    if request.param == "triton" and torch.cuda.is_available():
        pytest.skip("Triton's interpreter is off where there is a GPU")
    return request.param


def _packed(targets: Targets) -> tuple[object, ...]:
    return targets.labels, targets.boxes, targets.offsets, targets.most, targets.padded


def _values(weights: MatchWeights | LossWeights) -> list[object]:
    return [getattr(weights, name) for name in weights.__dataclass_fields__]


def _check(name: str, *arguments: object) -> None:
    torch.library.opcheck(getattr(torch.ops.detr_fast, name).default, arguments)


def _number(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


@pytest.mark.parametrize("weights", [MatchWeights.detr(), MatchWeights.deformable()])
def test_opcheck_of_match_cost(predictions, random_targets, backend, weights):
    _check("match_cost", *predictions, *_packed(random_targets(SIZES, 4)), *_values(weights), backend)


@pytest.mark.parametrize("weights", [LossWeights.detr(), LossWeights.deformable()])
def test_opcheck_of_set_loss(predictions, random_targets, backend, weights):
    index = torch.tensor([[[0, 2, 1, 5, 4, 3, 2, 1, 0, -1]]] * 2)
    numbers = _number(10.0), _number(12.5)
    _check("set_loss", *predictions, *_packed(random_targets(SIZES, 4)), index, *_values(weights), *numbers, backend)


def test_opcheck_of_the_solver(random_targets, backend):
    cost, targets = torch.rand(2, 10, 6), random_targets(SIZES, 4)
    for sizes, offsets in (([], targets.offsets), (SIZES, None)):
        _check("batch_linear_sum_assignment", cost, sizes, offsets, 7, 2, 1, False, False, backend)
    if backend == "cpp":
        _check("batch_linear_sum_assignment", cost, SIZES, None, 7, 2, 1, True, False, backend)


@pytest.mark.parametrize("kind", ["iou", "giou", "l1"])
def test_opcheck_of_pairwise_box(kind):
    a, b = torch.rand(2, 3, 4, requires_grad=True), torch.rand(2, 5, 4, requires_grad=True)
    _check("pairwise_box", a, b, kind, True, 0.0, "triton")


def test_opcheck_of_sine_position_encoding():
    options = 10000.0, True, 6.28, 1e-6, 0.0, torch.bfloat16
    for layout in ("bchw", "blc"):
        _check("sine_position_encoding", torch.rand(2, 3, 5) > 0.6, 6, *options, layout, True, "triton")
    for shape in ((2, 3, 4), (5,)):
        coordinates = torch.rand(shape, requires_grad=True)
        _check("sine_coordinate_embedding", coordinates, 6, 10000.0, 6.28, "yxwh", "triton")


def _steps(predictions: tuple[Tensor, Tensor], run, targets: Targets) -> list[Tensor]:
    total = run(*predictions, targets)
    return [total, *torch.autograd.grad(total, predictions)]


@pytest.mark.parametrize(
    ("preset", "name"), [("detr", "cpp"), ("mmdet2", "triton"), ("deformable", "triton"), ("deformable", "reference")]
)
def test_the_criterion_compiles_whole_and_once_for_all_batches(predictions, random_targets, name, preset):
    criterion = SetCriterion.preset(preset)
    compiler = CompileCounterWithBackend("aot_eager")

    def total(logits: Tensor, boxes: Tensor, targets: Targets) -> Tensor:
        return criterion(logits, boxes, targets).total

    compiled = torch.compile(total, fullgraph=True, backend=compiler)
    solver = {"cpp": "cpp", "triton": "triton", "reference": "scipy"}[name]
    with use_backend(match_cost=name, set_loss=name, batch_linear_sum_assignment=solver):
        for seed, sizes in enumerate([SIZES, [2, 1, 0], [8, 0, 1], [1, 1, 1], [0, 12, 4]]):
            targets = random_targets(sizes, 4, seed)
            eager, whole = (_steps(predictions, run, targets) for run in (total, compiled))
            for ours, theirs in zip(whole, eager, strict=True):
                torch.testing.assert_close(ours, theirs)
    # Once for the first sizes, once for all others.
    assert compiler.frame_count <= 2


def test_inductor(predictions, random_targets):
    targets = random_targets(SIZES, 4)

    def run(logits: Tensor, boxes: Tensor) -> Tensor:
        cost = ops.match_cost(2 * logits, boxes, targets)
        total, _ = ops.weighted_set_loss(2 * logits, boxes, targets, ops.batch_linear_sum_assignment(cost, targets))
        return total + ops.pairwise_box_iou(boxes, targets.boxes, box_format="cxcywh").sum()

    eager, compiled = run(*predictions), torch.compile(run, fullgraph=True)(*predictions)
    torch.testing.assert_close(compiled, eager)
    for ours, theirs in zip(
        torch.autograd.grad(compiled, predictions), torch.autograd.grad(eager, predictions), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


def test_the_solvers_faults_are_raised_from_compiled_code(backend, random_targets):
    targets = random_targets([1, 2], 3)
    cost = torch.rand(1, 3, 4)
    cost[0, 2, 1] = float("nan")
    solve = torch.compile(ops.batch_linear_sum_assignment, fullgraph=True, backend="aot_eager")

    def solve_and_read() -> None:
        solve(cost, targets, backend=backend)
        faults.raise_faults()

    with pytest.raises(ValueError, match="layer 0, image 1, target 1: the matching cost holds NaN"):
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
        fake = Targets(labels, torch.empty(10, 4, device=device), targets.sizes, offsets, targets.max_label)
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


def test_every_column_is_registered():
    names = {name.split("::")[1] for name in torch._C._dispatch_get_all_op_names() if name.startswith("detr_fast::")}
    for column in OPS:
        assert any(name.startswith((column, f"batch_{column}")) for name in names), column
