"""Sines and cosines of a geometric sequence of wavelengths, inside kernels."""

from __future__ import annotations

import math

import triton
import triton.language as tl

SMALL_ANGLE = 25000.0  # radians

# pi/2 in three parts; multiples of the first two, up to 2**14, are exact in float32.
_HALF_PI_HIGH = tl.constexpr(math.floor(math.pi / 2 * 2**7) / 2**7)
_HALF_PI_MIDDLE = tl.constexpr(math.floor((math.pi / 2 - _HALF_PI_HIGH.value) * 2**21) / 2**21)
_HALF_PI_LOW = tl.constexpr(math.pi / 2 - _HALF_PI_HIGH.value - _HALF_PI_MIDDLE.value)
_QUADRANTS = tl.constexpr(2 / math.pi)


@triton.jit
def sine_cosine(angle, small):
    """Sine and cosine; ``small`` states that no angle of the program exceeds SMALL_ANGLE in magnitude.

    In float32 small angles take one reduction to [-pi/4, pi/4] and two Taylor polynomials: the error is about two
    units in the last place, and the cost a third of that of two calls for arbitrary angles.
    """
    if angle.dtype == tl.float64:
        return tl.sin(angle), tl.cos(angle)
    if small:
        sine, cosine = _small_sine_cosine(angle)
    else:
        sine, cosine = tl.sin(angle), tl.cos(angle)
    return sine, cosine


@triton.jit
def _small_sine_cosine(angle):
    quadrant = tl.floor(angle * _QUADRANTS + 0.5)
    rest = angle - quadrant * _HALF_PI_HIGH - quadrant * _HALF_PI_MIDDLE - quadrant * _HALF_PI_LOW
    square = rest * rest
    sine = rest + rest * square * (-1 / 6 + square * (1 / 120 + square * (-1 / 5040 + square * (1 / 362880))))
    cosine = 1 + square * (-1 / 2 + square * (1 / 24 + square * (-1 / 720 + square * (1 / 40320))))
    turn = quadrant.to(tl.int32)
    swapped = (turn & 1) != 0
    sine_part, cosine_part = tl.where(swapped, cosine, sine), tl.where(swapped, sine, cosine)
    return (
        tl.where((turn & 2) != 0, -sine_part, sine_part),
        tl.where(((turn + 1) & 2) != 0, -cosine_part, cosine_part),
    )


@triton.jit
def frequencies(pair, dtype: tl.constexpr, NUM_FEATS: tl.constexpr, LOG2_TEMPERATURE: tl.constexpr):
    """One over the wavelength of each pair of sine and cosine."""
    # The exponent in two parts, as large angles show the error of one: multiples of the first are exact in float32.
    STEP: tl.constexpr = -2 * LOG2_TEMPERATURE / NUM_FEATS
    STEP_HIGH: tl.constexpr = STEP * 2**12 // 1 / 2**12
    STEP_LOW: tl.constexpr = STEP - STEP_HIGH
    return tl.exp2(pair.to(dtype) * STEP_HIGH) * tl.exp2(pair.to(dtype) * STEP_LOW)
