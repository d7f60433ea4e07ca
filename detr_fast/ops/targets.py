"""The ground truth of a batch, packed once where the batch is put together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import torch
from torch import Tensor

from detr_fast.ops.backends import traced


@dataclass(frozen=True)
class Targets:
    """Labels and boxes of a whole batch, image after image.

    Build it with :meth:`from_list`, which checks its input; the fields are then trusted.
    """

    labels: Tensor  # int64 [T]
    boxes: Tensor  # float32 [T,4], cxcywh in [0,1]
    sizes: list[int]  # host, length B: targets of each image; bounds of them where padded
    offsets: Tensor  # int32 [B+1], on the device: image b owns rows offsets[b]:offsets[b+1]
    max_label: int = -1  # host: the largest label, so that its range can be checked without asking; -1: not known
    most: int = -1  # host: a bound of the sizes; -1: not given
    padded: bool = False  # whether only the device knows how many targets there are: see pad

    def __post_init__(self) -> None:
        if self.most < 0:  # at least 2: torch.compile compiles anew for a 0 and a 1
            object.__setattr__(self, "most", max([2, *self.sizes]))

    @classmethod
    def from_list(cls, targets: Sequence[Mapping[str, Tensor]]) -> Targets:
        """Pack one mapping per image.

        Args:
            targets: for each image ``labels`` (integers [t]) and ``boxes`` (floating point [t,4], cxcywh as
                fractions of the image, width and height not negative). Other keys are ignored.

        Raises:
            ValueError: a shape does not fit, a label is negative, or a box is not finite or has a negative
                side. The message names the image and the target.
        """
        device = targets[0]["labels"].device if targets else torch.device("cpu")
        sizes = [_count(target, image) for image, target in enumerate(targets)]
        labels = [t["labels"].reshape(-1).to(torch.int64) for t in targets]
        boxes = [t["boxes"].reshape(-1, 4).to(torch.float32) for t in targets]
        packed = cls(
            labels=torch.cat(labels) if labels else torch.zeros(0, dtype=torch.int64, device=device),
            boxes=torch.cat(boxes) if boxes else torch.zeros(0, 4, device=device),
            sizes=sizes,
            offsets=offsets_of(sizes, device),
        )
        if device.type != "cpu" or not packed.num_targets:
            return packed
        packed._check_values()
        return replace(packed, max_label=int(packed.labels.max()))

    @property
    def num_targets(self) -> int:
        """T, the number of targets in the whole batch, or of the rows kept for them where padded."""
        return self.labels.shape[0]

    @property
    def num_images(self) -> int:
        """B."""
        return self.offsets.shape[0] - 1

    def image_index(self) -> Tensor:
        """The image each target belongs to: int64 [T]; the last for rows that are no target's."""
        row = torch.arange(self.num_targets, dtype=torch.int32, device=self.labels.device)
        return torch.searchsorted(self.offsets[1:], row, right=True).clamp(max=self.num_images - 1)

    def pad(self, most: int) -> Targets:
        """These targets in buffers that also hold any other batch of as many images, for a captured CUDA graph.

        The true counts are read on the device, so that a graph captured once serves all batches, which
        :meth:`copy_` puts in their place.

        Args:
            most: as many targets as an image may have.

        Returns:
            Targets with ``num_images * most`` rows, packed as before, the unused ones last; ``sizes`` are bounds.

        Raises:
            ValueError: an image has more targets.
        """
        rows = self.num_images * most
        labels, boxes = self.labels.new_zeros(rows), self.boxes.new_zeros(rows, 4)
        padded = Targets(labels, boxes, [most] * self.num_images, self.offsets.clone(), most=most, padded=True)
        padded.copy_(self)
        return padded

    def copy_(self, other: Targets) -> None:
        """Put other targets into these buffers, in place and without waiting for the device.

        Raises:
            ValueError: these are not padded, or do not hold as many images or targets.
        """
        if not self.padded or other.padded:
            raise ValueError("targets are copied into buffers that pad() made, from targets as they are")
        if other.num_images != self.num_images or max(other.sizes, default=0) > self.most:
            raise ValueError(
                f"buffers for {self.num_images} images of at most {self.most} targets cannot hold "
                f"{other.num_images} images of up to {max(other.sizes, default=0)}; pad to more"
            )
        for buffer, values in ((self.labels, other.labels), (self.boxes, other.boxes), (self.offsets, other.offsets)):
            buffer[: len(values)].copy_(values, non_blocking=True)
        object.__setattr__(self, "max_label", other.max_label)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Targets:
        """The same targets with their tensors on ``device``."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Targets:
        """The same targets in pinned host memory."""
        return self._map(lambda tensor: tensor.pin_memory())

    def check_labels(self, num_classes: int) -> None:
        """Raise ValueError where a label is not below ``num_classes``; never waits for the device.

        While a call is only recorded there is nothing to check; the op does it when it runs.
        """
        if traced(self.labels) or 0 <= self.max_label < num_classes or not self.num_targets:
            return
        if self.labels.device.type != "cpu":
            if self.max_label >= num_classes:
                raise ValueError(_label_message(f"label {self.max_label}", num_classes))
            return
        bad = (self.labels >= num_classes).nonzero().flatten().tolist()
        if bad:
            raise ValueError(
                _label_message(f"{self.name_target(bad[0])}: label {int(self.labels[bad[0]])}", num_classes)
            )

    def name_target(self, index: int) -> str:
        """Say which image and which of its targets row ``index`` is."""
        for image, size in enumerate(self.offsets.diff().tolist()):
            if index < size:
                return f"image {image}, target {index}"
            index -= size
        raise IndexError("there are fewer targets than that")

    def _map(self, function) -> Targets:  # type: ignore[no-untyped-def]
        return replace(self, labels=function(self.labels), boxes=function(self.boxes), offsets=function(self.offsets))

    def _check_values(self) -> None:
        negative = (self.labels < 0).nonzero().flatten().tolist()
        if negative:
            row = negative[0]
            raise ValueError(f"{self.name_target(row)}: label {int(self.labels[row])} is negative")
        bad = (~self.boxes.isfinite().all(-1) | (self.boxes[:, 2:] < 0).any(-1)).nonzero().flatten().tolist()
        if bad:
            row = bad[0]
            raise ValueError(
                f"{self.name_target(row)}: box {self.boxes[row].tolist()} is not a box; expected finite "
                "(cx, cy, width, height) with width and height not below 0"
            )


def offsets_of(sizes: Sequence[int], device: torch.device) -> Tensor:
    """Where each image's targets begin and end, int32 [B+1] on ``device``; nobody waits for the copy."""
    offsets = torch.tensor([0, *accumulate(sizes)], dtype=torch.int32)
    return offsets.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else offsets.to(device)


def _count(target: Mapping[str, Tensor], image: int) -> int:
    labels, boxes = target["labels"], target["boxes"]
    if labels.is_floating_point() or labels.dim() != 1:
        raise ValueError(f"image {image}: labels must be integers [t], got {labels.dtype} {list(labels.shape)}")
    count = labels.shape[0]
    if boxes.shape != (count, 4) and not (count == 0 and boxes.numel() == 0):
        raise ValueError(f"image {image}: {count} labels need boxes of shape [{count}, 4], got {list(boxes.shape)}")
    return count


def _label_message(what: str, num_classes: int) -> str:
    return (
        f"{what} is out of range for {num_classes} classes (labels run from 0 to {num_classes - 1}); "
        "build the model with more classes or map the labels to contiguous ones"
    )
