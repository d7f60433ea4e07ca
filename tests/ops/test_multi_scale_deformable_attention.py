from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode

from detr_fast import ops
from detr_fast.ops.dispatch import OPS

pytest.importorskip("transformers")
from transformers.models.deformable_detr.modeling_deformable_detr import MultiScaleDeformableAttention
from transformers.models.rt_detr_v2.modeling_rt_detr_v2 import multi_scale_deformable_attention_v2

LEVELS = [(5, 7), (3, 4), (1, 1), (2, 1)]
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
BACKENDS = list(OPS["multi_scale_deformable_attention"].backends)


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    reason = OPS["multi_scale_deformable_attention"].backends[request.param].refusal(torch.device("cpu"))
    if reason:
        pytest.skip(reason)
    return request.param


class Inputs(NamedTuple):
    value: Tensor  # [B,S,H,D]
    locations: Tensor  # [B,Q,H,L,P,2] or [B,Q,H,N,2]
    weights: Tensor  # [B,Q,H,L,P] or [B,Q,H,N]
    grad: Tensor  # [B,Q,H*D]


def _inputs(
    levels: Sequence[tuple[int, int]] = LEVELS,
    *,
    batch: int = 2,
    queries: int = 6,
    heads: int = 3,
    width: int = 16,
    points: Sequence[int] = (4,),
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> Inputs:
    """Random inputs; a third of the locations lie outside. ``points`` are P, or the points of each level."""
    random = torch.Generator().manual_seed(seed)
    num_values = sum(h * w for h, w in levels)
    shape = (batch, queries, heads, *((len(levels), points[0]) if len(points) == 1 else (sum(points),)))
    rand = partial(torch.rand, generator=random, dtype=torch.float64)
    value = rand(batch, num_values, heads, width) * 2 - 1
    weights = rand(*shape).log().neg()
    tensors = value, rand(*shape, 2) * 1.5 - 0.25, weights, rand(batch, queries, heads * width) * 2 - 1
    return Inputs(*(tensor.to(dtype) for tensor in tensors))


def _transformers(
    value: Tensor, levels: Sequence[tuple[int, int]], locations: Tensor, weights: Tensor, **options
) -> Tensor:
    """The host library's own computation, by ``grid_sample``."""
    if options.get("points_per_level") is None and options.get("method", "default") == "default":
        return MultiScaleDeformableAttention()(value, torch.tensor(levels), levels, None, locations, weights, 64)
    counts = options.get("points_per_level") or [locations.shape[4]] * len(levels)
    method = options.get("method", "default")
    if locations.dim() == 6:
        locations, weights = locations.flatten(3, 4), weights.flatten(3)
    return multi_scale_deformable_attention_v2(value, levels, locations, weights, counts, method)


def _outputs_and_gradients(function: Callable[..., Tensor], inputs: Inputs, levels=LEVELS, **options) -> list[Tensor]:
    tensors = [tensor.detach().requires_grad_() for tensor in inputs[:3]]
    value, locations, weights = tensors
    output = function(value, levels, locations, weights, **options)
    grads = torch.autograd.grad(output, tensors, inputs.grad.to(output.dtype), allow_unused=True)
    return [output.detach(), *(torch.zeros_like(t) if g is None else g for g, t in zip(grads, tensors, strict=True))]


def _assert_as_exact(inputs: Inputs, backend: str, levels=LEVELS, **options) -> None:
    """Compare with the host library in float64; the error may be twice that of PyTorch's operations in the dtype.

    These are the reference's gathers and, where it computes as precisely, the host library's ``grid_sample``, which
    adds up in another order.
    """
    compute = partial(_outputs_and_gradients, levels=levels, **options)
    exact = compute(_transformers, Inputs(*(t.double() for t in inputs)))
    plain = [compute(partial(ops.multi_scale_deformable_attention, backend="reference"), inputs)]
    if inputs.value.dtype.itemsize >= 4:
        plain.append(compute(_transformers, inputs))
    results = compute(partial(ops.multi_scale_deformable_attention, backend=backend), inputs)
    for result, expected, *like in zip(results, exact, *plain, strict=True):
        assert result.dtype == like[0].dtype
        assert result.shape == expected.shape
        if not expected.numel():
            continue
        units = 64 if result.dtype == torch.float64 else 1
        rounding = units * torch.finfo(result.dtype).eps * expected.abs().max()
        error, *allowed = ((tensor.double() - expected).abs().max() for tensor in (result, *like))
        assert error <= 2 * max(allowed) + rounding


@pytest.mark.parametrize("points", [(4,), (2, 5, 1, 3), (0, 3, 2, 0)])
def test_transformers_computes_the_same(backend, points):
    options = {"points_per_level": list(points)} if len(points) > 1 else {}
    for dtype in DTYPES:
        _assert_as_exact(_inputs(points=points, dtype=dtype), backend, **options)


@pytest.mark.parametrize("points", [(4,), (2, 5, 1, 3)])
def test_transformers_samples_the_same_cells(backend, points):
    options = {"points_per_level": list(points)} if len(points) > 1 else {}
    _assert_as_exact(_inputs(points=points), backend, method="discrete", **options)


def test_spatial_shapes_as_a_tensor(backend):
    inputs = _inputs(dtype=torch.float32)
    attention = partial(ops.multi_scale_deformable_attention, backend=backend)
    expected = _outputs_and_gradients(attention, inputs)
    results = _outputs_and_gradients(attention, inputs, torch.tensor(LEVELS))
    for result, like in zip(results, expected, strict=True):
        assert torch.equal(result, like)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e30])
def test_a_location_that_is_not_finite_contributes_nothing(backend, value):
    inputs = _inputs(dtype=torch.float32)
    inputs.locations[0, 1, 2, 0, 3, 0] = value
    inputs.locations[1, 0, 0, 2, 1, 1] = value
    without = inputs._replace(weights=inputs.weights.clone())
    without.weights[0, 1, 2, 0, 3] = 0
    without.weights[1, 0, 0, 2, 1] = 0
    attention = partial(ops.multi_scale_deformable_attention, backend=backend)
    output, grad_value, grad_locations, grad_weights = _outputs_and_gradients(attention, inputs)
    without.locations.nan_to_num_(0, 0, 0)
    expected, expected_grad_value, *_ = _outputs_and_gradients(attention, without)
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(grad_value, expected_grad_value)
    for index in ((0, 1, 2, 0, 3), (1, 0, 0, 2, 1)):
        assert not grad_locations[index].any()
        assert not grad_weights[index].any()
    assert grad_locations.isfinite().all()


def test_discrete_sampling_ignores_nan(backend):
    inputs = _inputs(dtype=torch.float32)
    inputs.locations[0, 1, 2, 0, 3, 0] = float("nan")
    attention = partial(ops.multi_scale_deformable_attention, backend=backend, method="discrete")
    output, _, grad_locations, grad_weights = _outputs_and_gradients(attention, inputs)
    inputs.weights[0, 1, 2, 0, 3] = 0
    inputs.locations.nan_to_num_(0)
    torch.testing.assert_close(output, _outputs_and_gradients(attention, inputs)[0])
    assert not grad_locations.any()
    assert not grad_weights[0, 1, 2, 0, 3]


def test_cells_that_are_not_sampled_may_hold_anything(backend):
    inputs = _inputs([(4, 4)], dtype=torch.float32, points=(2,))
    inputs.locations.copy_(
        torch.tensor([0.125, 0.125])
    )  # the center of the first cell, whose neighbors count zero times
    inputs.locations[:, :, :, :, 1] = torch.tensor([-0.1, -0.1])  # partly outside: only the first cell counts
    inputs.value[:, 6:] = float("nan")
    levels = [(4, 4)]
    attention = partial(ops.multi_scale_deformable_attention, backend=backend)
    assert all(tensor.isfinite().all() for tensor in _outputs_and_gradients(attention, inputs, levels))


def test_values_that_are_not_contiguous(backend):
    inputs = _inputs(dtype=torch.float32)
    attention = partial(ops.multi_scale_deformable_attention, backend=backend)
    expected = _outputs_and_gradients(attention, inputs)
    strided = Inputs(
        inputs.value.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2),
        inputs.locations.transpose(1, 3).contiguous().transpose(1, 3),
        inputs.weights.transpose(0, 2).contiguous().transpose(0, 2),
        inputs.grad.expand(2, 2, *inputs.grad.shape)[1, 1],
    )
    for result, like in zip(_outputs_and_gradients(attention, strided), expected, strict=True):
        torch.testing.assert_close(result, like)


def test_dtypes_may_differ(backend):
    inputs = _inputs(dtype=torch.float32)
    value, locations, weights, _ = inputs
    output = ops.multi_scale_deformable_attention(value.bfloat16(), LEVELS, locations, weights, backend=backend)
    assert output.dtype == torch.bfloat16
    exact = _transformers(value.bfloat16().double(), LEVELS, locations.double(), weights.double())
    torch.testing.assert_close(output.double(), exact, rtol=2**-7, atol=1e-5)


def test_under_autocast(backend):
    inputs = _inputs(dtype=torch.float32)
    project = nn.Linear(16, 16)
    with torch.autocast("cpu", torch.bfloat16):
        value = project(inputs.value)
        assert value.dtype == torch.bfloat16
        output = ops.multi_scale_deformable_attention(value, LEVELS, *inputs[1:3], backend=backend)
    output.sum().backward()
    assert project.weight.grad.isfinite().all()
    assert project.weight.grad.any()


@pytest.mark.parametrize("method", ["default", "discrete"])
def test_gradients_are_the_numerical_ones(method, backend):
    if backend == "triton":
        pytest.skip("the interpreter takes long; the conformance suite compares with the reference in float64")
    levels = [(2, 3), (1, 1)]
    inputs = _inputs(levels, queries=2, heads=2, width=2, points=(2,))
    tensors = [tensor.requires_grad_() for tensor in inputs[:3]]
    if method == "discrete":
        tensors[1].requires_grad_(False)

    def attention(value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        return ops.multi_scale_deformable_attention(value, levels, locations, weights, method=method, backend=backend)

    assert torch.autograd.gradcheck(attention, tensors)


def test_only_the_gradients_that_are_needed(backend):
    inputs = _inputs(dtype=torch.float32)
    attention = partial(ops.multi_scale_deformable_attention, backend=backend)
    expected = _outputs_and_gradients(attention, inputs)[1:]
    for number in range(3):
        tensors = [tensor.clone().requires_grad_(k == number) for k, tensor in enumerate(inputs[:3])]
        value, locations, weights = tensors
        output = attention(value, LEVELS, locations, weights)
        output.backward(inputs.grad)
        torch.testing.assert_close(tensors[number].grad, expected[number])


@pytest.mark.parametrize("method", ["default", "discrete"])
@pytest.mark.parametrize("as_tensor", [False, True])
def test_opcheck(backend, method, as_tensor):
    if backend == "reference":
        pytest.skip("the reference is traced, and is no op of torch.ops")
    inputs = _inputs([(3, 4), (2, 2)], queries=2, heads=2, width=8, points=(2, 1), dtype=torch.float32)
    tensors = [tensor.requires_grad_() for tensor in inputs[:3]]
    shapes = ([], torch.tensor([[3, 4], [2, 2]])) if as_tensor else ([3, 4, 2, 2], None)
    torch.library.opcheck(
        torch.ops.detr_fast.multi_scale_deformable_attention.default,
        (*tensors, *shapes, [2, 1], method, False, backend),
    )


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("as_tensor", [False, True])
def test_compiles_into_one_graph(backend, as_tensor):
    inputs = _inputs(dtype=torch.float32)
    attention = partial(ops.multi_scale_deformable_attention, backend=backend)
    compiled = torch.compile(attention, fullgraph=True, backend="aot_eager")
    levels = torch.tensor(LEVELS) if as_tensor else LEVELS
    results = _outputs_and_gradients(compiled, inputs, levels)
    for result, expected in zip(results, _outputs_and_gradients(attention, inputs, levels), strict=True):
        torch.testing.assert_close(result, expected)


@pytest.mark.usefixtures("fresh_compiler")
def test_is_exported(backend):
    inputs = _inputs(dtype=torch.float32)

    class Model(nn.Module):
        def forward(self, value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
            return ops.multi_scale_deformable_attention(value, LEVELS, locations, weights, backend=backend)

    exported = torch.export.export(Model(), tuple(inputs[:3])).module()
    torch.testing.assert_close(exported(*inputs[:3]), Model()(*inputs[:3]))


def test_fake_tensors(backend):
    with FakeTensorMode() as mode:
        value, locations, weights, grad = (mode.from_tensor(t) for t in _inputs(dtype=torch.bfloat16))
        tensors = [tensor.requires_grad_() for tensor in (value, locations, weights)]
        for levels in (LEVELS, torch.tensor(LEVELS)):
            output = ops.multi_scale_deformable_attention(value, levels, locations, weights, backend=backend)
            assert output.shape == grad.shape
            assert output.dtype == torch.bfloat16
            grads = torch.autograd.grad(output, tensors, grad)
            assert [g.shape for g in grads] == [t.shape for t in tensors]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_same_bits_with_any_threads_and_instructions(dtype):
    _C = pytest.importorskip("detr_fast._C")
    inputs = _inputs(queries=90, heads=8, width=24, points=(8,), dtype=dtype)
    results = []
    num_threads = torch.get_num_threads()
    try:
        for instructions in _C.instruction_sets():
            _C.use_instruction_set(instructions)
            for number in (1, 2, 5):
                torch.set_num_threads(number)
                results.append(
                    _outputs_and_gradients(partial(ops.multi_scale_deformable_attention, backend="cpp"), inputs)
                )
    finally:
        torch.set_num_threads(num_threads)
        _C.use_instruction_set(_C.instruction_sets()[0])
    for result in results[1:]:
        assert all(torch.equal(tensor, expected) for tensor, expected in zip(result, results[0], strict=True))


_VALUE, _LOCATIONS, _WEIGHTS, _ = _inputs(dtype=torch.float32)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((_VALUE[0], LEVELS, _LOCATIONS, _WEIGHTS), {}, "value must be"),
        ((_VALUE.long(), LEVELS, _LOCATIONS, _WEIGHTS), {}, "value must be"),
        ((_VALUE[:, 1:], LEVELS, _LOCATIONS, _WEIGHTS), {}, "value has 49 rows, but the levels .* have 50"),
        ((_VALUE, torch.tensor(LEVELS[:3]), _LOCATIONS, _WEIGHTS), {}, "have 48"),
        ((_VALUE, torch.tensor(LEVELS).int(), _LOCATIONS, _WEIGHTS), {}, r"spatial_shapes must be int64 \[L,2\]"),
        ((_VALUE, [(5, 7, 1)], _LOCATIONS, _WEIGHTS), {}, "a height and a width"),
        ((_VALUE, [(-5, -10)], _LOCATIONS, _WEIGHTS), {}, "must not be negative"),
        ((_VALUE, [], _LOCATIONS, _WEIGHTS), {}, "at least one level"),
        ((_VALUE, [(5, 10)], _LOCATIONS, _WEIGHTS), {}, "do not fit 1 spatial shapes"),
        ((_VALUE, LEVELS, _LOCATIONS[..., :1], _WEIGHTS), {}, "sampling_locations must be"),
        ((_VALUE, LEVELS, _LOCATIONS.flatten(3, 4), _WEIGHTS), {}, "with points_per_level"),
        ((_VALUE, LEVELS, _LOCATIONS[:1], _WEIGHTS[:1]), {}, "the same B and the same H"),
        ((_VALUE, LEVELS, _LOCATIONS[:, :, :2], _WEIGHTS[:, :, :2]), {}, "the same B and the same H"),
        ((_VALUE, LEVELS, _LOCATIONS, _WEIGHTS[..., :3]), {}, "one number for each"),
        ((_VALUE, LEVELS, _LOCATIONS.flatten(3, 4), _WEIGHTS), {"points_per_level": [4, 4, 4, 3]}, "points_per_level"),
        ((_VALUE, LEVELS, _LOCATIONS.flatten(3, 4), _WEIGHTS), {"points_per_level": [-1, 9, 4, 4]}, "points_per_level"),
        ((_VALUE, LEVELS, _LOCATIONS, _WEIGHTS.to("meta")), {}, "on cpu; got .* on meta"),
        ((_VALUE, LEVELS, _LOCATIONS, _WEIGHTS), {"method": "nearest"}, "method must be"),
    ],
)
def test_what_does_not_fit_is_refused(backend, arguments, options, message):
    with pytest.raises(ValueError, match=message):
        ops.multi_scale_deformable_attention(*arguments, backend=backend, **options)
