from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from detr_fast import ops
from detr_fast.ops.deformable_sampling import SpatialShapes
from detr_fast.ops.dispatch import OPS, BackendError
from tests.ops.inputs.fused_deformable_attention import arguments as fused_arguments
from tests.ops.inputs.multi_scale_deformable_attention import arguments

pytest.importorskip("triton")

LEVELS = [(5, 7), (3, 4), (1, 1)]
SIZES = 2, 20, 2, 32  # images, queries, heads, channels of a head: several programs for each image
POINTS = [2, 1, 3]


def _inputs(op: str, device: torch.device) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    if op == "fused_deformable_attention":
        made = fused_arguments(torch.float32, generator, LEVELS, SIZES, POINTS, 4, True)[:4]
    else:
        made = arguments(torch.float32, generator, LEVELS, SIZES, POINTS)[:3]
    return [tensor.to(device).requires_grad_() for tensor in made]


def _gradients(op: str, tensors: list[Tensor], **options: Any) -> list[Tensor]:
    value, *others = tensors
    output = getattr(ops, op)(value, LEVELS, *others, points_per_level=POINTS, backend="triton", **options)
    weight = torch.linspace(-1, 1, output.numel(), device=output.device).view(output.shape)
    return list(torch.autograd.grad(output, tensors, weight))


@pytest.fixture
def in_order(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Lets the interpreter run the programs of a grid in another order; on a GPU, chance does."""
    if device.type == "cuda":
        return lambda order: None
    from triton.runtime.interpreter import interpreter_builder

    set_grid_idx = interpreter_builder.set_grid_idx

    def choose(order: str) -> None:
        def moved(x: int, y: int, z: int) -> None:
            count = interpreter_builder.grid_dim[0]
            generator = torch.Generator().manual_seed(0)
            orders = {
                "ascending": range(count),
                "descending": range(count - 1, -1, -1),
                "shuffled": torch.randperm(count, generator=generator).tolist(),
            }
            set_grid_idx(orders[order][x], y, z)

        monkeypatch.setattr(interpreter_builder, "set_grid_idx", moved)

    return choose


@pytest.mark.parametrize(
    ("op", "setting"),
    [
        ("multi_scale_deformable_attention", "argument"),
        ("fused_deformable_attention", "torch.use_deterministic_algorithms"),
    ],
)
def test_deterministic_gradients_do_not_depend_on_the_order(op, setting, device, in_order):
    tensors = _inputs(op, device)
    options = {"deterministic": True} if setting == "argument" else {}
    results = []
    torch.use_deterministic_algorithms(setting != "argument", warn_only=True)
    try:
        for order in ("ascending", "descending", "shuffled"):
            in_order(order)
            results.append(_gradients(op, tensors, **options))
    finally:
        torch.use_deterministic_algorithms(False)
    for result in results[1:]:
        assert all(torch.equal(tensor, expected) for tensor, expected in zip(result, results[0], strict=True))
    for fixed, floating in zip(results[0], _gradients(op, tensors, deterministic=False), strict=True):
        torch.testing.assert_close(fixed, floating, rtol=1e-4, atol=1e-4)


def test_floating_point_gradients_depend_on_the_order(device, in_order):
    """Without which the tests of fixed point would show nothing."""
    if device.type == "cuda":
        pytest.skip("chance may have chosen the same order twice")
    tensors = _inputs("multi_scale_deformable_attention", device)
    results = []
    for order in ("ascending", "descending"):
        in_order(order)
        results.append(_gradients("multi_scale_deformable_attention", tensors)[0])
    assert not torch.equal(*results)


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e-5, 1e20])
def test_fixed_point_fits_gradients_of_any_size(device, scale):
    value, locations, weights = _inputs("multi_scale_deformable_attention", device)

    def gradient(deterministic: bool) -> Tensor:
        output = ops.multi_scale_deformable_attention(
            value,
            LEVELS,
            locations,
            weights,
            points_per_level=POINTS,
            deterministic=deterministic,
            backend="triton",
        )
        return torch.autograd.grad(output, value, torch.full_like(output, scale))[0]

    expected = gradient(False)
    torch.testing.assert_close(gradient(True), expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # the interpreter's, of NaN as an integer
def test_a_gradient_that_is_not_finite_leaves_no_number_in_fixed_point(device):
    value, locations, weights = _inputs("multi_scale_deformable_attention", device)
    output = ops.multi_scale_deformable_attention(
        value, LEVELS, locations, weights, points_per_level=POINTS, deterministic=True, backend="triton"
    )
    grad = torch.ones_like(output)
    grad[0, 0, 0] = float("nan")
    assert torch.autograd.grad(output, value, grad)[0].isnan().all()


def test_double_precision_is_not_reproducible(device):
    value, locations, weights = (t.double() for t in _inputs("multi_scale_deformable_attention", device))
    options = {"points_per_level": POINTS, "backend": "triton"}
    with pytest.raises(BackendError, match="it does not compute 'deterministic float64'"):
        ops.multi_scale_deformable_attention(value, LEVELS, locations, weights, deterministic=True, **options)
    output = ops.multi_scale_deformable_attention(value, LEVELS, locations, weights, **options)
    assert output.dtype == torch.float64


@pytest.mark.parametrize("op", ["multi_scale_deformable_attention", "fused_deformable_attention"])
@pytest.mark.parametrize(("deterministic", "launches"), [(False, 1), (True, 2)])
def test_launches(op, deterministic, launches, device, monkeypatch):
    if device.type == "cpu":
        from triton.runtime.interpreter import GridExecutor as Executor

        method = "__call__"
    else:
        from triton.runtime.jit import JITFunction as Executor

        method = "run"
    launch, count = getattr(Executor, method), []

    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        count.append(self.fn.__name__)
        return launch(self, *args, **kwargs)

    monkeypatch.setattr(Executor, method, counted)
    _gradients(op, _inputs(op, device), deterministic=deterministic)
    assert len(count) == 1 + launches, count


@pytest.mark.gpu
@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("on_device", [False, True])
def test_nothing_waits_for_the_device(deterministic, on_device):
    device = torch.device("cuda")
    levels = torch.tensor(LEVELS, device=device) if on_device else LEVELS
    value, *others = tensors = _inputs("fused_deformable_attention", device)
    for mode in ("default", "error"):  # compiled first, which may wait
        torch.cuda.set_sync_debug_mode(mode)
        try:
            output = ops.fused_deformable_attention(
                value, levels, *others, points_per_level=POINTS, deterministic=deterministic
            )
            torch.autograd.grad(output.sum(), tensors)
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("levels", [[(5, 7), (3, 4), (1, 2)], [(5, 7), (300, 4), (1, 1)], [(-5, 7), (3, 4), (1, 1)]])
def test_shapes_on_a_device_that_do_not_fit_are_harmless(device, levels):
    """They are not read by the host; what they give beyond the values contributes nothing."""
    value, locations, weights, *rest = arguments(torch.float32, torch.Generator().manual_seed(0), LEVELS, SIZES, POINTS)
    shapes = SpatialShapes([], torch.tensor(levels, device=device))
    results = []
    for backend in ("triton", "reference"):
        tensors = [t.to(device).requires_grad_() for t in (value, locations, weights)]
        output = OPS["multi_scale_deformable_attention"](*tensors, shapes, *rest[1:], backend=backend)
        results.append([output, *torch.autograd.grad(output.sum(), tensors)])
    for result, expected in zip(*results, strict=True):
        torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4)
