"""The ground truth of a batch, packed once where the batch is put together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import torch
from torch import Tensor

from detr_fast.ops.tracing import is_tracing


@dataclass(frozen=True)
class Targets:
    """Labels and boxes of a batch, in image order.

    Build it with :meth:`from_list`, which checks its input; the fields are then trusted.
    """

    labels: Tensor  # int64 [T]
    boxes: Tensor  # float32 [T,4], cxcywh in [0,1]
    sizes: list[int]  # host, length B: number of targets of each image; upper bounds where padded
    offsets: Tensor  # int32 [B+1], on the device: image b owns rows offsets[b]:offsets[b+1]
    max_label: int = (
        -1
    )  # host: the largest label, so that its range can be checked without a synchronization; -1: unknown
    max_targets: int = -1  # host: an upper bound of the sizes; -1: their maximum
    padded: bool = False  # whether only the device has the number of targets: see pad

    def __post_init__(self) -> None:
        if self.max_targets < 0:  # at least 2: torch.compile recompiles for a 0 and a 1
            object.__setattr__(self, "max_targets", max([2, *self.sizes]))

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
        """T, the number of targets in the batch, or of rows where padded."""
        return self.labels.shape[0]

    @property
    def num_images(self) -> int:
        """B."""
        return self.offsets.shape[0] - 1

    def image_index(self) -> Tensor:
        """Return the image of each target: int64 [T]; the last image for rows that belong to no target."""
        row = torch.arange(self.num_targets, dtype=torch.int32, device=self.labels.device)
        return torch.searchsorted(self.offsets[1:], row, right=True).clamp(max=self.num_images - 1)

    def pad(self, max_targets: int) -> Targets:
        """Copy these targets into buffers that also hold any other batch of as many images, for a captured CUDA graph.

        Kernels read the counts on the device, so that one captured graph serves every batch that :meth:`copy_`
        puts into the buffers.

        Args:
            max_targets: maximum number of targets of an image.

        Returns:
            Targets with ``num_images * max_targets`` rows, packed as before, the unused rows last; ``sizes`` are
            upper bounds.

        Raises:
            ValueError: an image has more targets.
        """
        rows = self.num_images * max_targets
        labels, boxes = self.labels.new_zeros(rows), self.boxes.new_zeros(rows, 4)
        sizes = [max_targets] * self.num_images
        padded = Targets(labels, boxes, sizes, self.offsets.clone(), max_targets=max_targets, padded=True)
        padded.copy_(self)
        return padded

    def copy_(self, other: Targets) -> None:
        """Copy other targets into these buffers, in place and without synchronizing with the device.

        Raises:
            ValueError: these targets are not padded, or have room for fewer images or targets.
        """
        if not self.padded or other.padded:
            raise ValueError("targets that are not padded are copied into buffers that pad() made")
        if other.num_images != self.num_images or max(other.sizes, default=0) > self.max_targets:
            raise ValueError(
                f"buffers for {self.num_images} images of at most {self.max_targets} targets cannot hold "
                f"{other.num_images} images of up to {max(other.sizes, default=0)}; pad with a larger max_targets"
            )
        for buffer, values in ((self.labels, other.labels), (self.boxes, other.boxes), (self.offsets, other.offsets)):
            buffer[: len(values)].copy_(values, non_blocking=True)
        object.__setattr__(self, "max_label", other.max_label)

    def pack(self) -> tuple[Tensor, Tensor, Tensor, int, bool]:
        """Return what an op reads, for torch's dispatcher; it does not include the host's sizes."""
        return self.labels, self.boxes, self.offsets, self.max_targets, self.padded

    @classmethod
    def unpack(cls, labels: Tensor, boxes: Tensor, offsets: Tensor, max_targets: int, padded: bool) -> Targets:
        """Return the targets that :meth:`pack` took apart, without the sizes."""
        return cls(labels, boxes, [], offsets, max_targets=max_targets, padded=padded)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Targets:
        """Return the targets with their tensors on ``device``."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Targets:
        """Return the targets in pinned host memory."""
        return self._map(lambda tensor: tensor.pin_memory())

    def check_labels(self, num_classes: int) -> None:
        """Raise ValueError where a label is not below ``num_classes``; never synchronizes with the device.

        A call that is traced has no labels to check; the op checks them when it runs.
        """
        if is_tracing(self.labels) or 0 <= self.max_label < num_classes or not self.num_targets:
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
        """Describe row ``index`` by its image and its number among the image's targets."""
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


def check_predictions(logits: Tensor, boxes: Tensor, targets: Targets, *, softmax: bool) -> None:
    """Raise ValueError where the shapes of predictions and targets, or the labels, do not fit."""
    if logits.dim() != 4 or boxes.shape != (*logits.shape[:3], 4):
        raise ValueError(
            f"expected logits [L,B,Q,C] and boxes [L,B,Q,4], got {list(logits.shape)} and {list(boxes.shape)}"
        )
    if logits.shape[1] != targets.num_images:
        raise ValueError(f"predictions are for {logits.shape[1]} images, targets for {targets.num_images}")
    if logits.device != targets.labels.device:
        raise ValueError(
            f"predictions are on {logits.device}, targets on {targets.labels.device}; "
            "move the targets with targets.to(device)"
        )
    targets.check_labels(logits.shape[3] - softmax)


def offsets_of(sizes: Sequence[int], device: torch.device) -> Tensor:
    """Return where each image's targets begin and end, int32 [B+1] on ``device``; the copy does not block."""
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
