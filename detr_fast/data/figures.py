"""Drawings of the faults of a data set."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image

from detr_fast.data.annotations import Annotations, Orientation
from detr_fast.data.faults import Fault, FaultKind
from detr_fast.drawing import draw_boxes
from detr_fast.images import ImageError

MAX_DRAWN = 20  # images of each kind of fault


def draw_faults(
    directory: str | Path, annotations: Annotations, faults: Sequence[Fault], orientation: Orientation
) -> None:
    """Draw the first :data:`MAX_DRAWN` images of each kind of fault, with the boxes that are used and the faulty ones.

    The caption of a faulty box is the kind of its fault. A box outside of the image is drawn at its edge, and a fault
    that has no box as the frame of the image. Images that cannot be read are left out.

    Args:
        directory: The directory for the drawings, which is created. The name of a drawing is the stem of its image and
            the id.
        annotations: The annotations of the data set.
        faults: The faults of its annotations and images.
        orientation: As for :func:`~detr_fast.data.check_dataset`.
    """
    Path(directory).mkdir(parents=True, exist_ok=True)
    by_image: dict[int, list[Fault]] = {}
    for fault in faults:
        if fault.image_id is not None:
            by_image.setdefault(fault.image_id, []).append(fault)
    drawn: Counter[FaultKind] = Counter()
    for index, entry in enumerate(annotations.images):
        kinds = {fault.kind for fault in by_image.get(entry.id, ())}
        if not any(drawn[kind] < MAX_DRAWN for kind in kinds):
            continue
        try:
            decoded, _ = entry.read(orientation)
        except ImageError:
            continue
        drawn.update(kinds)
        image = Image.fromarray(decoded.pixels.numpy())
        name = f"{Path(entry.path).stem}-{entry.id}.png"
        _draw(image, annotations, index, by_image[entry.id]).save(Path(directory) / name)


def _draw(image: Image.Image, annotations: Annotations, index: int, faults: Sequence[Fault]) -> Image.Image:
    names = [category.name for category in annotations.categories]
    kinds = list(dict.fromkeys(fault.kind for fault in faults))
    frame = (0.0, 0.0, float(image.width), float(image.height))
    marks = dict.fromkeys((fault.box or frame, len(names) + kinds.index(fault.kind)) for fault in faults)
    marked = torch.tensor([box for box, _ in marks], dtype=torch.float32)
    rows = slice(*annotations.offsets[index : index + 2])
    boxes, labels = annotations.boxes[rows], annotations.labels[rows]
    is_marked = (boxes[:, None] == marked).all(-1).any(1)  # as of a box that is clipped
    boxes = torch.cat((boxes[~is_marked], marked))
    labels = torch.cat((labels[~is_marked], torch.tensor([label for _, label in marks])))
    return draw_boxes(image, _visible(boxes, image), labels, names + [str(kind) for kind in kinds])


def _visible(boxes: torch.Tensor, image: Image.Image) -> torch.Tensor:
    """Return the boxes within the image, each with its corners in order."""
    corners = boxes.view(-1, 2, 2)
    low, high = corners.min(1).values, corners.max(1).values
    size = torch.tensor([image.width - 1, image.height - 1])
    return torch.cat((low.clamp(min=0).minimum(size), high.clamp(min=0).minimum(size)), 1)
