"""Class losses inside kernels, and their gradients, number for number as in detr_fast.ops.class_loss."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def binary_terms(z):
    """sigmoid(z), sigmoid(-z) and -log(sigmoid(z)), each to full relative accuracy."""
    e = tl.exp(-tl.abs(z))
    u = 1 + e
    # log1p(e) from log alone: what rounding made of u - 1 corrects the logarithm.
    log1p = tl.where(u == 1, e, tl.log(u) * (e / tl.where(u == 1, 1, u - 1)))
    return tl.where(z >= 0, 1, e) / u, tl.where(z >= 0, e, 1) / u, tl.maximum(-z, 0) + log1p


@triton.jit
def _power(base, EXPONENT: tl.constexpr):
    if EXPONENT == 2:
        power = base * base
    elif EXPONENT == 0:
        power = tl.full(base.shape, 1, base.dtype)
    else:
        power = tl.where(base > 0, tl.exp(EXPONENT * tl.log(base)), 0)
    return power


@triton.jit
def cross_entropy(logits, is_label):
    """Minus the logarithm of the label's softmax: [N,C] to [N]."""
    peak = tl.max(logits, 1)
    of_label = tl.sum(tl.where(is_label, logits, 0), 1)
    return tl.log(tl.sum(tl.exp(logits - peak[:, None]), 1)) - (of_label - peak)


@triton.jit
def cross_entropy_grad(logits, is_label):
    """[N,C]"""
    exp = tl.exp(logits - tl.max(logits, 1)[:, None])
    softmax = exp / tl.sum(exp, 1)[:, None]
    return tl.where(is_label, softmax - 1, softmax)


@triton.jit
def sigmoid_loss(logits, is_label, iou, LOSS: tl.constexpr, ALPHA: tl.constexpr, GAMMA: tl.constexpr):
    """Of every logit, [N,C]; LOSS is "focal", "varifocal" or "ia_bce"; iou, [N,1], is that of the row's match."""
    if LOSS == "focal":
        _, miss, minus_log_hit = binary_terms(tl.where(is_label, logits, -logits))
        loss = _power(miss, GAMMA) * minus_log_hit
        loss = tl.where(is_label, ALPHA * loss, (1 - ALPHA) * loss)
    else:
        _, p, softplus = binary_terms(-logits)
        if LOSS == "varifocal":
            loss = tl.where(is_label, iou * (softplus - iou * logits), ALPHA * _power(p, GAMMA) * softplus)
        else:
            loss = tl.where(is_label, softplus - _blend(p, iou, ALPHA) * logits, _power(p, GAMMA) * softplus)
    return loss


@triton.jit
def sigmoid_loss_grad(logits, is_label, iou, LOSS: tl.constexpr, ALPHA: tl.constexpr, GAMMA: tl.constexpr):
    """[N,C]"""
    if LOSS == "focal":
        hit, miss, minus_log_hit = binary_terms(tl.where(is_label, logits, -logits))
        slope = _power(miss, GAMMA) * (GAMMA * hit * minus_log_hit + miss)
        grad = tl.where(is_label, -ALPHA * slope, (1 - ALPHA) * slope)
    else:
        rest, p, softplus = binary_terms(-logits)
        if LOSS == "varifocal":  # the weight of a negative has no gradient
            grad = tl.where(is_label, iou * (p - iou), ALPHA * _power(p, GAMMA) * p)
        else:
            of_negative = _power(p, GAMMA) * (GAMMA * rest * softplus + p)
            grad = tl.where(is_label, p - _blend(p, iou, ALPHA), of_negative)
    return grad


@triton.jit
def _blend(p, iou, ALPHA: tl.constexpr):
    """What a positive's score ought to be, between score and IoU; it has no gradient."""
    quality = _power(p, ALPHA) * _power(iou, 1 - ALPHA)
    return tl.where(quality < 0.01, 0.01, quality)
