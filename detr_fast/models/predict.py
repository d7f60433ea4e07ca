"""Detection in pictures as users have them: files, PIL images, arrays and tensors of any sizes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from detr_fast.images import ImageError, pad_images, read_image, resize_shape, to_rgb, to_tensor
from detr_fast.models.postprocess import postprocess

if TYPE_CHECKING:
    from detr_fast.models.detr import DETR

ImageInput: TypeAlias = "str | Path | Image.Image | np.ndarray | Tensor"


def predict(
    model: DETR, images: ImageInput | Sequence[ImageInput], *, threshold: float = 0.5, batch_size: int = 4
) -> list[dict[str, Tensor]]:
    """Detect objects, whatever mode the model is in; it is left in that mode.

    Args:
        model: on any device.
        images: one picture or several, each a file's path, a PIL image, an array (uint8 [H,W,3] or [H,W]) or a tensor
            (uint8 [3,H,W], or floating point [3,H,W] in [0,1]). Not normalised; that is done here.
        threshold: the least score of a detection that is returned.
        batch_size: pictures in one forward pass.

    Returns:
        For each picture ``scores`` [n], the highest first, ``labels`` int64 [n] and ``boxes`` [n,4], xyxy in pixels of
        the picture as it was given, clipped to it. On the CPU.

    Raises:
        ImageError: a picture cannot be read, or has another dtype, shape or range. The message says which one it is.
        ValueError: threshold or batch_size is out of its range, or the model's outputs are not finite.
    """
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold must be within [0, 1], got {threshold}")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    pictures = [images] if isinstance(images, str | Path | Image.Image | np.ndarray | Tensor) else list(images)
    detections = []
    with _evaluating(model), torch.inference_mode():
        for start in range(0, len(pictures), batch_size):
            batch = [_to_pil(x, place) for place, x in enumerate(pictures[start : start + batch_size], start)]
            detections += [_keep(found, image.size, threshold) for found, image in _detect(model, batch)]
    return detections


def _detect(model: DETR, images: list[Image.Image]) -> Iterator[tuple[dict[str, Tensor], Image.Image]]:
    weight = model.query_embed.weight
    batch, mask = pad_images([to_tensor(_resize(image, model)) for image in images])
    padding = mask.to(weight.device) if mask.any() else None
    output = model(batch.to(weight), padding)
    sizes = [(image.height, image.width) for image in images]
    return zip(postprocess(output.pred_logits.cpu(), output.pred_boxes.cpu(), sizes), images, strict=True)


def _resize(image: Image.Image, model: DETR) -> Image.Image:
    shape = resize_shape(*image.size, model.image_size, model.max_image_size)
    return image.resize(shape, Image.Resampling.BILINEAR)


def _keep(found: dict[str, Tensor], size: tuple[int, int], threshold: float) -> dict[str, Tensor]:
    if not (found["scores"].isfinite().all() and found["boxes"].isfinite().all()):
        raise ValueError("the model's outputs are not finite; its weights are damaged or its training has diverged")
    scores, order = found["scores"].sort(descending=True, stable=True)
    order = order[scores >= threshold]
    limit = torch.tensor([*size, *size], dtype=found["boxes"].dtype)
    boxes = found["boxes"][order].clamp(min=torch.zeros_like(limit), max=limit)
    return {"scores": found["scores"][order], "labels": found["labels"][order], "boxes": boxes}


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def _to_pil(image: ImageInput, place: int) -> Image.Image:
    try:
        if isinstance(image, str | Path):
            return read_image(image)
        if isinstance(image, Image.Image):
            return to_rgb(image)
        if isinstance(image, Tensor):
            return _tensor_to_pil(image)
        if isinstance(image, np.ndarray):
            return _array_to_pil(image)
        raise ImageError(f"expected a path, a PIL image, an array or a tensor, got {type(image).__name__}")
    except (ImageError, OSError) as error:  # PIL reads lazily: its images may turn out to be truncated here
        raise ImageError(f"image {place}: {error}") from error


def _array_to_pil(pixels: np.ndarray) -> Image.Image:
    is_picture = pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] == 3)
    if pixels.dtype != np.uint8 or not is_picture or not pixels.size:
        raise ImageError(f"an array must be uint8 [H,W,3] or [H,W], got {pixels.dtype} {list(pixels.shape)}")
    return Image.fromarray(np.ascontiguousarray(pixels)).convert("RGB")


def _tensor_to_pil(pixels: Tensor) -> Image.Image:
    if pixels.dim() != 3 or pixels.shape[0] != 3 or not pixels.numel():
        raise ImageError(f"a tensor must be [3,H,W], got {list(pixels.shape)}; hand over a batch as list(batch)")
    if pixels.is_floating_point():
        if not ((pixels >= 0) & (pixels <= 1)).all():  # NaN fails both
            raise ImageError("a floating point tensor must be within [0,1] and without NaN; do not normalise it")
        pixels = (pixels * 255).round().to(torch.uint8)
    if pixels.dtype != torch.uint8:
        raise ImageError(f"a tensor must be uint8, or floating point in [0,1]; got {pixels.dtype}")
    return _array_to_pil(pixels.permute(1, 2, 0).cpu().numpy())
