from __future__ import annotations

import pytest
import torch

from benchmarks.conftest import backends, synchronized
from detr_fast import ops


@pytest.mark.parametrize("size", [(2, 25, 34), (16, 32, 32), (8, 50, 67)], ids=str)
@pytest.mark.parametrize(("device", "backend"), backends("sine_position_encoding"))
def test_sine_position_encoding(benchmark, device, backend, size):
    benchmark.group = f"sine_position_encoding, {device}, mask {size}, 256 channels"
    batch, height, width = size
    mask = torch.zeros(size, dtype=torch.bool)
    mask[: batch // 2, height * 3 // 4 :] = True
    mask[batch // 2 :, :, width * 3 // 4 :] = True
    exact = ops.sine_position_encoding(mask, dtype=torch.float64, backend="reference")
    mask = mask.to(device)
    result = ops.sine_position_encoding(mask, backend=backend)
    torch.testing.assert_close(result.cpu().double(), exact, rtol=0, atol=1e-5)
    benchmark(synchronized(lambda: ops.sine_position_encoding(mask, backend=backend), device))
