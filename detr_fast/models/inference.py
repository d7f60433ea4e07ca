"""Inference on images of any source and size, and the conversion of the network's outputs to detections."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from detr_fast.images import ImageError, read_image, resize_shape, to_rgb, to_tensor
from detr_fast.ops.boxes import box_cxcywh_to_xyxy

ImageInput: TypeAlias = "str | Path | Image.Image | np.ndarray | Tensor"


def predict(
    model: nn.Module,
    images: ImageInput | Sequence[ImageInput],
    *,
    image_size: int,
    max_image_size: int | None,
    threshold: float = 0.5,
    batch_size: int = 4,
) -> list[dict[str, Any]]:
    """Detect objects in evaluation mode; the model's mode is restored afterwards.

    Args:
        model: A :class:`~detr_fast.models.DETR`, or a module with its outputs, on any device.
        images: One image or a sequence of them. Each is a path, a PIL image, an array (uint8 [H,W,3] or [H,W]) or a
            tensor (uint8 [3,H,W], or floating point [3,H,W] in [0,1]). Images must not be normalized; this function
            normalizes them.
        image_size: Length in pixels to which the shorter side of each image is resized.
        max_image_size: Maximum length of the longer side after resizing; None for no limit.
        threshold: Minimum score of the detections that are returned.
        batch_size: Maximum number of images per forward pass. Only images of the same size after the resize share one,
            so that no image is padded, and none changes the detections in another.

    Returns:
        For each image a dictionary on the CPU with ``scores`` float [n] in descending order, ``labels`` int64 [n],
        ``boxes`` float [n,4], xyxy in pixels of the given image and clipped to it, and ``queries`` int64 [n], the
        indices of the queries that detected the objects.

    Raises:
        ImageError: An image cannot be read, or its dtype, shape or range is not supported. The message gives its index.
        ValueError: ``threshold`` or ``batch_size`` is out of range, or the model's outputs are not finite.
    """
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold must be within [0, 1], got {threshold}")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    inputs = as_sequence(images)
    detections: list[dict[str, Any]] = []
    with evaluating(model), torch.inference_mode():
        for start in range(0, len(inputs), batch_size):
            batch = [to_pil(x, index) for index, x in enumerate(inputs[start : start + batch_size], start)]
            resized = [resize(image, image_size, max_image_size) for image in batch]
            sizes = [(image.height, image.width) for image in batch]
            for found, image in zip(_detect(model, resized, sizes), batch, strict=True):
                detections.append(_select(found, image.size, threshold))
    return detections


def postprocess(logits: Tensor, boxes: Tensor, sizes: Sequence[tuple[int, int]]) -> list[dict[str, Tensor]]:
    """Convert the outputs of the last layer to one detection per query: the class of highest probability.

    Args:
        logits: Class logits [B,Q,C+1], no-object last.
        boxes: Boxes [B,Q,4], cxcywh in [0,1].
        sizes: (height, width) of each of the B images in pixels.

    Returns:
        For each image a dictionary with ``scores`` [Q] in [0,1], ``labels`` int64 [Q], and ``boxes`` [Q,4], xyxy in
        pixels. Boxes are not clipped to the image.

    Raises:
        ValueError: The number of sizes is not the number of images.
    """
    if len(sizes) != logits.shape[0]:
        raise ValueError(f"{logits.shape[0]} images need as many sizes, got {len(sizes)}")
    scores, labels, corners = best_classes(logits, boxes)
    boxes = scale_boxes(corners, sizes)
    return [{"scores": s, "labels": label, "boxes": b} for s, label, b in zip(scores, labels, boxes, strict=True)]


def best_classes(logits: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Convert the outputs of the last layer to one detection per query, without a synchronization with the device.

    Args:
        logits: Class logits [B,Q,C+1], no-object last.
        boxes: Boxes [B,Q,4], cxcywh in [0,1].

    Returns:
        Scores [B,Q] in [0,1], labels int64 [B,Q], and boxes [B,Q,4], xyxy as fractions of the images.
    """
    dtype = torch.promote_types(logits.dtype, torch.float32)
    scores, labels = logits.to(dtype).softmax(-1)[..., :-1].max(-1)
    return scores, labels, box_cxcywh_to_xyxy(boxes.to(dtype))


def scale_boxes(boxes: Tensor, sizes: Sequence[tuple[int, int]]) -> Tensor:
    """Convert boxes [B,Q,4] from xyxy as fractions to xyxy in pixels.

    Args:
        boxes: The boxes.
        sizes: (height, width) of each of the B images in pixels.
    """
    scale = torch.tensor([(w, h, w, h) for h, w in sizes], dtype=boxes.dtype).view(-1, 4).to(boxes.device)
    return boxes * scale[:, None]


def as_sequence(images: ImageInput | Sequence[ImageInput]) -> list[ImageInput]:
    """Return one image, or a sequence of them, as a list."""
    return [images] if isinstance(images, str | Path | Image.Image | np.ndarray | Tensor) else list(images)


def _detect(model: nn.Module, images: list[Image.Image], sizes: list[tuple[int, int]]) -> list[dict[str, Tensor]]:
    parameter = next(model.parameters())  # decides the device and the dtype of the inputs
    found: dict[int, dict[str, Tensor]] = {}
    for size in dict.fromkeys(image.size for image in images):
        rows = [row for row, image in enumerate(images) if image.size == size]
        output = model(torch.stack([to_tensor(images[row]) for row in rows]).to(parameter))
        results = postprocess(output.pred_logits.cpu(), output.pred_boxes.cpu(), [sizes[row] for row in rows])
        found.update(zip(rows, results, strict=True))
    return [found[row] for row in range(len(images))]


def resize(image: Image.Image, shorter: int, longest: int | None) -> Image.Image:
    """Resize an image as for the input of a model: its shorter side, and at most its longer one."""
    return image.resize(resize_shape(*image.size, shorter, longest), Image.Resampling.BILINEAR)


def _select(found: dict[str, Tensor], size: tuple[int, int], threshold: float) -> dict[str, Tensor]:
    """Sort detections by score, drop those below the threshold and clip the boxes to the image."""
    if not (found["scores"].isfinite().all() and found["boxes"].isfinite().all()):
        raise ValueError("the model's outputs are not finite; its weights are damaged or its training has diverged")
    scores, order = found["scores"].sort(descending=True, stable=True)
    order = order[scores >= threshold]
    limit = torch.tensor([*size, *size], dtype=found["boxes"].dtype)
    boxes = found["boxes"][order].clamp(min=torch.zeros_like(limit), max=limit)
    return {"scores": found["scores"][order], "labels": found["labels"][order], "boxes": boxes, "queries": order}


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Set evaluation mode, and restore the mode of the model afterwards."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def to_pil(image: ImageInput, index: int) -> Image.Image:
    """Convert an input of any kind to an RGB image; errors name its index."""
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
    except (ImageError, OSError) as error:  # PIL reads lazily, so a truncated file is only detected here
        raise ImageError(f"image {index}: {error}") from error


def _array_to_pil(pixels: np.ndarray) -> Image.Image:
    is_image = pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] == 3)
    if pixels.dtype != np.uint8 or not is_image or not pixels.size:
        raise ImageError(f"an array must be uint8 [H,W,3] or [H,W], got {pixels.dtype} {list(pixels.shape)}")
    return Image.fromarray(np.ascontiguousarray(pixels)).convert("RGB")


def _tensor_to_pil(pixels: Tensor) -> Image.Image:
    if pixels.dim() != 3 or pixels.shape[0] != 3 or not pixels.numel():
        raise ImageError(f"a tensor must be [3,H,W], got {list(pixels.shape)}; pass a batch as list(batch)")
    if pixels.is_floating_point():
        if not ((pixels >= 0) & (pixels <= 1)).all():  # NaN fails both comparisons
            raise ImageError("a floating point tensor must be within [0,1] and without NaN; do not normalize it")
        pixels = (pixels * 255).round().to(torch.uint8)
    if pixels.dtype != torch.uint8:
        raise ImageError(f"a tensor must be uint8, or floating point in [0,1]; got {pixels.dtype}")
    return _array_to_pil(pixels.permute(1, 2, 0).cpu().numpy())
