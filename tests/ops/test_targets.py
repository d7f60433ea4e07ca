from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from detr_fast import Targets, ops, use_backend
from detr_fast.criterion import SetCriterion


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
        ([_image([], []), _image([1], [[200.0, 150.0, 40.0, 30.0]])], "image 1, target 0: box .* is not a fraction"),
        (
            [{"class_labels": torch.zeros(1), "boxes": torch.zeros(1, 4)}],
            "image 0: .* has no labels.*rename class_labels",
        ),
        ([{"labels": [0], "boxes": torch.zeros(1, 4, requires_grad=True)}], "image 0: the boxes require grad"),
    ],
)
def test_bad_targets(images, message):
    with pytest.raises(ValueError, match=message):
        Targets.from_list(images)


def test_lists_and_arrays_are_packed():
    arrays = [{"labels": np.array([3, 1], np.int32), "boxes": np.full((2, 4), 0.25)}, {"labels": [], "boxes": []}]
    targets = Targets.from_list([*arrays, {"labels": torch.tensor([]), "boxes": torch.tensor([])}])
    assert targets.labels.tolist() == [3, 1]
    assert targets.boxes.tolist() == [[0.25] * 4] * 2
    assert targets.sizes == [2, 0, 0]


def test_corners_in_place_of_centers_are_warned_of():
    corners = [[0.1, 0.1, 0.9, 0.8], [0.3, 0.2, 0.9, 0.9]]
    with pytest.warns(UserWarning, match="2 of 2 target boxes leave their image, the first is image 0, target 0"):
        Targets.from_list([_image([0, 1], corners)])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"boxes": torch.zeros(1, 4)}, r"boxes must be floating point \[T,4\] with T=2"),
        ({"boxes": torch.zeros(2, 2)}, r"boxes must be floating point \[T,4\] with T=2"),
        ({"labels": torch.zeros(2)}, r"labels must be int64 \[T\]"),
        ({"offsets": torch.tensor([0, 2])}, r"offsets must be int32 \[B\+1\]"),
        ({"sizes": [1, 2]}, "sizes must be B=1 numbers of targets with the sum T=2"),
    ],
)
def test_fields_that_do_not_fit_are_refused(change, message):
    targets = Targets.from_list([_image([0, 1], [BOX, BOX])])
    with pytest.raises(ValueError, match=message):
        replace(targets, **change)


@pytest.mark.parametrize("backend", ["cpp", "reference"])
@pytest.mark.parametrize("label", [-1, 5, 10**8])
def test_labels_changed_after_packing_are_found(backend, label):
    targets = Targets.from_list([_image([0], [BOX]), _image([1, 2], [BOX, BOX])])
    changed = replace(targets, labels=torch.tensor([0, 1, label]))
    targets.labels[2] = label
    logits, boxes = torch.zeros(1, 2, 4, 6), torch.rand(1, 2, 4, 4)
    for bad in (targets, changed):
        with pytest.raises(ValueError, match=f"image 1, target 1: label {label} is out of range for 5 classes"):
            ops.match_cost(logits, boxes, bad, backend=backend)
        with pytest.raises(ValueError, match=f"image 1, target 1: label {label} is out of range for 5 classes"):
            ops.set_loss(logits, boxes, bad, torch.zeros(1, 3, dtype=torch.int64), backend=backend)


def test_a_list_in_place_of_targets_is_named():
    with pytest.raises(TypeError, match=r"got list; build them with Targets.from_list"):
        SetCriterion()(torch.zeros(1, 1, 4, 6), torch.rand(1, 1, 4, 4), [_image([0], [BOX])])


def test_a_missing_no_object_logit_is_mentioned():
    targets = Targets.from_list([_image([2], [BOX])])
    with pytest.raises(ValueError, match=r"out of range for 2 classes .*the last of the 3 logits is no-object"):
        SetCriterion()(torch.zeros(1, 1, 4, 3), torch.rand(1, 1, 4, 4), targets)


def test_label_range_is_known_without_the_device():
    targets = Targets.from_list([_image([7], [BOX])])
    with pytest.raises(ValueError, match="label 7 is out of range for 7 classes"):
        targets.to("meta").check_labels(7)
    targets.to("meta").check_labels(8)


def test_padded_targets_hold_any_batch_of_as_many_images(random_targets):
    first, second = random_targets([3, 0, 1], 5), random_targets([0, 4, 4], 5, seed=1)
    padded = first.pad(4)
    assert (padded.num_targets, padded.num_images, padded.padded) == (12, 3, True)
    assert padded.image_index().tolist() == [0, 0, 0, 2] + [2] * 8
    buffers = padded.labels, padded.boxes, padded.offsets
    padded.copy_(second)
    assert all(a is b for a, b in zip(buffers, (padded.labels, padded.boxes, padded.offsets), strict=True))
    assert torch.equal(padded.labels[:8], second.labels)
    assert torch.equal(padded.boxes[:8], second.boxes)
    assert torch.equal(padded.offsets, second.offsets)
    assert padded.max_label == second.max_label


def test_what_padded_targets_cannot_hold(random_targets):
    targets = random_targets([3, 0], 5)
    with pytest.raises(ValueError, match="2 images of at most 2 targets cannot hold 2 images of up to 3; pad with"):
        targets.pad(2)
    with pytest.raises(ValueError, match="cannot hold 1 images of up to 1"):
        targets.pad(3).copy_(random_targets([1], 5))
    with pytest.raises(ValueError, match=r"buffers that pad\(\) made"):
        targets.copy_(targets)


@pytest.mark.parametrize("backend", ["cpp", "reference"])
@pytest.mark.parametrize("preset", ["detr", "mmdet2", "deformable"])
def test_padded_targets_train_as_the_others(random_targets, backend, preset):
    criterion = SetCriterion.preset(preset)
    targets = random_targets([3, 0, 9], 4)
    torch.manual_seed(0)
    logits, boxes = torch.randn(2, 3, 6, 5, requires_grad=True), torch.rand(2, 3, 6, 4, requires_grad=True)
    results = []
    with use_backend(
        match_cost=backend, set_loss=backend, linear_sum_assignment="cpp" if backend == "cpp" else "scipy"
    ):
        for batch in (targets, targets.pad(10)):
            index = criterion.matcher(logits, boxes, batch)
            total = criterion(logits, boxes, batch).total
            results.append((index[:, :12], total, *torch.autograd.grad(total, (logits, boxes))))
            assert (index[:, 12:] == -1).all()
    for actual, desired in zip(*results, strict=True):
        torch.testing.assert_close(actual, desired)
