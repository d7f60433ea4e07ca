"""From packed uint8 images to the padded batch of floating point numbers that a network takes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from detr_fast.ops.dispatch import register_op
from detr_fast.ops.packed_images import PackedImages


def normalize_and_pad(
    images: PackedImages,
    size: tuple[int, int] | None = None,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype = torch.float32,
    memory_format: torch.memory_format = torch.contiguous_format,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Normalize the images of a batch and pad them with zeros on the right and at the bottom.

    A pixel of value p in 0, ..., 255 becomes ``(p / 255 - mean) / std``. Padding is 0 after the normalization. Images
    that are marked so are mirrored. There are no gradients, and nothing is read back from the device.

    Args:
        images: B packed images.
        size: (H,W) of the batch in pixels, at least the largest height and the largest width; None for these.
        mean: three numbers, one for each channel, on the scale where 255 is 1.
        std: three positive numbers, on the same scale.
        dtype: of the batch, floating point of 16 to 64 bits; computed in float32, or in float64 where it is that.
        memory_format: ``torch.contiguous_format`` or ``torch.channels_last``.
        backend: a backend by name, or None for the fastest.

    Returns:
        The batch [B,3,H,W] and its padding mask, bool [B,H,W], True where padded.

    Raises:
        ValueError: an image does not fit into ``size``, or an option is out of its range.
        BackendError: the backend asked for cannot run here.
    """
    largest = images.largest
    height, width = largest if size is None else size
    if height < largest[0] or width < largest[1]:
        raise ValueError(f"images of up to {largest[0]}x{largest[1]} do not fit into a size of {height}x{width}")
    if len(mean) != 3 or len(std) != 3 or not all(x > 0 for x in std):
        raise ValueError(f"mean must be three numbers and std three positive numbers, got {mean} and {std}")
    if dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        raise ValueError(f"dtype must be a floating point dtype of 16 to 64 bits, got {dtype}")
    if memory_format not in (torch.contiguous_format, torch.channels_last):
        raise ValueError(f"memory_format must be contiguous_format or channels_last, got {memory_format}")
    channels_last = memory_format == torch.channels_last
    arguments = (images.pixels, images.layout, height, width, list(mean), list(std), dtype, channels_last)
    batch, mask = _normalize_and_pad(*arguments, backend=backend)
    return batch.permute(0, 3, 1, 2) if channels_last else batch, mask


@register_op
def _normalize_and_pad(
    pixels: Tensor,
    layout: Tensor,
    height: int,
    width: int,
    mean: list[float],
    std: list[float],
    dtype: torch.dtype,
    channels_last: bool,
) -> tuple[Tensor, Tensor]:
    """The batch is [B,H,W,3] with channels last, else [B,3,H,W]."""
    device, compute = pixels.device, torch.float64 if dtype == torch.float64 else torch.float32
    begin, rows, columns, flipped = (numbers.view(-1, 1, 1) for numbers in layout.unbind(1))  # [B,1,1]
    y, x = torch.arange(height, device=device).view(-1, 1), torch.arange(width, device=device)
    mask = (y >= rows) | (x >= columns)  # [B,H,W]
    source = torch.where(flipped != 0, columns - 1 - x, x)
    index = (begin + 3 * (y * columns + source)).masked_fill(mask, 0)
    values = pixels.take(index.unsqueeze(-1) + torch.arange(3, device=device))  # [B,H,W,3]

    means, stds = (torch.tensor(numbers, dtype=compute, device=device) for numbers in (mean, std))
    batch = ((values.to(compute) / 255 - means) / stds).masked_fill(mask.unsqueeze(-1), 0).to(dtype)
    return batch if channels_last else batch.permute(0, 3, 1, 2).contiguous(), mask
