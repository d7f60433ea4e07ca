from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from detr_fast.ops import PackedImages
from tests.ops.inputs import Case, CompileCase, Rng, integer

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
SIZES: dict[str, list[tuple[int, int]]] = {
    "one pixel": [(1, 1)],
    "equal": [(3, 5), (3, 5)],
    "tall and wide": [(40, 1), (2, 37)],
    "longer than a block": [(2, 400), (3, 7)],
    "no image": [],
}


def packed(rng: Rng, sizes: list[tuple[int, int]]) -> PackedImages:
    """Images of random pixels, a random half of them to be mirrored."""
    images = [torch.randint(256, (*size, 3), generator=rng, dtype=torch.uint8) for size in sizes]
    return PackedImages.from_list(images, [bool(integer(rng, 0, 1)) for _ in sizes])


def conformance_cases() -> Iterator[Case]:
    for channels_last in (False, True):
        order = "channels last" if channels_last else "contiguous"
        for name, sizes in SIZES.items():
            yield Case(
                f"{name}, {order}",
                lambda dtype, rng, sizes=sizes, last=channels_last: _arguments(dtype, rng, sizes, last),
            )
        yield Case(
            f"larger size, {order}",
            lambda dtype, rng, last=channels_last: _arguments(dtype, rng, [(4, 5), (2, 9)], last, (7, 12)),
        )
        yield Case(f"random {int(channels_last)}", lambda dtype, rng, last=channels_last: _random(dtype, rng, last))


def _arguments(
    dtype: torch.dtype,
    rng: Rng,
    sizes: list[tuple[int, int]],
    channels_last: bool,
    size: tuple[int, int] | None = None,
) -> tuple[Any, ...]:
    images = packed(rng, sizes)
    return images.pixels, images.layout, *(size or images.largest), MEAN, STD, dtype, channels_last


def _random(dtype: torch.dtype, rng: Rng, channels_last: bool) -> tuple[Any, ...]:
    sizes = [(integer(rng, 1, 12), integer(rng, 1, 60)) for _ in range(integer(rng, 1, 4))]
    return _arguments(dtype, rng, sizes, channels_last)


def compile_cases() -> Iterator[CompileCase]:
    images = packed(torch.Generator().manual_seed(0), [(64, 853), (64, 700)])
    for name, dtype, channels_last, registers in (
        ("fp32", torch.float32, False, 64),
        ("bf16 channels last", torch.bfloat16, True, 64),
    ):
        arguments = (images.pixels, images.layout, *images.largest, MEAN, STD, dtype, channels_last)
        yield CompileCase(name, arguments, {"normalize_and_pad_kernel": registers})
