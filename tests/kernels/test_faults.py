from __future__ import annotations

import pytest
import torch

from detr_fast import ops
from detr_fast.training import TrainingError
from detr_fast.training.monitor import LossMonitor


def test_a_fault_on_the_device_is_raised_when_losses_are_read(device):
    cost = torch.rand(1, 3, 5)
    cost[0, 2, 1] = float("nan")
    index = ops.batch_linear_sum_assignment(cost.to(device), [1, 2], backend="triton")
    assert index[0, 1:].tolist() == [-1, -1]
    monitor = LossMonitor()
    monitor.push("step 7, images [3, 4]", torch.tensor(1.0, device=device), {})
    with pytest.raises(TrainingError, match=r"step 7, images \[3, 4\], or soon after: layer 0, image 1"):
        monitor.check()
    monitor.push("step 8, images [5, 6]", torch.tensor(1.0, device=device), {})
    monitor.check()  # raised once
