from __future__ import annotations

import pytest
import torch

from detr_fast import ops
from detr_fast.ops import PackedImages
from tests.ops.inputs.normalize_and_pad import MEAN, STD, packed

pytest.importorskip("triton")


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_mirrored_images_in_a_larger_batch(device, memory_format):
    images = packed(torch.Generator().manual_seed(0), [(3, 400), (5, 7), (1, 1)])
    options = {"size": (6, 411), "mean": MEAN, "std": STD, "memory_format": memory_format}
    batch, mask = ops.normalize_and_pad(images.to(device), **options, backend="triton")
    expected, expected_mask = ops.normalize_and_pad(images, **options, backend="reference")
    assert batch.stride() == expected.stride()
    torch.testing.assert_close(batch.cpu(), expected, rtol=0, atol=1e-6)
    assert torch.equal(mask.cpu(), expected_mask)


@pytest.mark.parametrize("wrong", [[-6, 2, 2, 0], [6, 2, 2, 0], [2**40, 2, 2, 1], [0, 2**40, 2**40, 1]])
def test_bytes_outside_of_the_buffer_are_not_read(device, wrong):
    """The layout of a batch on a device is not read back to check it."""
    memory = torch.full((12 + 2 * 64,), 255, dtype=torch.uint8, device=device)
    pixels = memory[64:-64].zero_()
    images = PackedImages(pixels, torch.tensor([wrong], device=device), [(2, 2)])
    batch, _ = ops.normalize_and_pad(images, mean=(0.0,) * 3, std=(1.0,) * 3, backend="triton")
    assert not batch.any()
