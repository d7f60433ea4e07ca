from __future__ import annotations

import pytest
import torch

from detr_fast.nn import MultiScaleDeformableAttention

LEVELS = [(5, 7), (3, 4), (1, 1)]
NUM_VALUES = sum(height * width for height, width in LEVELS)


@pytest.fixture
def host_module():
    """The module of transformers' Deformable DETR, with random parameters."""
    pytest.importorskip("transformers")
    from transformers import DeformableDetrConfig
    from transformers.models.deformable_detr.modeling_deformable_detr import DeformableDetrMultiscaleDeformableAttention

    config = DeformableDetrConfig(d_model=48, num_feature_levels=3, disable_custom_kernels=True)
    module = DeformableDetrMultiscaleDeformableAttention(config, num_heads=3, n_points=4)
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    return module


@pytest.mark.parametrize("coordinates", [2, 4])
def test_checkpoints_of_transformers_load(host_module, coordinates):
    module = MultiScaleDeformableAttention(48, num_heads=3, num_levels=3)
    module.load_state_dict(host_module.state_dict(), strict=True)
    torch.manual_seed(0)
    query, points = torch.randn(2, 6, 48), torch.rand(2, 6, 3, coordinates)
    features, padding = torch.randn(2, NUM_VALUES, 48), torch.rand(2, NUM_VALUES) < 0.3
    expected, _ = host_module(
        query,
        attention_mask=~padding,
        encoder_hidden_states=features,
        reference_points=points,
        spatial_shapes=torch.tensor(LEVELS),
        spatial_shapes_list=LEVELS,
    )
    for shapes in (LEVELS, torch.tensor(LEVELS)):
        torch.testing.assert_close(module(query, points, features, shapes, padding), expected, rtol=1e-4, atol=1e-5)


def test_points_sample_one_direction_at_first():
    module = MultiScaleDeformableAttention(32, num_heads=4, num_levels=2, num_points=[1, 3])
    bias = module.sampling_offsets.bias.detach().view(4, 4, 2)
    directions = torch.tensor([[1.0, 0], [0, 1], [-1, 0], [0, -1]])
    for point, distance in enumerate([1, 1, 2, 3]):
        torch.testing.assert_close(bias[:, point], directions * distance, rtol=0, atol=1e-6)
    for linear in (module.sampling_offsets, module.attention_weights):
        assert not linear.weight.any()
    assert not module.attention_weights.bias.any()
    assert module.value_proj.weight.any()


def test_every_parameter_gets_a_gradient():
    torch.manual_seed(0)
    module = MultiScaleDeformableAttention(32, num_heads=4, num_levels=3, num_points=[1, 3, 2])
    torch.nn.init.normal_(module.attention_weights.weight)
    output = module(torch.randn(2, 5, 32), torch.rand(2, 5, 1, 4), torch.randn(2, NUM_VALUES, 32), LEVELS)
    assert output.shape == (2, 5, 32)
    output.square().sum().backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_and_autocast(dtype):
    torch.manual_seed(0)
    module = MultiScaleDeformableAttention(32, num_heads=4, num_levels=3)
    arguments = torch.randn(2, 5, 32), torch.rand(2, 5, 3, 2), torch.randn(2, NUM_VALUES, 32)
    expected = module(*arguments, LEVELS)
    with torch.autocast("cpu", dtype):
        output = module(*arguments, LEVELS)
    torch.testing.assert_close(output.float(), expected, rtol=0.1, atol=0.03)
    output = module.to(dtype)(*(tensor.to(dtype) for tensor in arguments), LEVELS)
    assert output.dtype == dtype
    torch.testing.assert_close(output.float(), expected, rtol=0.1, atol=0.03)


@pytest.mark.slow
def test_compiles_and_is_exported():
    module = MultiScaleDeformableAttention(32, num_heads=4, num_levels=3)
    arguments = torch.randn(2, 5, 32), torch.rand(2, 5, 3, 2), torch.randn(2, NUM_VALUES, 32), LEVELS
    expected = module(*arguments)
    torch._dynamo.reset()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*arguments), expected)
    exported = torch.export.export(module, arguments).module()
    torch.testing.assert_close(exported(*arguments), expected)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="a multiple of num_heads, got 30 and 4"):
        MultiScaleDeformableAttention(30, num_heads=4)
    with pytest.raises(ValueError, match=r"a number or 2 numbers, got \[1, 2, 3\]"):
        MultiScaleDeformableAttention(32, num_levels=2, num_points=[1, 2, 3])
