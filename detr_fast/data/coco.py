"""A COCO detection data set, sample by sample."""

from __future__ import annotations

import os
import random
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from detr_fast.data.annotations import Category, read_annotations, read_ground_truth
from detr_fast.data.faults import DataError, Fault, FaultKind, count_faults, describe_counts
from detr_fast.data.transforms import Transform, clip_boxes
from detr_fast.images import ImageError, read_image, to_tensor


class Picture(NamedTuple):
    """A picture as it is stored, with its ground truth."""

    image: Image.Image  # RGB
    boxes: Tensor  # float32 [t,4], xyxy in pixels, clipped to the picture
    labels: Tensor  # int64 [t]
    image_id: int


class Sample(NamedTuple):
    """A picture as the network takes it, with its ground truth."""

    image: Tensor  # float32 [3,H,W], normalised
    labels: Tensor  # int64 [t]
    boxes: Tensor  # float32 [t,4], cxcywh as fractions of the transformed picture
    image_id: int
    original_size: tuple[int, int]  # (height, width) of the stored picture


class CocoDetection(Dataset[Sample | None]):
    """A data set in COCO detection format, the images sorted by id.

    Labels are contiguous: label k stands for ``categories[k]``. Crowd objects are left out, images without objects
    are kept, boxes are clipped to the picture. What is faulty is left out and counted in :attr:`report`; a picture
    that turns out unreadable while loading is warned of once, with file and id.

    Every sample is a function of ``seed``, the epoch and its index alone, whatever the number of workers.

    Args:
        image_dir: the folder that the file names in the annotation file are relative to.
        annotation_file: COCO detection JSON.
        transform: see :mod:`detr_fast.data.transforms`.
        categories: the mapping of a trained model, to be used instead of the file's own (see
            :func:`~detr_fast.data.annotations.read_annotations`).
        on_unreadable: what stands for a picture that cannot be read: the next readable one ("substitute", for
            training), or None ("skip", for evaluation).
        seed: of the random numbers the transform draws.

    Raises:
        DataError: the annotation file or the folder cannot be used, or no image is left.
    """

    def __init__(
        self,
        image_dir: str | Path,
        annotation_file: str | Path,
        transform: Transform,
        *,
        categories: Sequence[Category] | None = None,
        on_unreadable: Literal["substitute", "skip"] = "substitute",
        seed: int = 0,
    ) -> None:
        if on_unreadable not in ("substitute", "skip"):
            raise ValueError(f'on_unreadable must be "substitute" or "skip", got {on_unreadable!r}')
        self.image_dir = os.fspath(image_dir)
        self.annotation_file = os.fspath(annotation_file)
        self.transform = transform
        self.on_unreadable = on_unreadable
        self.seed = seed
        self._annotations = read_annotations(annotation_file, image_dir, categories)
        self._static_report = count_faults(self._annotations.faults)
        if not len(self):
            raise DataError(
                f"{self.annotation_file}: none of its images can be used with the image folder {os.fspath(image_dir)}: "
                f"{describe_counts(self._static_report)}; detr-fast check-data names each"
            )
        # In shared memory, so that persistent workers see the epoch, and the main process what workers came across.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        self._marks = {
            kind: torch.zeros(len(self), dtype=torch.bool).share_memory_()
            for kind in (FaultKind.UNREADABLE_IMAGE, FaultKind.WRONG_IMAGE_SIZE)
        }

    def __len__(self) -> int:
        return len(self._annotations.images)

    @property
    def categories(self) -> tuple[Category, ...]:
        """Id and name of each label."""
        return self._annotations.categories

    @property
    def num_boxes(self) -> int:
        """How many boxes there are to learn from; 0 makes training pointless."""
        return len(self._annotations.labels)

    @property
    def report(self) -> dict[FaultKind, int]:
        """How many faults of each kind were met so far, by this process and its workers; a picture counts once."""
        counts = dict(self._static_report)
        for kind, marks in self._marks.items():
            if marked := int(marks.sum()):
                counts[kind] = counts.get(kind, 0) + marked
        return counts

    def describe(self) -> str:
        """One line: what there is, what is wrong, and what is done about it."""
        line = f"{self.annotation_file}: {len(self)} images, {self.num_boxes} boxes, {len(self.categories)} classes"
        report = self.report
        return f"{line}; faults: {describe_counts(report)}" if report else line

    def ground_truth(self) -> dict[str, Any]:
        """What detections are scored against; see :func:`~detr_fast.data.annotations.read_ground_truth`."""
        return read_ground_truth(self.annotation_file, self.image_dir)

    def set_epoch(self, epoch: int) -> None:
        """Let the transform draw the numbers of another epoch, in all workers; call it before the loader's ``iter``."""
        self._epoch.fill_(epoch)

    def __getitem__(self, index: int) -> Sample | None:
        """Load a picture and transform it.

        Raises:
            DataError: every picture of the data set has turned out unreadable.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of a data set of {len(self)}")
        rng = random.Random(f"{self.seed} {int(self._epoch)} {index}")
        attempts = len(self) if self.on_unreadable == "substitute" else 1
        for attempt in range(attempts):
            picture = self.picture((index + attempt) % len(self))
            if picture is not None:
                return self._transformed(picture, rng)
        return None

    def picture(self, index: int) -> Picture | None:
        """The picture as it is stored, with its usable boxes; None where it cannot be read."""
        entry = self._annotations.images[index]
        try:
            image = read_image(entry.path)
        except ImageError as error:
            self._mark_unreadable(index, entry.unreadable(error))
            return None
        if fault := entry.size_fault(image):
            self._mark(index, fault)
        rows = slice(*self._annotations.offsets[index : index + 2])
        boxes, labels = self._annotations.boxes[rows], self._annotations.labels[rows]
        return Picture(image, *clip_boxes(boxes, labels, image.width, image.height), entry.id)

    def _transformed(self, picture: Picture, rng: random.Random) -> Sample:
        image, boxes, labels = self.transform(picture.image, picture.boxes, picture.labels, rng)
        size = (picture.image.height, picture.image.width)
        return Sample(to_tensor(image), labels, _fractions(boxes, image), picture.image_id, size)

    def _mark_unreadable(self, row: int, fault: Fault) -> None:
        self._mark(row, fault)
        if self._marks[fault.kind].all():
            raise DataError(f"{self.annotation_file}: none of its {len(self)} images can be read; the last was {fault}")

    def _mark(self, row: int, fault: Fault) -> None:
        marks = self._marks[fault.kind]
        if not marks[row]:
            marks[row] = True
            warnings.warn(str(fault), RuntimeWarning, stacklevel=4)


def _fractions(boxes: Tensor, image: Image.Image) -> Tensor:
    """xyxy in pixels -> cxcywh as fractions of the picture."""
    low, high = boxes.view(-1, 2, 2).unbind(1)
    size = torch.tensor([image.width, image.height], dtype=boxes.dtype)
    return torch.cat([(low + high) / 2 / size, (high - low) / size], dim=1)
