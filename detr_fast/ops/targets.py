"""The ground truth of a batch, packed once where the batch is put together."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from detr_fast.ops.target_list import read_target_list
from detr_fast.ops.tracing import is_tracing


@dataclass(frozen=True)
class Targets:
    """Labels and boxes of a batch, in image order.

    Build it with :meth:`from_list`, which also checks the values.

    Args:
        labels: int64 [T].
        boxes: float32 [T,4], cxcywh in [0,1].
        sizes: number of targets of each of the B images, on the host; upper bounds where padded.
        offsets: int32 [B+1]: image b owns the rows ``offsets[b]:offsets[b + 1]``.
        max_targets: upper bound of the sizes; -1 stands for their maximum.
        padded: whether only the device has the number of targets; see :meth:`pad`.

    Raises:
        ValueError: the fields do not fit together.
    """

    labels: Tensor
    boxes: Tensor
    sizes: list[int]
    offsets: Tensor
    max_targets: int = field(default=-1, kw_only=True)
    padded: bool = field(default=False, kw_only=True)
    # Host: the largest label, so that its range is checked without a synchronization; -1: unknown.
    max_label: int = field(default=-1, init=False)

    def __post_init__(self) -> None:
        self._check_fields()
        if self.max_targets < 0:  # at least 2: torch.compile recompiles for a 0 and a 1
            object.__setattr__(self, "max_targets", max([2, *self.sizes]))

    @classmethod
    def from_list(cls, targets: Sequence[Mapping[str, Any]]) -> Targets:
        """Pack one mapping for each image.

        Args:
            targets: for each image ``labels`` (integers [t]) and ``boxes`` (floating point [t,4], cxcywh as
                fractions of the image, width and height not negative), as tensors, arrays or lists. Other keys are
                ignored. The arrays of an image without targets may be of any shape without elements.

        Raises:
            TypeError: ``targets`` is no sequence of mappings, or the labels or boxes of an image are no numbers.
            ValueError: a key is missing, a shape does not fit, a label is negative, or a box is not finite, has a
                negative side or is in pixels. The message names the image and the target.
        """
        images = read_target_list(targets)
        device = images[0][0].device if images else torch.device("cpu")
        sizes = [len(labels) for labels, _ in images]
        packed = cls(
            labels=torch.cat([x for x, _ in images]) if images else torch.zeros(0, dtype=torch.int64),
            boxes=torch.cat([x for _, x in images]) if images else torch.zeros(0, 4),
            sizes=sizes,
            offsets=offsets_of(sizes, device),
        )
        if device.type == "cpu" and packed.num_targets:
            packed._check_values()
            packed._set_max_label(int(packed.labels.max()))
        return packed

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
        self._set_max_label(other.max_label)

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

    def check_labels(self, num_classes: int, *, no_object: bool = False) -> None:
        """Raise ValueError where the largest label is known and not below ``num_classes``; never synchronizes.

        A call that is traced has no labels to check; the op checks them when it runs.

        Args:
            num_classes: number of classes, no-object excluded.
            no_object: whether the model has a logit for no-object besides; the message mentions it.
        """
        if is_tracing(self.labels) or self.max_label < num_classes:
            return
        if self.labels.device.type == "cpu":
            self.check_label_values(num_classes, no_object=no_object)
        raise ValueError(_label_message(f"label {self.max_label}", num_classes, no_object))

    def check_label_values(self, num_classes: int, *, no_object: bool = False) -> None:
        """Raise ValueError where a label is not in [0, ``num_classes``); labels on a device or traced are not read.

        It is for backends that index by the labels: :attr:`max_label` is that of the labels which
        :meth:`from_list` was given, and they may have been changed in place.
        """
        if is_tracing(self.labels) or self.labels.device.type != "cpu" or not self.num_targets:
            return
        low, high = self.labels.aminmax()
        if int(low) >= 0 and int(high) < num_classes:
            return
        row = int(((self.labels < 0) | (self.labels >= num_classes)).nonzero()[0])
        if not self.padded or row < int(self.offsets[-1]):
            what = f"{self.name_target(row)}: label {int(self.labels[row])}"
            raise ValueError(_label_message(what, num_classes, no_object))

    def name_target(self, index: int) -> str:
        """Describe row ``index`` by its image and its number among the image's targets."""
        for image, size in enumerate(self.offsets.diff().tolist()):
            if index < size:
                return f"image {image}, target {index}"
            index -= size
        raise IndexError("there are fewer targets than that")

    def _map(self, function: Callable[[Tensor], Tensor]) -> Targets:
        moved = replace(self, labels=function(self.labels), boxes=function(self.boxes), offsets=function(self.offsets))
        moved._set_max_label(self.max_label)
        return moved

    def _set_max_label(self, label: int) -> None:
        object.__setattr__(self, "max_label", label)

    def _check_fields(self) -> None:
        labels, boxes, offsets = self.labels, self.boxes, self.offsets
        if labels.dim() != 1 or labels.dtype != torch.int64:
            raise ValueError(f"labels must be int64 [T], got {labels.dtype} {list(labels.shape)}")
        if boxes.shape != (labels.shape[0], 4) or not boxes.is_floating_point():
            raise ValueError(f"boxes must be floating point [T,4] with T={labels.shape[0]}, got {list(boxes.shape)}")
        if boxes.requires_grad:
            raise ValueError("the target boxes require grad, but targets are constants; detach() them")
        if offsets.dim() != 1 or offsets.dtype != torch.int32 or offsets.shape[0] < 1:
            raise ValueError(f"offsets must be int32 [B+1], got {offsets.dtype} {list(offsets.shape)}")
        if self.sizes and (
            len(self.sizes) != offsets.shape[0] - 1 or min(self.sizes) < 0 or sum(self.sizes) != labels.shape[0]
        ):
            raise ValueError(
                f"sizes must be B={offsets.shape[0] - 1} numbers of targets with the sum T={labels.shape[0]}, "
                f"got {self.sizes}"
            )

    def _check_values(self) -> None:
        negative = (self.labels < 0).nonzero().flatten().tolist()
        if negative:
            row = negative[0]
            raise ValueError(f"{self.name_target(row)}: label {int(self.labels[row])} is negative")
        boxes = self.boxes
        bad = (~boxes.isfinite().all(-1) | (boxes[:, 2:] < 0).any(-1)).nonzero().flatten().tolist()
        if bad:
            row = bad[0]
            raise ValueError(
                f"{self.name_target(row)}: box {boxes[row].tolist()} is not a box; expected finite "
                "(cx, cy, width, height) with width and height not below 0"
            )
        if float(boxes.max()) > LARGEST_FRACTION:
            row = int((boxes > LARGEST_FRACTION).any(-1).nonzero()[0])
            raise ValueError(
                f"{self.name_target(row)}: box {boxes[row].tolist()} is not a fraction of the image; expected "
                "(cx, cy, width, height) in [0,1]. Divide boxes in pixels by the image's width and height"
            )
        self._warn_of_corners()

    def _warn_of_corners(self) -> None:
        """Warn where most boxes leave their image, as corners do that are taken for centers and sizes."""
        center, half = self.boxes[:, :2], self.boxes[:, 2:] / 2
        outside = ((center - half < -_MARGIN) | (center + half > 1 + _MARGIN)).any(-1)
        if 2 * int(outside.sum()) > self.num_targets:
            row = int(outside.nonzero()[0])
            warnings.warn(
                f"{int(outside.sum())} of {self.num_targets} target boxes leave their image, the first is "
                f"{self.name_target(row)}: {self.boxes[row].tolist()}; expected (cx, cy, width, height). Are these "
                "corners (x0, y0, x1, y1), or (x0, y0, width, height)?",
                stacklevel=4,
            )


LARGEST_FRACTION = 2.0  # a box that lies partly outside of its image, but none in pixels, stays below
_MARGIN = 0.05  # by which a box may leave its image before it counts as outside


def offsets_of(sizes: Sequence[int], device: torch.device) -> Tensor:
    """Return where each image's targets begin and end, int32 [B+1] on ``device``; the copy does not block."""
    offsets = torch.tensor([0, *accumulate(sizes)], dtype=torch.int32)
    return offsets.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else offsets.to(device)


def _label_message(what: str, num_classes: int, no_object: bool) -> str:
    labels = f"labels run from 0 to {num_classes - 1}"
    if no_object:
        labels += f"; the last of the {num_classes + 1} logits is no-object"
    return (
        f"{what} is out of range for {num_classes} classes ({labels}); "
        "build the model with more classes or map the labels to contiguous ones"
    )
