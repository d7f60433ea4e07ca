"""Reporting of faults by kernels, to the status word of their device (see detr_fast.ops.faults)."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def report_fault(status_ptr, layer, group, image, target, CODE: tl.constexpr):
    """Keep the fault that comes first by layer, group, image and target, whatever the order of the programs."""
    position = ((layer.to(tl.int64) * 1024 + group) * 1048576 + image) * 1048576 + target
    tl.atomic_min(status_ptr, position * 8 + CODE, sem="relaxed")
