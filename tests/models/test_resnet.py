from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from detr_fast.models import BACKBONES, build_backbone
from detr_fast.models.resnet import BasicBlock, FrozenBatchNorm2d, MaskedGroupNorm, ResNet

# Parameters of torchvision's networks without fc, the affine terms of batch norm included.
PARAMETERS = {"resnet18": 11_176_512, "resnet34": 21_284_672, "resnet50": 23_508_032, "resnet101": 42_500_160}
STRIDES = {name: 16 if name.endswith("dc5") else 32 for name in BACKBONES} | {"resnet_tiny": 8}


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_are_torchvisions(name):
    with torch.device("meta"):
        network = build_backbone(name)
    affine = sum(m.weight.numel() + m.bias.numel() for m in network.modules() if isinstance(m, FrozenBatchNorm2d))
    assert sum(p.numel() for p in network.parameters()) + affine == PARAMETERS[name]
    names = network.state_dict().keys()
    last = "layer4.2.bn3" if name in ("resnet50", "resnet101") else "layer4.1.bn2"
    assert {"conv1.weight", "bn1.running_var", "layer2.0.downsample.0.weight", f"{last}.bias"} <= names
    assert ("layer1.0.downsample.0.weight" in names) == (name in ("resnet50", "resnet101"))


@pytest.mark.parametrize("name", BACKBONES)
def test_stride_and_channels(name):
    with torch.device("meta"):
        network = build_backbone(name)
        features = network(torch.zeros(2, 3, 96, 129))
    assert network.stride == STRIDES[name]
    size = [-(-side // network.stride) for side in (96, 129)]
    assert list(features.shape) == [2, network.num_channels, *size]


def test_dilation_starts_in_the_second_block():
    with torch.device("meta"):
        stage = build_backbone("resnet50_dc5").layer4
    assert [block.conv2.dilation for block in stage] == [(1, 1), (2, 2), (2, 2)]
    assert [block.conv2.stride for block in stage] == [(1, 1)] * 3


def test_bottleneck_strides_in_its_3x3_convolution():
    with torch.device("meta"):
        block = build_backbone("resnet50").layer3[0]
    assert (block.conv1.stride, block.conv2.stride, block.downsample[0].stride) == ((1, 1), (2, 2), (2, 2))


def test_basic_blocks_cannot_be_dilated():
    with pytest.raises(ValueError, match="only bottleneck networks"):
        ResNet(BasicBlock, (2, 2, 2, 2), dilate_last_stage=True)


def test_an_unknown_backbone_is_named_with_the_known_ones():
    with pytest.raises(ValueError, match=r"unknown backbone 'resnet42'; choose one of resnet18, .*resnet_tiny"):
        build_backbone("resnet42")


def test_stem_and_first_stage_are_frozen():
    with torch.device("meta"):
        network = build_backbone("resnet50")
    frozen = {name.split(".")[0] for name, p in network.named_parameters() if not p.requires_grad}
    trained = {name.split(".")[0] for name, p in network.named_parameters() if p.requires_grad}
    assert frozen == {"conv1", "layer1"}
    assert trained == {"layer2", "layer3", "layer4"}


def test_the_tiny_network_is_small_and_trained_completely():
    network = build_backbone("resnet_tiny")
    assert sum(p.numel() for p in network.parameters()) < 700_000
    network(torch.randn(2, 3, 64, 64)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


def filled_batch_norm(channels: int) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(channels).double().eval()
    for tensor in (norm.weight.data, norm.bias.data, norm.running_mean):
        tensor.normal_()
    norm.running_var.uniform_(0.1, 3)
    return norm


def test_frozen_batch_norm_is_batch_norm_in_evaluation():
    norm, frozen = filled_batch_norm(5), FrozenBatchNorm2d(5).double()
    frozen.load_state_dict(norm.state_dict(), strict=True)  # with num_batches_tracked
    x = torch.randn(2, 5, 7, 3, dtype=torch.float64)
    torch.testing.assert_close(frozen.train()(x), norm(x), rtol=0, atol=1e-12)
    assert not list(frozen.parameters())


def test_frozen_batch_norm_keeps_the_dtype_of_half_precision():
    assert FrozenBatchNorm2d(5)(torch.randn(2, 5, 7, 3, dtype=torch.bfloat16)).dtype == torch.bfloat16


def filled_frozen_norm() -> tuple[nn.BatchNorm2d, FrozenBatchNorm2d]:
    torch.manual_seed(0)
    norm, frozen = filled_batch_norm(5).float(), FrozenBatchNorm2d(5)
    frozen.load_state_dict(norm.state_dict())
    return norm, frozen


def test_the_state_dict_of_frozen_batch_norm_has_the_four_buffers():
    _, frozen = filled_frozen_norm()
    assert frozen.state_dict().keys() == {"weight", "bias", "running_mean", "running_var"}


@pytest.mark.parametrize("assign", [False, True])
def test_frozen_batch_norm_follows_its_state(assign):
    norm, frozen = filled_frozen_norm()
    x = torch.randn(2, 5, 7, 3)
    for changed in (frozen, copy.deepcopy(frozen)):
        torch.testing.assert_close(changed(x), norm(x))
        other = filled_batch_norm(5).float()
        changed.load_state_dict(copy.deepcopy(other.state_dict()), assign=assign)
        torch.testing.assert_close(changed(x), other(x))
        changed.running_mean += 1
        changed.fold()
        other.running_mean += 1
        torch.testing.assert_close(changed(x), other(x))


def test_frozen_batch_norm_is_as_exact_as_its_dtype():
    norm, frozen = filled_frozen_norm()
    x = torch.randn(2, 5, 7, 3, dtype=torch.float64)
    torch.testing.assert_close(frozen.double()(x), norm.double()(x), rtol=0, atol=1e-12)
    with torch.device("meta"):
        empty = FrozenBatchNorm2d(5)
    empty.to_empty(device="cpu").load_state_dict(norm.float().state_dict())
    torch.testing.assert_close(empty(x.float()), norm(x.float()))


def test_frozen_batch_norm_under_autocast():
    norm, frozen = filled_frozen_norm()
    convolution, x = nn.Conv2d(3, 5, 1), torch.randn(2, 3, 4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        features = convolution(x)
        found = frozen(features)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), norm(features.float()), rtol=0.02, atol=0.05)


def test_frozen_batch_norm_is_compiled_and_exported():
    norm, frozen = filled_frozen_norm()
    x = torch.randn(2, 5, 7, 3)
    compiled = torch.compile(frozen, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), norm(x))
    other = filled_batch_norm(5).float()
    frozen.load_state_dict(other.state_dict())
    torch.testing.assert_close(compiled(x), other(x))
    exported = torch.export.export(frozen, (x,))
    torch.testing.assert_close(exported.module()(x), other(x))


def test_frozen_batch_norm_computes_its_factor_once():
    """A forward pass is one op, and no launch for each of the four buffers."""
    _, frozen = filled_frozen_norm()
    x = torch.randn(2, 5, 7, 3)
    with torch.profiler.profile() as profile:
        frozen(x)
    assert {e.name for e in profile.events() if e.name.startswith("aten::")} <= {"aten::addcmul", "aten::to"}


def test_bottleneck_computes_what_the_paper_says():
    torch.manual_seed(0)
    block = build_backbone("resnet50").layer2[0].double()
    for norm in [m for m in block.modules() if isinstance(m, FrozenBatchNorm2d)]:
        norm.load_state_dict(filled_batch_norm(norm.weight.numel()).state_dict())
    x = torch.randn(2, 256, 9, 8, dtype=torch.float64)

    def conv_norm(x, conv, norm, **kw):
        y = F.conv2d(x, conv.weight, **kw)
        return F.batch_norm(y, norm.running_mean, norm.running_var, norm.weight, norm.bias)

    y = conv_norm(x, block.conv1, block.bn1).relu()
    y = conv_norm(y, block.conv2, block.bn2, stride=2, padding=1).relu()
    y = conv_norm(y, block.conv3, block.bn3)
    expected = (y + conv_norm(x, block.downsample[0], block.downsample[1], stride=2)).relu()
    torch.testing.assert_close(block(x), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_masked_group_norm_is_group_norm_without_the_padding(dtype):
    norm = MaskedGroupNorm(4, 8).to(dtype)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x, padding = torch.randn(3, 8, 6, 7, dtype=dtype) + 2, torch.zeros(3, 6, 7, dtype=torch.bool)
    padding[1, 4:], padding[1, :, 3:], padding[2] = True, True, True
    found = norm(x, padding)
    tolerance = {"rtol": 0, "atol": 1e-5 if dtype == torch.float32 else 0.05}
    torch.testing.assert_close(found[0], norm(x[:1])[0], **tolerance)
    torch.testing.assert_close(found[1, :, :4, :3], norm(x[1:2, :, :4, :3])[0], **tolerance)
    assert found.dtype == dtype
    assert (found.movedim(1, 3)[padding] == 0).all()
    assert torch.equal(norm(x), F.group_norm(x, 4, norm.weight, norm.bias))


@pytest.mark.parametrize("size", [(64, 80), (57, 33), (1, 9)])
def test_features_of_the_tiny_network_do_not_depend_on_padding(size):
    torch.manual_seed(0)
    network = build_backbone("resnet_tiny").double()
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    image = torch.randn(1, 3, *size, dtype=torch.float64)
    expected = network(image)
    padded, padding = torch.zeros(1, 3, 107, 131, dtype=torch.float64), torch.ones(1, 107, 131, dtype=torch.bool)
    padded[..., : size[0], : size[1]], padding[:, : size[0], : size[1]] = image, False
    found = network(padded, padding)
    height, width = expected.shape[2:]
    torch.testing.assert_close(found[..., :height, :width], expected, rtol=0, atol=1e-9)
    assert not found[..., height:, :].any()
    assert not found[..., width:].any()
