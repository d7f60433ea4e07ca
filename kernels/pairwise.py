"""IoU, GIoU, IoF and L1 of every pair of boxes: one launch forward, one for each side backward, without atomics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from detr_fast.ops.boxes import compute_dtype

from .box import box_iou, box_iou_grad, corners, l1, load_box
from .launch import launch_on, triton_dtype

_FORWARD_BLOCK = {"BLOCK_A": 16, "BLOCK_B": 64}
_BACKWARD_BLOCK = {"BLOCK_A": 8, "BLOCK_B": 64}


@triton.jit(do_not_specialize=["stride_a", "stride_b", "num_a", "num_b"])
def pairwise_fwd_kernel(
    a_ptr,  # [K,N,4], batches stride_a apart
    b_ptr,  # [K,M,4], batches stride_b apart
    out_ptr,  # [K,N,M]
    stride_a,
    stride_b,
    num_a,
    num_b,
    KIND: tl.constexpr,  # "iou", "giou", "iof" or "l1"
    CXCYWH: tl.constexpr,  # whether boxes are cxcywh instead of xyxy
    GIOU_EPS: tl.constexpr,
    COMPUTE: tl.constexpr,
    BLOCK_A: tl.constexpr,
    BLOCK_B: tl.constexpr,
):
    batch = tl.program_id(0).to(tl.int64)
    row = tl.program_id(1) * BLOCK_A + tl.arange(0, BLOCK_A)[:, None]
    column = tl.program_id(2) * BLOCK_B + tl.arange(0, BLOCK_B)[None, :]
    a0, a1, a2, a3 = load_box(a_ptr + batch * stride_a + row * 4, row < num_a, COMPUTE)
    b0, b1, b2, b3 = load_box(b_ptr + batch * stride_b + column * 4, column < num_b, COMPUTE)
    if KIND == "l1":
        out = l1(a0, a1, a2, a3, b0, b1, b2, b3)
    else:
        if CXCYWH:
            a0, a1, a2, a3 = corners(a0, a1, a2, a3)
            b0, b1, b2, b3 = corners(b0, b1, b2, b3)
        out = box_iou(a0, a1, a2, a3, b0, b1, b2, b3, KIND, GIOU_EPS)
    offset = (batch * num_a + row) * num_b + column
    tl.store(out_ptr + offset, out, mask=(row < num_a) & (column < num_b))


@triton.jit
def _sign(x):
    return tl.where(x > 0, 1.0, tl.where(x < 0, -1.0, 0.0)).to(x.dtype)


@triton.jit(do_not_specialize=["stride_a", "stride_b", "grad_stride_batch", "num_a", "num_b"])
def pairwise_bwd_kernel(
    a_ptr,  # [K,N,4], batches stride_a apart; the side whose gradient is stored
    b_ptr,  # [K,M,4], batches stride_b apart
    grad_ptr,  # [K,N,M] or [K,M,N], by its strides
    grad_a_ptr,  # [K,N,4]
    stride_a,
    stride_b,
    grad_stride_batch,
    grad_stride_a,
    grad_stride_b,
    num_a,
    num_b,
    KIND: tl.constexpr,  # as above; or "iof of b", which is divided by the areas of b
    CXCYWH: tl.constexpr,
    GIOU_EPS: tl.constexpr,
    COMPUTE: tl.constexpr,
    BLOCK_A: tl.constexpr,
    BLOCK_B: tl.constexpr,
):
    """One program sums the gradients of BLOCK_A boxes over all of b, in a fixed order."""
    batch = tl.program_id(0).to(tl.int64)
    row = tl.program_id(1) * BLOCK_A + tl.arange(0, BLOCK_A)
    inside = row < num_a
    a0, a1, a2, a3 = load_box(a_ptr + batch * stride_a + row[:, None] * 4, inside[:, None], COMPUTE)
    if CXCYWH:
        a0, a1, a2, a3 = corners(a0, a1, a2, a3)
    grad_ptr += batch * grad_stride_batch + row[:, None].to(tl.int64) * grad_stride_a
    sum0 = tl.zeros((BLOCK_A, BLOCK_B), COMPUTE)
    sum1 = tl.zeros((BLOCK_A, BLOCK_B), COMPUTE)
    sum2 = tl.zeros((BLOCK_A, BLOCK_B), COMPUTE)
    sum3 = tl.zeros((BLOCK_A, BLOCK_B), COMPUTE)
    start = 0
    while start < num_b:
        column = start + tl.arange(0, BLOCK_B)[None, :]
        b0, b1, b2, b3 = load_box(b_ptr + batch * stride_b + column * 4, column < num_b, COMPUTE)
        pair = inside[:, None] & (column < num_b)
        grad = tl.load(grad_ptr + column * grad_stride_b, mask=pair, other=0).to(COMPUTE)
        if KIND == "l1":
            d0, d1, d2, d3 = grad * _sign(a0 - b0), grad * _sign(a1 - b1), grad * _sign(a2 - b2), grad * _sign(a3 - b3)
        else:
            if CXCYWH:
                b0, b1, b2, b3 = corners(b0, b1, b2, b3)
            d0, d1, d2, d3 = box_iou_grad(grad, a0, a1, a2, a3, b0, b1, b2, b3, KIND, GIOU_EPS)
        sum0 += tl.where(pair, d0, 0.0)
        sum1 += tl.where(pair, d1, 0.0)
        sum2 += tl.where(pair, d2, 0.0)
        sum3 += tl.where(pair, d3, 0.0)
        start += BLOCK_B
    g0, g1, g2, g3 = tl.sum(sum0, 1), tl.sum(sum1, 1), tl.sum(sum2, 1), tl.sum(sum3, 1)
    if CXCYWH:
        g0, g1, g2, g3 = g0 + g2, g1 + g3, (g2 - g0) * 0.5, (g3 - g1) * 0.5
    grad_a_ptr += (batch * num_a + row) * 4
    tl.store(grad_a_ptr, g0, mask=inside)
    tl.store(grad_a_ptr + 1, g1, mask=inside)
    tl.store(grad_a_ptr + 2, g2, mask=inside)
    tl.store(grad_a_ptr + 3, g3, mask=inside)


def pairwise(
    boxes1: Tensor,  # [K,N,4], boxes contiguous and batches an arbitrary stride apart
    boxes2: Tensor,  # [K,M,4], the same
    **options: Any,  # KIND, CXCYWH, GIOU_EPS
) -> Tensor:  # [K,N,M]
    """Launch the forward kernel."""
    batch, num_a, num_b = boxes1.shape[0], boxes1.shape[1], boxes2.shape[1]
    dtype = compute_dtype(boxes1, boxes2)
    out = torch.empty(batch, num_a, num_b, dtype=dtype, device=boxes1.device)
    if out.numel():
        grid = (batch, triton.cdiv(num_a, _FORWARD_BLOCK["BLOCK_A"]), triton.cdiv(num_b, _FORWARD_BLOCK["BLOCK_B"]))
        with launch_on(boxes1):
            pairwise_fwd_kernel[grid](
                boxes1,
                boxes2,
                out,
                boxes1.stride(0),
                boxes2.stride(0),
                num_a,
                num_b,
                **options,
                COMPUTE=triton_dtype(dtype),
                **_FORWARD_BLOCK,
            )
    return out


def pairwise_backward(
    grads: Sequence[Tensor],  # [K,N,M]
    needed: Sequence[bool],
    boxes1: Tensor,  # [K,N,4]
    boxes2: Tensor,  # [K,M,4]
    **options: Any,  # KIND, CXCYWH, GIOU_EPS
) -> tuple[Tensor | None, Tensor | None]:
    """Launch the backward kernel for each side whose gradient is needed."""
    (grad,) = grads
    grad1 = _backward(boxes1, boxes2, grad, options) if needed[0] else None
    if options["KIND"] == "iof":
        options["KIND"] = "iof of b"
    grad2 = _backward(boxes2, boxes1, grad.transpose(1, 2), options) if needed[1] else None
    return grad1, grad2


def _backward(a: Tensor, b: Tensor, grad: Tensor, options: dict[str, Any]) -> Tensor:
    batch, num_a, num_b = grad.shape
    grad_a = torch.empty(batch, num_a, 4, dtype=a.dtype, device=a.device)
    if grad_a.numel():
        with launch_on(a):
            pairwise_bwd_kernel[(batch, triton.cdiv(num_a, _BACKWARD_BLOCK["BLOCK_A"]))](
                a,
                b,
                grad,
                grad_a,
                a.stride(0),
                b.stride(0),
                *grad.stride(),
                num_a,
                num_b,
                **options,
                COMPUTE=triton_dtype(compute_dtype(a, b)),
                **_BACKWARD_BLOCK,
            )
    return grad_a
