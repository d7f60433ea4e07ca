"""The data loader: from JPEG files to a batch, on one core.

The batch of detr_fast is packed and uint8, as it leaves a worker; those of the others are normalized and padded, which
detr_fast leaves to the device.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.peers import import_peer
from benchmarks.registry import Case, Goal, Implementation
from detr_fast.data import Augmentation, Labeled, PackedBatch, Resize, Sample, collate
from detr_fast.images import MEAN, STD, decode_image, pad_images, read_image, resize_shape, to_tensor

SIZES = [(8, 480, 640, "training"), (8, 480, 640, "evaluation")]
SMALL = [(2, 96, 128, "training"), (2, 96, 128, "evaluation")]
DEVICES = ("cpu",)

QUALITY = 90  # of the files in JPEG format


@dataclass(frozen=True)
class Files:
    """Image files in a folder that exists as long as this object."""

    folder: TemporaryDirectory
    paths: list[Path]


def case(device: torch.device, images: int, height: int, width: int, use: str) -> Case:
    transform = Augmentation.detr() if use == "training" else Resize()

    def inputs() -> Files:
        files = Files(folder := TemporaryDirectory(), [Path(folder.name) / f"{index}.jpg" for index in range(images)])
        photo = _photograph()
        for index, path in enumerate(files.paths):
            offset = 4 * index
            part = photo.crop((offset, offset, photo.width - 60 + offset, photo.height - 60 + offset))
            part.resize((width, height), Image.Resampling.LANCZOS).save(path, quality=QUALITY)
        return files

    def detr_fast(files: Files) -> Implementation:
        return Implementation(partial(_load, files.paths, transform), _padded)

    implementations = {"detr_fast": detr_fast, "facebookresearch/detr": partial(_original, transform)}
    if use == "evaluation":
        implementations["transformers"] = _image_processor
    return Case(
        f"{images} files of {width}x{height}, {use}",
        "detr_fast",
        inputs,
        implementations,
        lambda files: _original(transform, files).call(),
        rtol=0,
        atol=2.01 / 255 / min(STD),  # two levels: a resize agrees to one, and an augmentation may have two
        goals=tuple(Goal("ratio", 4, name) for name in implementations if name != "detr_fast"),
    )


def _photograph() -> Image.Image:
    import matplotlib

    return read_image(Path(matplotlib.get_data_path()) / "sample_data/grace_hopper.jpg")


def _load(paths: list[Path], transform: Augmentation | Resize) -> PackedBatch:
    samples = []
    for index, path in enumerate(paths):
        pixels = decode_image(path).pixels
        found = transform(pixels, torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), random.Random(index))
        samples.append(_sample(found, index, (pixels.shape[0], pixels.shape[1])))
    return collate(samples)


def _sample(found: Labeled, index: int, size: tuple[int, int]) -> Sample:
    return Sample(found.image, found.labels, found.boxes, index, size, found.flipped)


def _padded(packed: PackedBatch) -> tuple[Tensor, Tensor]:
    batch = packed.to("cpu")
    return batch.images, batch.mask


def _original(transform: Augmentation | Resize, files: Files) -> Implementation:
    """The transforms of facebookresearch/detr, whose torchvision calls Pillow for its images."""

    def load() -> tuple[Tensor, Tensor]:
        tensors = []
        for index, path in enumerate(files.paths):
            with Image.open(path) as file:
                image = file.convert("RGB")
            rng = random.Random(index)
            resized = image if isinstance(transform, Resize) else _augment(image, transform, rng)
            shorter, longest = _final(transform, rng)
            tensors.append(to_tensor(_resize(resized, shorter, longest)))
        return pad_images(tensors)

    return Implementation(load)


def _augment(image: Image.Image, augment: Augmentation, rng: random.Random) -> Image.Image:
    if rng.random() < augment.flip:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if rng.random() < 1 - augment.crop:
        return image
    image = _resize(image, rng.choice(augment.middle_scales), augment.middle_max_size)
    low, high = augment.crop_min, augment.crop_max
    width, height = (rng.randint(min(low, side), min(high, side)) for side in image.size)
    top = rng.randint(0, image.height - height)
    left = rng.randint(0, image.width - width)
    return image.crop((left, top, left + width, top + height))


def _final(transform: Augmentation | Resize, rng: random.Random) -> tuple[int, int | None]:
    if isinstance(transform, Resize):
        return transform.shorter, transform.longest
    return rng.choice(transform.scales), transform.max_size


def _resize(image: Image.Image, shorter: int, longest: int | None) -> Image.Image:
    return image.resize(resize_shape(*image.size, shorter, longest), Image.Resampling.BILINEAR)


def _image_processor(files: Files) -> Implementation:
    """The image processor of transformers, which has no augmentation."""
    module = import_peer("transformers", "transformers.models.detr.image_processing_pil_detr")
    processor = module.DetrImageProcessorPil(
        size={"shortest_edge": Resize().shorter, "longest_edge": Resize().longest}, image_mean=MEAN, image_std=STD
    )

    def load() -> Any:
        images = []
        for path in files.paths:
            with Image.open(path) as file:
                images.append(np.asarray(file.convert("RGB")))
        return processor(images, return_tensors="pt")

    return Implementation(load, lambda batch: (batch["pixel_values"], ~batch["pixel_mask"].bool()))
