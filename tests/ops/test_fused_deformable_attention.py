from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode

from detr_fast import ops
from detr_fast.ops.dispatch import OPS

pytest.importorskip("transformers")
from transformers import DeformableDetrConfig, DFineConfig, RTDetrV2Config
from transformers.models.d_fine.modeling_d_fine import DFineMultiscaleDeformableAttention
from transformers.models.deformable_detr.modeling_deformable_detr import DeformableDetrMultiscaleDeformableAttention
from transformers.models.rt_detr_v2.modeling_rt_detr_v2 import RTDetrV2MultiscaleDeformableAttention

LEVELS = [(5, 7), (3, 4), (1, 1), (2, 1)]
BACKENDS = list(OPS["fused_deformable_attention"].backends)


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    reason = OPS["fused_deformable_attention"].backends[request.param].refusal(torch.device("cpu"))
    if reason:
        pytest.skip(reason)
    return request.param


class Inputs(NamedTuple):
    value: Tensor  # [B,S,H,D]
    points: Tensor  # [B,Q,L|1,2|4]
    offsets: Tensor  # [B,Q,H,L,P,2] or [B,Q,H,N,2]
    logits: Tensor  # [B,Q,H,L,P] or [B,Q,H,N]
    grad: Tensor  # [B,Q,H*D]


def _inputs(
    levels: Sequence[tuple[int, int]] = LEVELS,
    *,
    coordinates: int = 2,
    shared: bool = False,
    batch: int = 2,
    queries: int = 6,
    heads: int = 3,
    width: int = 16,
    points: Sequence[int] = (4,),
    dtype: torch.dtype = torch.float64,
) -> Inputs:
    """Random inputs. ``points`` are P, or the points of each level; ``shared`` says that levels share their points."""
    random = torch.Generator().manual_seed(0)
    num_values = sum(h * w for h, w in levels)
    shape = (batch, queries, heads, *((len(levels), points[0]) if len(points) == 1 else (sum(points),)))
    rand = partial(torch.rand, generator=random, dtype=torch.float64)
    tensors = (
        rand(batch, num_values, heads, width) * 2 - 1,
        rand(batch, queries, 1 if shared else len(levels), coordinates) * 1.2 - 0.1,
        rand(*shape, 2) * 6 - 3,
        rand(*shape) * 8 - 4,
        rand(batch, queries, heads * width) * 2 - 1,
    )
    return Inputs(*(tensor.to(dtype) for tensor in tensors))


def _outputs_and_gradients(
    function: Callable[..., Tensor], inputs: Inputs, levels: Any = LEVELS, **options
) -> list[Tensor]:
    tensors = [tensor.detach().requires_grad_() for tensor in inputs[:4]]
    value, *others = tensors
    output = function(value, levels, *others, **options)
    return [output.detach(), *torch.autograd.grad(output, tensors, inputs.grad.to(output.dtype))]


def _attention(backend: str) -> Callable[..., Tensor]:
    return partial(ops.fused_deformable_attention, backend=backend)


def _compare_with_module(module: nn.Module, fused: Callable[[Tensor, Tensor, Tensor], Tensor], points: Tensor) -> None:
    """Compare outputs and gradients of a module of transformers with those of ``fused``."""
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    hidden = torch.randn(2, points.shape[1], 48)
    encoded = torch.randn(2, sum(h * w for h, w in LEVELS), 48)
    results = []
    for forward in (
        lambda *tensors: module(
            tensors[0],
            encoder_hidden_states=tensors[1],
            reference_points=tensors[2],
            spatial_shapes=torch.tensor(LEVELS),
            spatial_shapes_list=LEVELS,
        )[0],
        fused,
    ):
        tensors = [tensor.detach().requires_grad_() for tensor in (hidden, encoded, points)]
        output = forward(*tensors)
        weight = torch.linspace(-1, 1, output.numel()).view(output.shape)
        results.append([output.detach(), *torch.autograd.grad(output, [*tensors, *module.parameters()], weight)])
    torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("coordinates", [2, 4])
@pytest.mark.parametrize("shared", [False, True])
def test_deformable_detr_computes_the_same(backend, coordinates, shared):
    config = DeformableDetrConfig(d_model=48, num_feature_levels=4, disable_custom_kernels=True)
    module = DeformableDetrMultiscaleDeformableAttention(config, num_heads=3, n_points=4)

    def fused(hidden: Tensor, encoded: Tensor, points: Tensor) -> Tensor:
        value = module.value_proj(encoded).view(2, -1, 3, 16)
        offsets = module.sampling_offsets(hidden).view(2, -1, 3, 4, 4, 2)
        logits = module.attention_weights(hidden).view(2, -1, 3, 16)
        return module.output_proj(_attention(backend)(value, LEVELS, points, offsets, logits))

    _compare_with_module(module, fused, _inputs(coordinates=coordinates, shared=shared, dtype=torch.float32).points)


@pytest.mark.parametrize("method", ["default", "discrete"])
def test_rt_detr_v2_computes_the_same(backend, method):
    config = RTDetrV2Config(
        d_model=48,
        decoder_attention_heads=3,
        decoder_n_levels=4,
        decoder_n_points=4,
        decoder_offset_scale=0.7,
        decoder_method=method,
    )
    module = RTDetrV2MultiscaleDeformableAttention(config)

    def fused(hidden: Tensor, encoded: Tensor, points: Tensor) -> Tensor:
        value = module.value_proj(encoded).view(2, -1, 3, 16)
        offsets = module.sampling_offsets(hidden).view(2, -1, 3, 16, 2)
        logits = module.attention_weights(hidden).view(2, -1, 3, 16)
        options = {"points_per_level": module.n_points_list, "offset_scale": 0.7, "method": method}
        return module.output_proj(_attention(backend)(value, LEVELS, points, offsets, logits, **options))

    if method == "discrete":  # where the host library has no gradient for offsets
        points = _inputs(coordinates=4, shared=True, dtype=torch.float32).points
        hidden, encoded = torch.randn(2, 6, 48), torch.randn(2, 50, 48)
        expected, _ = module(
            hidden,
            encoder_hidden_states=encoded,
            reference_points=points,
            spatial_shapes=torch.tensor(LEVELS),
            spatial_shapes_list=LEVELS,
        )
        torch.testing.assert_close(fused(hidden, encoded, points), expected)
    else:
        _compare_with_module(module, fused, _inputs(coordinates=4, shared=True, dtype=torch.float32).points)


def test_d_fine_computes_the_same(backend):
    config = DFineConfig(
        d_model=48,
        decoder_attention_heads=3,
        num_feature_levels=4,
        decoder_n_levels=4,
        decoder_n_points=[3, 6, 1, 2],
        decoder_offset_scale=0.5,
    )
    module = DFineMultiscaleDeformableAttention(config)

    def fused(hidden: Tensor, encoded: Tensor, points: Tensor) -> Tensor:
        offsets = module.sampling_offsets(hidden).view(2, -1, 3, 12, 2)
        logits = module.attention_weights(hidden).view(2, -1, 3, 12)
        value = encoded.view(2, -1, 3, 16)
        return _attention(backend)(value, LEVELS, points, offsets, logits, points_per_level=[3, 6, 1, 2])

    _compare_with_module(module, fused, _inputs(coordinates=4, shared=True, dtype=torch.float32).points)


def test_spatial_shapes_as_a_tensor(backend):
    inputs = _inputs(dtype=torch.float32)
    expected = _outputs_and_gradients(_attention(backend), inputs)
    for result, like in zip(
        _outputs_and_gradients(_attention(backend), inputs, torch.tensor(LEVELS)), expected, strict=True
    ):
        assert torch.equal(result, like)


@pytest.mark.parametrize("coordinates", [2, 4])
def test_an_offset_that_is_nan_contributes_nothing(backend, coordinates):
    inputs = _inputs(coordinates=coordinates, dtype=torch.float32)
    inputs.offsets[0, 1, 2, 0, 3, 0] = float("nan")
    output, _, grad_points, grad_offsets, grad_logits = _outputs_and_gradients(_attention(backend), inputs)
    assert output.isfinite().all()
    assert not grad_offsets[0, 1, 2, 0, 3].any()
    assert grad_offsets.isfinite().all()
    assert grad_logits.isfinite().all()
    if coordinates == 2:
        assert grad_points.isfinite().all()


@pytest.mark.parametrize(("coordinates", "shared"), [(2, False), (4, True)])
def test_gradients_are_the_numerical_ones(backend, coordinates, shared):
    if backend == "triton":
        pytest.skip("the interpreter takes long; the conformance suite compares with the reference in float64")
    levels = [(2, 3), (1, 1)]
    inputs = _inputs(levels, coordinates=coordinates, shared=shared, queries=2, heads=2, width=2, points=(2,))
    tensors = [tensor.requires_grad_() for tensor in inputs[:4]]
    assert torch.autograd.gradcheck(
        lambda value, *others: _attention(backend)(value, levels, *others, offset_scale=0.7), tensors
    )


def test_only_the_gradients_that_are_needed(backend):
    inputs = _inputs(coordinates=4, shared=True, dtype=torch.float32)
    expected = _outputs_and_gradients(_attention(backend), inputs)[1:]
    for number in range(4):
        tensors = [tensor.clone().requires_grad_(k == number) for k, tensor in enumerate(inputs[:4])]
        value, *others = tensors
        _attention(backend)(value, LEVELS, *others).backward(inputs.grad)
        torch.testing.assert_close(tensors[number].grad, expected[number])


@pytest.mark.parametrize("as_tensor", [False, True])
@pytest.mark.parametrize("coordinates", [2, 4])
def test_opcheck(backend, coordinates, as_tensor):
    if backend == "reference":
        pytest.skip("the reference is traced, and is no op of torch.ops")
    inputs = _inputs(coordinates=coordinates, queries=2, heads=2, width=8, points=(2, 1, 1, 0), dtype=torch.float32)
    tensors = [tensor.requires_grad_() for tensor in inputs[:4]]
    sizes = [size for level in LEVELS for size in level]
    shapes = ([], torch.tensor(LEVELS)) if as_tensor else (sizes, None)
    torch.library.opcheck(
        torch.ops.detr_fast.fused_deformable_attention.default,
        (*tensors, *shapes, [2, 1, 1, 0], 0.5, "default", False, backend),
    )


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("as_tensor", [False, True])
def test_compiles_into_one_graph(backend, as_tensor):
    inputs = _inputs(coordinates=4, dtype=torch.float32)
    compiled = torch.compile(_attention(backend), fullgraph=True, backend="aot_eager")
    levels = torch.tensor(LEVELS) if as_tensor else LEVELS
    results = _outputs_and_gradients(compiled, inputs, levels)
    for result, expected in zip(results, _outputs_and_gradients(_attention(backend), inputs, levels), strict=True):
        torch.testing.assert_close(result, expected)


@pytest.mark.usefixtures("fresh_compiler")
def test_is_exported(backend):
    inputs = _inputs(dtype=torch.float32)

    class Model(nn.Module):
        def forward(self, value: Tensor, *others: Tensor) -> Tensor:
            return _attention(backend)(value, LEVELS, *others)

    exported = torch.export.export(Model(), tuple(inputs[:4])).module()
    torch.testing.assert_close(exported(*inputs[:4]), Model()(*inputs[:4]))


def test_fake_tensors(backend):
    with FakeTensorMode() as mode:
        tensors = [mode.from_tensor(t).requires_grad_() for t in _inputs(dtype=torch.bfloat16)[:4]]
        value, *others = tensors
        output = _attention(backend)(value, torch.tensor(LEVELS), *others)
        assert output.shape == (2, 6, 48)
        assert output.dtype == torch.bfloat16
        grads = torch.autograd.grad(output.sum(), tensors)
        assert [g.shape for g in grads] == [t.shape for t in tensors]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_same_bits_with_any_threads_and_instructions(dtype):
    _C = pytest.importorskip("detr_fast._C")
    inputs = _inputs(coordinates=4, queries=90, heads=8, width=24, points=(8,), dtype=dtype)
    results = []
    num_threads = torch.get_num_threads()
    try:
        for instructions in _C.instruction_sets():
            _C.use_instruction_set(instructions)
            for number in (1, 2, 5):
                torch.set_num_threads(number)
                results.append(_outputs_and_gradients(_attention("cpp"), inputs))
    finally:
        torch.set_num_threads(num_threads)
        _C.use_instruction_set(_C.instruction_sets()[0])
    for result in results[1:]:
        assert all(torch.equal(tensor, expected) for tensor, expected in zip(result, results[0], strict=True))


_VALUE, _POINTS, _OFFSETS, _LOGITS, _ = _inputs(dtype=torch.float32)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((_VALUE[:, 1:], LEVELS, _POINTS, _OFFSETS, _LOGITS), "value has 49 rows, but the levels .* have 50"),
        ((_VALUE, LEVELS, _POINTS[:, :5], _OFFSETS, _LOGITS), "reference_points must be"),
        ((_VALUE, LEVELS, _POINTS[:, :, :2], _OFFSETS, _LOGITS), "reference_points must be"),
        ((_VALUE, LEVELS, _POINTS[..., :1], _OFFSETS, _LOGITS), "reference_points must be"),
        ((_VALUE, LEVELS, _POINTS.long(), _OFFSETS, _LOGITS), "reference_points must be"),
        ((_VALUE, LEVELS, _POINTS, _OFFSETS[..., :1], _LOGITS), "sampling_offsets must be"),
        ((_VALUE, LEVELS, _POINTS, _OFFSETS, _LOGITS[..., :3]), "attention_logits must be"),
    ],
)
def test_what_does_not_fit_is_refused(backend, arguments, message):
    with pytest.raises(ValueError, match=message):
        ops.fused_deformable_attention(*arguments, backend=backend)
