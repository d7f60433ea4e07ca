"""Class losses inside kernels, and their gradients; the formulas are those of detr_fast.ops.class_loss."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def binary_terms(z):
    """p = sigmoid(z), 1 - p, -log(p) and -log(1 - p), each to full relative accuracy, also where z is infinite."""
    e = tl.exp(-tl.abs(z))
    u = 1 + e
    # log1p(e) by log alone: e / (u - 1) corrects for the rounding of u = 1 + e.
    log1p = tl.where(u == 1, e, tl.log(u) * (e / tl.where(u == 1, 1, u - 1)))
    return tl.where(z >= 0, 1, e) / u, tl.where(z >= 0, e, 1) / u, tl.maximum(-z, 0) + log1p, tl.maximum(z, 0) + log1p


@triton.jit
def power(base, EXPONENT: tl.constexpr):
    """``base ** EXPONENT`` for a base that is not negative."""
    if EXPONENT == 0:
        result = tl.full(base.shape, 1, base.dtype)
    elif EXPONENT == 1:
        result = base
    elif EXPONENT == 2:
        result = base * base
    else:
        result = tl.where(base == 0, 0, tl.exp(EXPONENT * tl.log(base)))
    return result


@triton.jit
def load_logits(row_ptr, col, inside, num_classes, COMPUTE: tl.constexpr):
    """A block of logits [N,C] from pointers to the first of each row, [N,1]; -inf beyond the classes."""
    return tl.load(row_ptr + col[None, :], mask=inside & (col[None, :] < num_classes), other=-float("inf")).to(COMPUTE)


@triton.jit
def cross_entropy(logits, is_label):
    """Cross-entropy of the label: [N,C] to [N]."""
    peak = tl.max(logits, 1)
    of_label = tl.sum(tl.where(is_label, logits, 0), 1)
    return tl.log(tl.sum(tl.exp(logits - peak[:, None]), 1)) - (of_label - peak)


@triton.jit
def cross_entropy_grad(logits, is_label):
    """Gradient of :func:`cross_entropy`, [N,C]."""
    exp = tl.exp(logits - tl.max(logits, 1)[:, None])
    softmax = exp / tl.sum(exp, 1)[:, None]
    return tl.where(is_label, softmax - 1, softmax)


@triton.jit
def sigmoid_loss(logits, is_label, iou, LOSS: tl.constexpr, ALPHA: tl.constexpr, GAMMA: tl.constexpr):
    """Loss of every logit, [N,C]; LOSS is "focal", "varifocal" or "ia_bce"; iou, [N,1], is that of the row's match."""
    if LOSS == "focal":
        _, miss, minus_log_hit, _ = binary_terms(tl.where(is_label, logits, -logits))
        loss = power(miss, GAMMA) * minus_log_hit
        loss = tl.where(is_label, ALPHA * loss, (1 - ALPHA) * loss)
    else:
        p, _, minus_log_p, softplus = binary_terms(logits)
        if LOSS == "varifocal":
            of_label = iou * (iou * minus_log_p + (1 - iou) * softplus)
            loss = tl.where(is_label, of_label, ALPHA * power(p, GAMMA) * softplus)
        else:
            quality = _blend(p, iou, ALPHA)
            of_label = quality * minus_log_p + (1 - quality) * softplus
            loss = tl.where(is_label, of_label, power(p, GAMMA) * softplus)
    return loss


@triton.jit
def sigmoid_loss_grad(logits, is_label, iou, LOSS: tl.constexpr, ALPHA: tl.constexpr, GAMMA: tl.constexpr):
    """Gradient of :func:`sigmoid_loss`, [N,C]."""
    if LOSS == "focal":
        hit, miss, minus_log_hit, _ = binary_terms(tl.where(is_label, logits, -logits))
        slope = power(miss, GAMMA) * (_slope_of_power(hit, minus_log_hit, GAMMA) + miss)
        grad = tl.where(is_label, -ALPHA * slope, (1 - ALPHA) * slope)
    else:
        p, rest, _, softplus = binary_terms(logits)
        if LOSS == "varifocal":  # the weight of a negative has no gradient
            grad = tl.where(is_label, iou * (p - iou), ALPHA * power(p, GAMMA) * p)
        else:
            of_negative = power(p, GAMMA) * (_slope_of_power(rest, softplus, GAMMA) + p)
            grad = tl.where(is_label, p - _blend(p, iou, ALPHA), of_negative)
    return grad


@triton.jit
def _slope_of_power(complement, loss, GAMMA: tl.constexpr):
    """The part of a logit's gradient, less the common factor, that comes from the power of the probability."""
    if GAMMA == 0:
        result = tl.zeros_like(loss)  # also where the loss is infinite
    else:
        result = GAMMA * complement * loss
    return result


@triton.jit
def _blend(p, iou, ALPHA: tl.constexpr):
    """The target of a positive, a geometric mean of its score and IoU; it has no gradient."""
    quality = power(p, ALPHA) * power(iou, 1 - ALPHA)
    return tl.where(quality < 0.01, 0.01, quality)
