from __future__ import annotations

import random
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from detr_fast.data import (
    Augmentation,
    Category,
    CocoDetection,
    DataError,
    FaultKind,
    Resize,
    Sample,
    collate,
    make_shapes,
)

SMALL = Augmentation(scales=(48, 64), middle_scales=(60,), crop_min=30, crop_max=50)


def _shade(sample: Sample | None) -> int:
    """Return the id of the image of a sample, which is its gray value."""
    assert sample is not None
    return int(sample.image[0, 0, 0])


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shapes(tmp_path_factory.mktemp("data") / "shapes", num_train=24, num_val=1)


def _open_shapes(root: Path, **options: Any) -> CocoDetection:
    return CocoDetection(root / "train", root / "annotations/instances_train.json", SMALL, **options)


def test_a_sample(folder: Any) -> None:
    dataset = CocoDetection(folder.images, folder.file, Resize(60))
    assert (len(dataset), dataset.num_boxes, dataset.report) == (3, 3, {})
    sample = dataset[0]
    assert isinstance(sample, Sample)
    assert (sample.image.shape, sample.image_id, sample.original_size) == ((60, 80, 3), 10, (30, 40))
    assert sample.labels.tolist() == [1, 0]
    torch.testing.assert_close(sample.boxes, torch.tensor([[9 / 40, 12 / 30, 10 / 40, 12 / 30], [0.5, 0.5, 1, 1]]))
    empty = dataset[2]
    assert isinstance(empty, Sample)
    assert (empty.image_id, empty.labels.shape, empty.boxes.shape) == (30, (0,), (0, 4))
    assert dataset.describe() == f"{folder.file}: 3 images, 3 boxes, 3 classes"


def test_index_out_of_range(folder: Any) -> None:
    dataset = CocoDetection(folder.images, folder.file, Resize(30))
    assert [sample.image_id for sample in dataset] == [10, 20, 30]
    with pytest.raises(IndexError):
        dataset[-1]


def test_imposed_categories(folder: Any) -> None:
    categories = [Category(90, "cat"), Category(3, "dog")]
    dataset = CocoDetection(folder.images, folder.file, Resize(30), categories=categories)
    assert dataset.categories == tuple(categories)
    assert [sample.labels.tolist() for sample in dataset] == [[1], [0], []]
    assert dataset.report == {FaultKind.UNKNOWN_CATEGORY: 1}


def test_boxes_are_clipped_and_counted(folder: Any) -> None:
    folder.content["annotations"] = [
        folder.annotation(1, 10, 3, [-10, 15, 20, 30]),
        folder.annotation(2, 10, 3, [50, 0, 5, 5]),
        folder.annotation(3, 10, 3, [0, 0, float("nan"), 5]),
    ]
    folder.write()
    dataset = CocoDetection(folder.images, folder.file, Resize(30))
    sample = dataset[0]
    assert sample is not None
    torch.testing.assert_close(sample.boxes, torch.tensor([[5 / 40, 22.5 / 30, 10 / 40, 15 / 30]]))
    assert dataset.report == {
        FaultKind.NON_FINITE_BOX: 1,
        FaultKind.BOX_OUTSIDE_IMAGE: 1,
        FaultKind.BOX_BEYOND_IMAGE: 1,
    }
    assert "1 x non-finite box (left out)" in dataset.describe()
    assert "1 x box beyond the image's edge (clipped)" in dataset.describe()


def test_no_boxes_is_told_apart(folder: Any) -> None:
    folder.content["annotations"] = []
    folder.write()
    dataset = CocoDetection(folder.images, folder.file, Resize(30))
    assert dataset.num_boxes == 0
    assert len(dataset) == 3


def test_no_usable_image(folder: Any) -> None:
    for path in folder.images.iterdir():
        path.unlink()
    with pytest.raises(
        DataError, match=r"none of its images can be used with the image directory .*: 3 x missing image"
    ):
        CocoDetection(folder.images, folder.file, Resize(30))


def test_the_size_of_the_file_is_used(folder: Any) -> None:
    """Boxes are in pixels of the file, whatever size the annotation file states."""
    folder.save_image("10.png", size=(20, 10))
    dataset = CocoDetection(folder.images, folder.file, Resize(10))
    with pytest.warns(RuntimeWarning, match=r"10\.png, image 10: wrong image size: the image is 20 x 10"):
        sample = dataset[0]
    assert sample is not None
    assert sample.original_size == (10, 20)
    torch.testing.assert_close(sample.boxes, torch.tensor([[9 / 20, 8 / 10, 10 / 20, 4 / 10], [0.5, 0.5, 1, 1]]))
    assert dataset.report == {FaultKind.WRONG_IMAGE_SIZE: 1}


@pytest.mark.parametrize("num_workers", [0, 2])
def test_substitutes(folder: Any, num_workers: int) -> None:
    """The next readable image is used instead; the main process sees each fault once."""
    folder.truncate("20.png")
    folder.truncate("30.png")
    dataset = CocoDetection(folder.images, folder.file, Resize(30))
    loader = DataLoader(dataset, batch_size=1, num_workers=num_workers, collate_fn=collate)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            assert [batch.image_ids for batch in loader] == [[10], [10], [10]]
    assert dataset.report == {FaultKind.UNREADABLE_IMAGE: 2}
    if not num_workers:  # workers warn in their own process
        for warning, name in zip(caught, (20, 30), strict=True):
            assert f"{name}.png, image {name}: unreadable" in str(warning.message)


def test_a_substitute_brings_its_own_objects(folder: Any) -> None:
    folder.truncate("10.png")
    dataset = CocoDetection(folder.images, folder.file, Resize(30))
    with pytest.warns(RuntimeWarning, match=r"10\.png, image 10: unreadable image: .*truncated"):
        sample = dataset[0]
    assert _shade(sample) == 20
    assert sample is not None
    assert (sample.image_id, sample.labels.tolist()) == (20, [2])


def test_evaluation_skips(folder: Any) -> None:
    folder.truncate("20.png")
    dataset = CocoDetection(folder.images, folder.file, Resize(30), on_unreadable="skip")
    with pytest.warns(RuntimeWarning, match="unreadable"):
        batches = list(DataLoader(dataset, batch_size=1, collate_fn=collate))
    assert [batch.image_ids for batch in batches] == [[10], [], [30]]
    assert dataset.report == {FaultKind.UNREADABLE_IMAGE: 1}


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("on_unreadable", ["substitute", "skip"])
@pytest.mark.parametrize("num_workers", [0, 1])
def test_every_image_unreadable(folder: Any, on_unreadable: Any, num_workers: int) -> None:
    for name in ("10.png", "20.png", "30.png"):
        folder.truncate(name)
    dataset = CocoDetection(folder.images, folder.file, Resize(30), on_unreadable=on_unreadable)
    with pytest.raises(DataError, match="none of its 3 images can be read"):
        list(DataLoader(dataset, collate_fn=collate, num_workers=num_workers))


def test_unknown_policy(folder: Any) -> None:
    with pytest.raises(ValueError, match="on_unreadable"):
        CocoDetection(folder.images, folder.file, Resize(30), on_unreadable="ignore")  # type: ignore[arg-type]


def _epochs(dataset: CocoDetection, num_workers: int, context: str | None = None) -> list[Any]:
    loader = DataLoader(
        dataset,
        batch_size=5,
        num_workers=num_workers,
        collate_fn=collate,
        persistent_workers=num_workers > 0,
        multiprocessing_context=context,
    )
    batches = []
    for epoch in (0, 1):
        dataset.set_epoch(epoch)
        batches.append(list(loader))
    return batches


def _equal(first: Any, second: Any) -> bool:
    return (
        torch.equal(first.images.pixels, second.images.pixels)
        and torch.equal(first.images.layout, second.images.layout)
        and torch.equal(first.targets.boxes, second.targets.boxes)
        and torch.equal(first.targets.labels, second.targets.labels)
        and first.image_ids == second.image_ids
    )


@pytest.mark.parametrize(("num_workers", "context"), [(2, None), (1, "spawn")])
def test_samples_do_not_depend_on_workers(shapes: Path, num_workers: int, context: str | None) -> None:
    random.seed(1)
    alone = _epochs(_open_shapes(shapes, seed=3), 0)
    random.seed(2)
    shared = _epochs(_open_shapes(shapes, seed=3), num_workers, context)
    for epoch in (0, 1):
        assert all(_equal(a, b) for a, b in zip(alone[epoch], shared[epoch], strict=True))
    assert not any(_equal(a, b) for a, b in zip(alone[0], alone[1], strict=True))


def test_samples_depend_on_seed_and_index(shapes: Path) -> None:
    one, other = _open_shapes(shapes, seed=0)[0], _open_shapes(shapes, seed=1)[0]
    assert one is not None
    assert other is not None
    assert one.image.shape != other.image.shape or not torch.equal(one.image, other.image)
    draws = []
    dataset = CocoDetection(
        shapes / "train",
        shapes / "annotations/instances_train.json",
        lambda image, boxes, labels, rng: draws.append(rng.random()) or (image, boxes, labels),
    )
    for index in (0, 1, 0):
        dataset[index]
    assert draws[0] == draws[2] != draws[1]


def test_grayscale_images_load(folder: Any) -> None:
    Image.fromarray(np.full((30, 40), 200, dtype=np.uint8)).save(folder.images / "10.png")
    assert _shade(CocoDetection(folder.images, folder.file, Resize(30))[0]) == 200


def test_reduced_images_have_the_same_boxes(folder: Any) -> None:
    """The sizes of the results do not depend on what was decoded, and boxes are fractions of them."""
    pytest.importorskip("simplejpeg")
    folder.save_image("10.jpg", size=(400, 300))
    folder.content["images"][1] = folder.image(10, file_name="10.jpg", width=400, height=300)
    folder.content["annotations"][0]["bbox"] = [40, 60, 100, 120]
    folder.write()
    samples = []
    for reduced_decode in (False, True):
        augment = Augmentation(scales=(60,), crop=0.0, reduced_decode=reduced_decode)
        dataset = CocoDetection(folder.images, folder.file, augment)
        samples.append(dataset[0])
        assert dataset.report == {}
        complete = dataset.load_image(0)
        assert complete is not None
        assert complete.image.shape == (300, 400, 3)
    first, second = samples
    assert first is not None
    assert second is not None
    assert first.image.shape == second.image.shape == (60, 80, 3)
    assert first.original_size == second.original_size == (300, 400)
    torch.testing.assert_close(first.boxes, second.boxes)
