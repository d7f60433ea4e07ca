"""A data set for detection."""

from __future__ import annotations

import hashlib
import os
import random
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from detr_fast.data.annotations import Category, Orientation, read_annotations, read_ground_truth
from detr_fast.data.faults import DataError, Fault, FaultKind, count_faults, describe_counts
from detr_fast.data.transforms import Labeled, Transform, clip_boxes
from detr_fast.images import ImageError, fit_shape, resize_pixels

_IMAGE_FAULTS = (FaultKind.WRONG_IMAGE_SIZE, FaultKind.TURNED_IMAGE, FaultKind.ASSUMED_RANGE)
_COUNTED = (FaultKind.TURNED_IMAGE, FaultKind.ASSUMED_RANGE)  # and not warned of: often, all images have them


class PaddedIndex(NamedTuple):
    """The index of an image in a data set, and the size to which its batch is padded.

    Attributes:
        image: Index of the image.
        padded_size: (height, width) in pixels; the transformed image is scaled down where it exceeds them.
    """

    image: int
    padded_size: tuple[int, int]


class AnnotatedImage(NamedTuple):
    """A decoded image file with its ground truth.

    Attributes:
        image: The pixels, uint8 [h,w,3].
        boxes: Boxes of its t objects, float32 [t,4], xyxy in pixels of the image, clipped to it.
        labels: Labels of the objects, int64 [t].
        image_id: Id of the image in the annotation file.
        original_size: (height, width) of the image file.
    """

    image: Tensor
    boxes: Tensor
    labels: Tensor
    image_id: int
    original_size: tuple[int, int]


class Sample(NamedTuple):
    """A transformed image with its ground truth.

    Attributes:
        image: The pixels, uint8 [h,w,3].
        labels: Labels of its t objects, int64 [t].
        boxes: Boxes of the objects, float32 [t,4], cxcywh as fractions of the transformed image.
        image_id: Id of the image in the annotation file.
        original_size: (height, width) of the image file.
        flipped: Whether the image is yet to be mirrored from left to right; the boxes are those of the mirrored image.
        padded_size: (height, width) to which its batch is padded; None if its images determine it.
    """

    image: Tensor
    labels: Tensor
    boxes: Tensor
    image_id: int
    original_size: tuple[int, int]
    flipped: bool = False
    padded_size: tuple[int, int] | None = None


class CocoDetection(Dataset[Sample | None]):
    """A data set in COCO detection format, or in that of YOLO, Roboflow or Pascal VOC, its images sorted by id.

    Labels are contiguous: label k stands for ``categories[k]``. Crowd regions are left out, images without objects are
    kept, and boxes are clipped to the image. Faulty entries are left out and counted in :attr:`report`. If an image
    file turns out to be unreadable when it is loaded, a warning with its file and id is issued once.

    A sample depends on ``seed``, the epoch and its index only, not on the number of workers.

    Args:
        image_dir: The directory of the images, to which the file names of a COCO annotation file are relative.
        annotation_file: The annotations: COCO detection JSON, or a path by which one of the other formats is
            recognized; see :mod:`detr_fast.data.formats`.
        transform: The transform of images and boxes; see :mod:`detr_fast.data.transforms`.
        categories: The categories of a trained model, which replace those of the annotation file; see
            :func:`~detr_fast.data.annotations.read_annotations`.
        on_unreadable: ``"substitute"`` replaces an unreadable image by the next readable one, for training;
            ``"skip"`` returns None for it, for evaluation.
        orientation: What the boxes of an image with an EXIF orientation refer to where its stated size does not tell:
            the ``"upright"`` image or the pixels as ``"stored"``.
        seed: Seed of the random numbers of the transform.

    Raises:
        DataError: The annotation file or the directory cannot be used, or no image is left.
        ValueError: ``on_unreadable`` or ``orientation`` is neither of the two.
    """

    def __init__(
        self,
        image_dir: str | Path,
        annotation_file: str | Path,
        transform: Transform,
        *,
        categories: Sequence[Category] | None = None,
        on_unreadable: Literal["substitute", "skip"] = "substitute",
        orientation: Orientation = "upright",
        seed: int = 0,
    ) -> None:
        if on_unreadable not in ("substitute", "skip"):
            raise ValueError(f'on_unreadable must be "substitute" or "skip", got {on_unreadable!r}')
        if orientation not in ("upright", "stored"):
            raise ValueError(f'orientation must be "upright" or "stored", got {orientation!r}')
        self.image_dir = os.fspath(image_dir)
        self.annotation_file = os.fspath(annotation_file)
        self.transform = transform
        self.on_unreadable = on_unreadable
        self.orientation = orientation
        self.seed = seed
        self._annotations = read_annotations(annotation_file, image_dir, categories)
        self._static_report = count_faults(self._annotations.faults)
        if not len(self):
            raise DataError(
                f"{self.annotation_file}: none of its images can be used with the image directory "
                f"{os.fspath(image_dir)}: {describe_counts(self._static_report)}; detr-fast check-data lists each fault"
            )
        # In shared memory, persistent workers see the epoch, and the main process sees the marks of its workers.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        self._marks = {
            kind: torch.zeros(len(self), dtype=torch.bool).share_memory_()
            for kind in (FaultKind.UNREADABLE_IMAGE, *_IMAGE_FAULTS)
        }

    def __len__(self) -> int:
        return len(self._annotations.images)

    @property
    def categories(self) -> tuple[Category, ...]:
        """The category of each label."""
        return self._annotations.categories

    @property
    def image_ids(self) -> list[int]:
        """The id of each image in the annotation file."""
        return [image.id for image in self._annotations.images]

    @property
    def num_boxes(self) -> int:
        """Number of boxes; without any the data set cannot be trained on."""
        return len(self._annotations.labels)

    @property
    def report(self) -> dict[FaultKind, int]:
        """Number of faults of each kind that this process and its workers have met so far; each image counts once."""
        counts = dict(self._static_report)
        for kind, marks in self._marks.items():
            if marked := int(marks.sum()):
                counts[kind] = counts.get(kind, 0) + marked
        return counts

    def describe(self) -> str:
        """Summarize the data set and its faults in one line."""
        line = f"{self.annotation_file}: {len(self)} images, {self.num_boxes} boxes, {len(self.categories)} classes"
        report = self.report
        return f"{line}; faults: {describe_counts(report)}" if report else line

    def describe_many_objects(self, num_queries: int) -> str | None:
        """Describe the images with more objects than a model has queries in one line; None if there are none."""
        faults = self._annotations.many_objects(self.annotation_file, num_queries)
        if not faults:
            return None
        return f"{describe_counts(count_faults(faults))}; the first is {faults[0]}"

    def digest(self) -> str:
        """Return a SHA-256 checksum of the categories, and of the ids, boxes and labels of the images that are used."""
        found = self._annotations
        digest = hashlib.sha256(repr((found.categories, self.image_ids, found.offsets)).encode())
        for tensor in (found.labels, found.boxes):
            digest.update(tensor.contiguous().numpy().data)
        return digest.hexdigest()

    def ground_truth(self) -> dict[str, Any]:
        """Return the ground truth for an evaluation; see :func:`~detr_fast.data.annotations.read_ground_truth`."""
        return read_ground_truth(self.annotation_file, self.image_dir, self.categories)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the random numbers in all workers; call it before the loader is iterated over."""
        self._epoch.fill_(epoch)

    def draw_sizes(self) -> list[tuple[int, int] | None]:
        """Draw the size of each transformed image in the current epoch, without loading it.

        Returns:
            (height, width) of each image. It is None where the annotation file does not state the size of the image,
            and wrong where it states a wrong one.

        Raises:
            TypeError: The transform has no method ``draw_size``.
        """
        draw_size = getattr(self.transform, "draw_size", None)
        if draw_size is None:
            raise TypeError(f"{type(self.transform).__name__} has no method draw_size, by which sizes are drawn")
        drawn: list[tuple[int, int] | None] = []
        for index, entry in enumerate(self._annotations.images):
            if entry.size is None:
                drawn.append(None)
                continue
            width, height = draw_size(*entry.size, self._rng(index))
            drawn.append((height, width))
        return drawn

    def __getitem__(self, index: int | PaddedIndex) -> Sample | None:
        """Load an image and transform it.

        Args:
            index: Index of the image, with the size to which its batch is padded or without.

        Returns:
            The sample, or None for an unreadable image with ``on_unreadable="skip"``.

        Raises:
            DataError: All images of the data set are unreadable.
        """
        index, padded_size = index if isinstance(index, PaddedIndex) else (index, None)
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of a data set of {len(self)}")
        rng = self._rng(index)
        attempts = len(self) if self.on_unreadable == "substitute" else 1
        for attempt in range(attempts):
            loaded = self._load((index + attempt) % len(self), getattr(self.transform, "fewest_pixels", None))
            if loaded is not None:
                return self._transform(loaded, rng, padded_size)
        return None

    def load_image(self, index: int) -> AnnotatedImage | None:
        """Load an image with its usable boxes, without a transform; None if it is unreadable."""
        return self._load(index, None)

    def _load(self, index: int, fewest: Callable[[int, int], tuple[int, int]] | None) -> AnnotatedImage | None:
        entry = self._annotations.images[index]
        try:
            decoded, faults = entry.read(self.orientation, fewest)
        except ImageError as error:
            self._mark_unreadable(index, entry.unreadable(error))
            return None
        for fault in faults:
            self._mark(index, fault)
        image, (width, height) = decoded.pixels, decoded.size
        rows = slice(*self._annotations.offsets[index : index + 2])
        boxes, labels = clip_boxes(self._annotations.boxes[rows], self._annotations.labels[rows], width, height)
        if image.shape[:2] != (height, width):
            boxes = boxes * torch.tensor([image.shape[1] / width, image.shape[0] / height] * 2)
        return AnnotatedImage(image, boxes, labels, entry.id, (height, width))

    def _rng(self, index: int) -> random.Random:
        return random.Random(f"{self.seed} {int(self._epoch)} {index}")

    def _transform(self, loaded: AnnotatedImage, rng: random.Random, padded_size: tuple[int, int] | None) -> Sample:
        found = Labeled(*self.transform(loaded.image, loaded.boxes, loaded.labels, rng))
        boxes, image = _fractions(found.boxes, found.image), found.image
        if padded_size is not None:
            height, width = fit_shape((image.shape[0], image.shape[1]), padded_size)
            image = resize_pixels(image, width, height)
        return Sample(image, found.labels, boxes, loaded.image_id, loaded.original_size, found.flipped, padded_size)

    def _mark_unreadable(self, row: int, fault: Fault) -> None:
        self._mark(row, fault)
        if self._marks[fault.kind].all():
            raise DataError(
                f"{self.annotation_file}: none of its {len(self)} images can be read; the last fault was {fault}"
            )

    def _mark(self, row: int, fault: Fault) -> None:
        marks = self._marks[fault.kind]
        if not marks[row]:
            marks[row] = True
            if fault.kind in _COUNTED:
                return
            warnings.warn(str(fault), RuntimeWarning, stacklevel=4)


def _fractions(boxes: Tensor, image: Tensor) -> Tensor:
    """Convert boxes [t,4] from xyxy in pixels to cxcywh as fractions of the image."""
    low, high = boxes.view(-1, 2, 2).unbind(1)
    size = torch.tensor([image.shape[1], image.shape[0]], dtype=boxes.dtype)
    return torch.cat([(low + high) / 2 / size, (high - low) / size], dim=1)
