"""detr_fast._C called directly: it checks what it indexes memory by, and its stub names what it exports."""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import pytest
import torch

import detr_fast
from detr_fast import _C, LossWeights, MatchWeights, Targets, ops

CLASSES = 3  # besides no-object
MATCH = {
    "focal": False,
    "corners": False,
    "cost_class": 1.0,
    "cost_bbox": 5.0,
    "cost_giou": 2.0,
    "focal_alpha": 0.25,
    "focal_gamma": 2.0,
    "focal_eps": 0.0,
    "giou_eps": 0.0,
    "box_scale": 1.0,
    "iou_kind": _C.IouKind.giou,
}
LOSS = {
    "class_loss": _C.ClassLoss.softmax,
    "no_object": 0.1,
    "focal_alpha": 0.25,
    "focal_gamma": 2.0,
    "giou_eps": 0.0,
    "box_scale": 1.0,
}
FUNCTIONS = ["match_cost", "set_loss", "set_loss_backward"]


def inputs(layers=2, sizes=(1, 2), queries=4, logits=CLASSES + 1, groups=1):
    images, count = len(sizes), sum(sizes)
    return {
        "logits": np.zeros((layers, images, queries, logits), np.float32),
        "boxes": np.full((layers, images, queries, 4), 0.5, np.float32),
        "labels": np.zeros(count, np.int64),
        "target_boxes": np.full((count, 4), 0.25, np.float32),
        "offsets": np.cumsum([0, *sizes]).astype(np.int32),
        "query_index": np.full((layers, groups, count), -1),
    }


def call(function, arrays, softmax=True):
    arrays = dict(arrays)
    if function == "match_cost":
        del arrays["query_index"]
        return _C.match_cost(**arrays, options=_C.MatchOptions(**MATCH | {"focal": not softmax}))
    kind = _C.ClassLoss.softmax if softmax else _C.ClassLoss.focal
    options = _C.LossOptions(**LOSS | {"class_loss": kind})
    if function == "set_loss":
        return _C.set_loss(**arrays, options=options)
    return _C.set_loss_backward(**arrays, options=options, upstream=np.ones((3, len(arrays["logits"]))))


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("instruction_set", _C.instruction_sets())
@pytest.mark.parametrize("label", [-1, CLASSES, CLASSES + 1, 10**8, -(2**62), 2**62])
def test_a_label_out_of_range(function, instruction_set, label):
    arrays = inputs()
    arrays["labels"][2] = label
    _C.use_instruction_set(instruction_set)
    try:
        message = rf"^image 1, target 1: label {label} is out of range for 3 classes \(labels run from 0 to 2\); build"
        with pytest.raises(ValueError, match=message):
            call(function, arrays)
        if label == CLASSES:  # without no-object, the last logit is a class
            call(function, arrays, softmax=False)
    finally:
        _C.use_instruction_set(_C.instruction_sets()[0])


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize(
    ("offsets", "message"),
    [
        ([1, 1, 3], "offsets must begin with 0, got 1"),
        ([-1, 1, 3], "offsets must begin with 0, got -1"),
        ([0, 3, 2], "offsets must not decrease, but image 1 has rows 3:2"),
        ([0, -5, 3], "offsets must not decrease, but image 0 has rows 0:-5"),
        ([0, 1, 4], "offsets end at 4, but there are 3 targets"),
        ([0, 2**31 - 1, 2**31 - 1], "offsets end at 2147483647, but there are 3 targets"),
        ([0, 3], "predictions are for 2 images, targets for 1"),
        ([0, 1, 2, 3], "predictions are for 2 images, targets for 3"),
        ([], r"offsets must be \[B\+1\], got \[0\]"),
        ([[0, 1, 3]], r"offsets must be \[B\+1\], got \[1, 3\]"),
    ],
)
def test_offsets_that_do_not_divide_the_targets(function, offsets, message):
    with pytest.raises(ValueError, match=message):
        call(function, inputs() | {"offsets": np.array(offsets, np.int32)})


@pytest.mark.parametrize("function", FUNCTIONS)
def test_rows_beyond_the_last_offset_are_not_read(function):
    arrays = inputs() | {"offsets": np.array([0, 1, 2], np.int32)}
    arrays["labels"][2] = 10**8
    call(function, arrays)


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("target_boxes", (1, 4), r"3 labels need boxes of shape \[3, 4\], got \[1, 4\]"),
        ("target_boxes", (3, 2), r"3 labels need boxes of shape \[3, 4\], got \[3, 2\]"),
        ("target_boxes", (12,), r"3 labels need boxes of shape \[3, 4\], got \[12\]"),
        ("labels", (3, 1), r"labels must be \[T\], got \[3, 1\]"),
        ("logits", (2, 2, 4), r"expected logits \[L,B,Q,C\] and boxes \[L,B,Q,4\], got \[2, 2, 4\] and"),
        ("boxes", (2, 2, 3, 4), r"got \[2, 2, 4, 4\] and \[2, 2, 3, 4\]"),
        ("boxes", (1, 2, 4, 4), r"got \[2, 2, 4, 4\] and \[1, 2, 4, 4\]"),
        ("boxes", (2, 2, 4, 3), r"got \[2, 2, 4, 4\] and \[2, 2, 4, 3\]"),
    ],
)
def test_shapes_that_do_not_fit(function, name, shape, message):
    arrays = inputs()
    with pytest.raises(ValueError, match=message):
        call(function, arrays | {name: np.zeros(shape, arrays[name].dtype)})


@pytest.mark.parametrize("function", FUNCTIONS)
def test_memory_that_is_not_aligned(function):
    arrays = inputs()
    for name in ("logits", "labels"):
        array = arrays[name]
        moved = np.zeros(array.nbytes + 1, np.uint8)[1:].view(array.dtype).reshape(array.shape)
        with pytest.raises(ValueError, match=f"{name} must be aligned"):
            call(function, arrays | {name: moved})


@pytest.mark.parametrize("function", FUNCTIONS[1:])
@pytest.mark.parametrize(
    ("query", "reason"),
    [(4, "not below the number of queries, 4"), (-2, "below -1"), (2**62, "not below"), (-(2**62), "below -1")],
)
def test_a_query_index_out_of_range(function, query, reason):
    arrays = inputs(groups=2)
    arrays["query_index"][1, 0, 2] = query
    with pytest.raises(ValueError, match=f"^layer 1, group 0, image 1, target 1: query_index is {query}.* is {reason}"):
        call(function, arrays)


@pytest.mark.parametrize("function", FUNCTIONS[1:])
@pytest.mark.parametrize("shape", [(1, 1, 3), (2, 1, 2), (2, 3)])
def test_query_indices_of_another_shape(function, shape):
    with pytest.raises(ValueError, match=r"query_index must be \[L,G,T\] with L=2 and T=3, got"):
        call(function, inputs() | {"query_index": np.full(shape, -1)})


def test_upstream_gradients_of_another_shape():
    with pytest.raises(ValueError, match=r"upstream must be \[3,L\] with L=2, got \[3, 1\]"):
        _C.set_loss_backward(**inputs(), options=_C.LossOptions(**LOSS), upstream=np.ones((3, 1)))


@pytest.mark.parametrize("softmax", [True, False])
@pytest.mark.parametrize("empty", [{"layers": 0}, {"sizes": ()}, {"sizes": (0, 0)}, {"queries": 0}])
def test_nothing_to_compute(empty, softmax):
    arrays = inputs(**empty)
    layers, images, queries, _ = arrays["logits"].shape
    assert call("match_cost", arrays, softmax).shape == (layers, len(arrays["labels"]), queries)
    assert call("set_loss", arrays, softmax).shape == (3, layers)
    grad_logits, grad_boxes = call("set_loss_backward", arrays, softmax)
    assert grad_logits.shape == arrays["logits"].shape
    assert grad_boxes.shape == (layers, images, queries, 4)


def test_no_logits_at_all():
    arrays = inputs(sizes=(0,), logits=0)
    with pytest.raises(ValueError, match="the softmax needs a logit for no-object"):
        call("set_loss", arrays)
    assert not call("set_loss", arrays, softmax=False).any()
    with pytest.raises(ValueError, match="image 0, target 0: label 0 is out of range for -1 classes"):
        call("match_cost", inputs(logits=0))


@pytest.mark.parametrize("sizes", [[1, 1], [2, 2], [4, -1], [2**62, 2**62, 2**62, 2**62, 3], []])
def test_sizes_that_do_not_fit_the_cost(sizes):
    with pytest.raises(ValueError, match=r"cost must be \[L,T,Q\] with T the sum of the sizes, got \[1, 3, 4\]"):
        _C.solve_batch(np.zeros((1, 3, 4)), sizes, 1, 1, False)


@pytest.mark.parametrize("groups", [0, -1, 3])
def test_groups_that_do_not_divide_the_queries(groups):
    with pytest.raises(ValueError, match=f"4 queries cannot be divided into {groups} groups"):
        _C.solve_batch(np.zeros((1, 3, 4)), [3], groups, 1, False)


def test_a_cost_of_another_shape():
    with pytest.raises(ValueError, match=r"cost must be \[L,T,Q\], got \[3, 4\]"):
        _C.solve_batch(np.zeros((3, 4)), [3], 1, 1, False)


ATTENTION = ["multi_scale_deformable_attention", "fused_deformable_attention"]


def attention_arguments(function):
    """Arguments of the function and of its backward function: levels of 2x3 and 1x1 cells, 2 and 1 points."""
    sizes = {"shapes": [2, 3, 1, 1], "points_per_level": [2, 1], "discrete": False, "num_threads": 1}
    value, grad = np.zeros((1, 7, 2, 8), np.float32), np.zeros((1, 4, 16), np.float32)
    points, numbers = np.zeros((1, 4, 2, 3, 2), np.float32), np.zeros((1, 4, 2, 3), np.float32)
    if function.startswith("multi"):
        arrays = {"value": value, "locations": points, "weights": numbers}
    else:
        boxes = np.zeros((1, 4, 1, 4), np.float32)
        arrays = {"value": value, "points": boxes, "offsets": points, "logits": numbers}
        sizes["offset_scale"] = 0.5
    gradients = {f"grad_{name}": array.copy() for name, array in arrays.items()}
    return {**arrays, **sizes, "output": grad}, {**arrays, **sizes, "grad_output": grad, **gradients}


@pytest.mark.parametrize("function", ATTENTION)
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shapes": [2, 3, 1, 2]}, "value has 7 rows, but the levels have more cells"),
        ({"shapes": [2, 3, 0, 1]}, "value has 7 rows, but the levels have 6 cells"),
        ({"shapes": [2**62, 2**62, 1, 1]}, "more than 2"),
        ({"shapes": [2**31 - 1, 2**31 - 1, 1, 1]}, "the levels have more cells"),
        ({"shapes": [-2, -3, 1, 1]}, "a negative size"),
        ({"shapes": [7, 1]}, "a height and a width for each of 2 levels, got 2 numbers"),
        ({"points_per_level": [2, 2]}, "the levels have more than 3 points"),
        ({"points_per_level": [2, 0]}, "a query has 3 points, but the levels have 2"),
        ({"points_per_level": [4, -1]}, "the levels have more than 3 points"),
        ({"points_per_level": [-1, 4]}, "a negative size"),
    ],
)
def test_levels_that_do_not_fit(function, changes, message):
    forward, backward = attention_arguments(function)
    with pytest.raises(ValueError, match=message):
        getattr(_C, function)(**forward | changes)
    with pytest.raises(ValueError, match=message):
        getattr(_C, f"{function}_backward")(**backward | changes)


@pytest.mark.parametrize("function", ATTENTION)
def test_arrays_of_attention_that_do_not_fit(function):
    forward, backward = attention_arguments(function)
    getattr(_C, function)(**forward)
    getattr(_C, f"{function}_backward")(**backward)
    for arguments, name in ((forward, function), (backward, f"{function}_backward")):
        for key, array in arguments.items():
            if not isinstance(array, np.ndarray):
                continue
            with pytest.raises(ValueError, match=r"got \[|have more cells"):
                getattr(_C, name)(**arguments | {key: array[:, :-1].copy()})
            with pytest.raises(ValueError, match=r"got \[|have more cells"):
                getattr(_C, name)(**arguments | {key: array[0]})
            with pytest.raises(TypeError):  # converted to float64, and not contiguous
                getattr(_C, name)(**arguments | {key: array.astype(np.float64)})
            with pytest.raises(TypeError):
                getattr(_C, name)(**arguments | {key: array.repeat(2, -1)[..., ::2]})
            moved = np.zeros(array.nbytes + 1, np.uint8)[1:].view(array.dtype).reshape(array.shape)
            with pytest.raises(ValueError, match="must be aligned"):
                getattr(_C, name)(**arguments | {key: moved})


@pytest.mark.parametrize("shape", [(1, 4, 3, 4), (1, 4, 1, 3), (1, 4, 0, 2)])
def test_reference_points_that_do_not_fit(shape):
    forward, _ = attention_arguments("fused_deformable_attention")
    with pytest.raises(ValueError, match="points must"):
        _C.fused_deformable_attention(**forward | {"points": np.zeros(shape, np.float32)})


@pytest.mark.parametrize("change", [-1, 5, 10**8])
def test_labels_changed_in_place_are_refused_as_by_the_reference(change):
    """The largest label that the targets remember is that of the labels they were built from."""
    logits, boxes = torch.zeros(1, 1, 4, CLASSES + 1), torch.full((1, 1, 4, 4), 0.5)
    targets = Targets.from_list([{"labels": torch.tensor([0]), "boxes": torch.full((1, 4), 0.5)}])
    targets.labels.add_(change)
    index = torch.tensor([[2]])
    messages = []
    for backend in ("reference", "cpp"):
        for weights in (MatchWeights(), MatchWeights.deformable()):
            with pytest.raises(ValueError, match=f"image 0, target 0: label {change} is out of range") as error:
                ops.match_cost(logits, boxes, targets, weights=weights, backend=backend)
            messages.append((backend, str(error.value)))
        for weights in (LossWeights(), LossWeights.deformable()):
            with pytest.raises(ValueError, match=f"image 0, target 0: label {change} is out of range") as error:
                ops.set_loss(logits, boxes, targets, index, weights=weights, num_boxes=1.0, backend=backend)
            messages.append((backend, str(error.value)))
    assert [x for backend, x in messages if backend == "cpp"] == [x for backend, x in messages if backend != "cpp"]


def test_the_stub_names_what_the_extension_exports():
    stub = ast.parse((Path(detr_fast.__file__).parent / "_C.pyi").read_text())
    declared = {node.name for node in stub.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    assert declared == {name for name in dir(_C) if not name.startswith("_")}


def image_arguments(channels_last=False):
    """Two images, 2x3 and 1x2 pixels, in a batch of 2x3."""
    shape = (2, 2, 3, 3) if channels_last else (2, 3, 2, 3)
    return {
        "pixels": np.zeros(24, np.uint8),
        "layout": np.array([[0, 2, 3, 0], [18, 1, 2, 1]], np.int64),
        "table": np.zeros((3, 256), np.int32),
        "channels_last": channels_last,
        "num_threads": 1,
        "batch": np.ones(shape, np.int32),
        "mask": np.ones((2, 2, 3), np.bool_),
    }


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([-1, 1, 2, 0], "image 1 of 1x2 at byte -1 leaves the buffer of 24 bytes"),
        ([19, 1, 2, 0], "image 1 of 1x2 at byte 19 leaves the buffer of 24 bytes"),
        ([2**62, 1, 2, 0], "leaves the buffer of 24 bytes"),
        ([-(2**63), 2, 3, 0], "leaves the buffer of 24 bytes"),
        ([18, 2, 2, 0], "image 1 of 2x2 at byte 18 leaves the buffer of 24 bytes"),
        ([0, 3, 1, 0], "image 1 of 3x1 does not fit into a size of 2x3"),
        ([0, 1, 4, 0], "image 1 of 1x4 does not fit into a size of 2x3"),
        ([0, 2**62, 2**62, 0], "does not fit into a size of 2x3"),
        ([0, -1, 2, 0], "image 1 of -1x2 does not fit"),
        ([0, 1, -2, 0], "image 1 of 1x-2 does not fit"),
        ([0, 1, 2, 2], "image 1: whether it is mirrored must be 0 or 1, got 2"),
    ],
)
def test_images_that_leave_the_buffer_or_the_batch(channels_last, row, message):
    arguments = image_arguments(channels_last)
    _C.normalize_and_pad(**arguments)
    arguments["layout"][1] = row
    arguments["batch"].fill(1)
    with pytest.raises(ValueError, match=message):
        _C.normalize_and_pad(**arguments)
    assert arguments["batch"].all()  # nothing is written before every image is checked


def test_an_image_without_pixels_is_padding():
    arguments = image_arguments()
    arguments["layout"][1] = [24, 0, 0, 1]
    _C.normalize_and_pad(**arguments)
    assert arguments["mask"][1].all()
    assert not arguments["batch"].any()


@pytest.mark.parametrize(
    ("name", "array", "error"),
    [
        ("pixels", np.zeros((2, 12), np.uint8), ValueError),
        ("pixels", np.zeros(24, np.int8), TypeError),
        ("layout", np.zeros((1, 4), np.int64), ValueError),
        ("layout", np.zeros((2, 3), np.int64), ValueError),
        ("layout", np.zeros((2, 4), np.int32), TypeError),
        ("table", np.zeros((3, 255), np.int32), ValueError),
        ("table", np.zeros((3, 256), np.int16), TypeError),
        ("batch", np.zeros((2, 2, 3, 3), np.int32), ValueError),
        ("batch", np.zeros((2, 3, 2, 6), np.int32)[..., ::2], TypeError),
        ("batch", np.zeros(2 * 3 * 2 * 3 * 4 + 1, np.uint8)[1:].view(np.int32).reshape(2, 3, 2, 3), ValueError),
        ("mask", np.zeros((2, 2), np.bool_), ValueError),
        ("mask", np.zeros((2, 2, 4), np.bool_), ValueError),
        ("mask", np.zeros((2, 2, 3), np.uint8), TypeError),
    ],
)
def test_arrays_of_images_that_do_not_fit(name, array, error):
    with pytest.raises(error):
        _C.normalize_and_pad(**image_arguments() | {name: array})
