"""Cross-entropy and focal loss inside kernels, and their gradients."""

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
def focal_loss(logits, is_label, ALPHA: tl.constexpr, GAMMA: tl.constexpr):
    """Of every logit (https://arxiv.org/abs/1708.02002): [N,C]"""
    _, miss, minus_log_hit = binary_terms(tl.where(is_label, logits, -logits))
    loss = _power(miss, GAMMA) * minus_log_hit
    return tl.where(is_label, ALPHA * loss, (1 - ALPHA) * loss)


@triton.jit
def focal_loss_grad(logits, is_label, ALPHA: tl.constexpr, GAMMA: tl.constexpr):
    """[N,C]"""
    hit, miss, minus_log_hit = binary_terms(tl.where(is_label, logits, -logits))
    slope = _power(miss, GAMMA) * (GAMMA * hit * minus_log_hit + miss)
    return tl.where(is_label, -ALPHA * slope, (1 - ALPHA) * slope)
