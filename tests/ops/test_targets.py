from __future__ import annotations

import pytest
import torch

from detr_fast import Targets


def _image(labels, boxes):
    return {"labels": torch.tensor(labels, dtype=torch.int64), "boxes": torch.tensor(boxes).reshape(-1, 4)}


BOX = [0.5, 0.5, 0.2, 0.2]


def test_packing():
    targets = Targets.from_list([_image([3, 1], [BOX, BOX]), _image([], []), _image([2], [BOX])])
    assert targets.sizes == [2, 0, 1]
    assert targets.offsets.tolist() == [0, 2, 2, 3]
    assert targets.offsets.dtype == torch.int32
    assert targets.labels.tolist() == [3, 1, 2]
    assert targets.image_index().tolist() == [0, 0, 2]
    assert (targets.num_targets, targets.num_images) == (3, 3)
    assert targets.boxes.dtype == torch.float32
    assert targets.to("meta").labels.device.type == "meta"
    assert targets.to("meta").sizes == targets.sizes


def test_no_targets_at_all():
    targets = Targets.from_list([_image([], []), _image([], [])])
    assert targets.labels.shape == (0,)
    assert targets.boxes.shape == (0, 4)
    assert Targets.from_list([]).num_images == 0


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([_image([0], [BOX]), _image([0, -1], [BOX, BOX])], "image 1, target 1: label -1 is negative"),
        ([_image([0], [[0.5, float("nan"), 0.1, 0.1]])], "image 0, target 0: box .* is not a box"),
        ([_image([0], [[0.5, 0.5, -0.1, 0.1]])], "width and height not below 0"),
        ([_image([0, 1], [BOX])], "image 0: 2 labels need boxes of shape"),
        ([{"labels": torch.zeros(1), "boxes": torch.zeros(1, 4)}], "labels must be integers"),
    ],
)
def test_bad_targets(images, message):
    with pytest.raises(ValueError, match=message):
        Targets.from_list(images)


def test_label_range_is_known_without_the_device():
    targets = Targets.from_list([_image([7], [BOX])])
    with pytest.raises(ValueError, match="label 7 is out of range for 7 classes"):
        targets.to("meta").check_labels(7)
    targets.to("meta").check_labels(8)
