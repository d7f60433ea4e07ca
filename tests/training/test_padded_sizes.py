"""Batches in a few padded sizes: what they contain, and that nothing else changes."""

from __future__ import annotations

import json
import random
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from torch import nn

from detr_fast import SetCriterion
from detr_fast.data import Augmentation, CocoDetection, PaddedBatchSampler, Resize, collate
from detr_fast.models.resnet import FrozenBatchNorm2d
from detr_fast.training import ConfigError, DataConfig, Stopped, Trainer
from detr_fast.training.evaluation import detect
from detr_fast.training.loading import build_eval_data, build_train_data
from detr_fast.training.monitor import read_metrics
from tests.training.test_processes import _run as run_command
from tests.training.test_processes import _write_config as write_config

SIZES = [(64, 96), (96, 64), (64, 64), (96, 96)]
SHAPES = [(80, 60), (60, 80), (90, 60), (70, 70), (120, 50), (50, 120), (64, 96), (33, 47)]  # (width, height)
AUGMENTATION = Augmentation(
    scales=(40, 48, 56, 64), max_size=96, middle_scales=(40, 60), crop_min=30, crop_max=60, middle_max_size=200
)


def _write_data(root: Path, count: int) -> Path:
    rng, pixels = random.Random(0), np.random.default_rng(0)
    (root / "images").mkdir(parents=True)
    images, annotations = [], []
    for number in range(count):
        width, height = SHAPES[number % len(SHAPES)]
        noise = pixels.integers(256, size=(height, width, 3), dtype=np.uint8)
        Image.fromarray(noise).save(root / "images" / f"{number}.png")
        images.append({"id": 10 + number, "file_name": f"{number}.png", "width": width, "height": height})
        for _ in range(rng.randint(1, 3)):
            box = [rng.uniform(0, width / 2), rng.uniform(0, height / 2), width / 3, height / 3]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": 10 + number,
                    "category_id": rng.randint(1, 3),
                    "bbox": box,
                    "area": box[2] * box[3],
                    "iscrowd": 0,
                }
            )
    categories = [{"id": k, "name": f"name {k}"} for k in (1, 2, 3)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (root / "instances.json").write_text(json.dumps(content))
    return root


@pytest.fixture(scope="session")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of 48 images of eight sizes."""
    return _write_data(tmp_path_factory.mktemp("mixed") / "data", 48)


@pytest.fixture
def padded_config(config, mixed):
    """Builds a configuration whose images have different sizes."""

    def build(**overrides):
        data = {"train_images": mixed / "images", "train_annotations": mixed / "instances.json"}
        data |= {"val_images": mixed / "images", "val_annotations": mixed / "instances.json"}
        options = {name: str(path) for name, path in data.items()}
        options |= {"augmentation": AUGMENTATION, "eval_size": 64, "eval_max_size": 96, "padded_sizes": SIZES}
        return config(**(options | overrides))

    return build


def _dataset(root: Path, transform=AUGMENTATION, **options) -> CocoDetection:
    return CocoDetection(root / "images", root / "instances.json", transform, **options)


def _batches(sampler: PaddedBatchSampler, dataset: CocoDetection, epoch: int) -> list[list[tuple]]:
    dataset.set_epoch(epoch)
    sampler.set_epoch(epoch)
    return [list(batch) for batch in sampler]


@pytest.mark.parametrize("batch_size", [1, 4, 8, 16, 48])
def test_every_image_is_drawn_once_in_an_epoch(mixed, batch_size):
    dataset = _dataset(mixed, seed=3)
    sampler = PaddedBatchSampler(dataset, SIZES, batch_size, seed=3)
    for epoch in range(3):
        batches = _batches(sampler, dataset, epoch)
        assert len(batches) == len(sampler) == 48 // batch_size
        assert sorted(index for batch in batches for index, _ in batch) == list(range(48))
        for batch in batches:
            assert len(batch) == batch_size
            assert len({padded for _, padded in batch}) == 1


def test_the_images_of_an_incomplete_batch_are_left_out(mixed):
    dataset = _dataset(mixed)
    sampler = PaddedBatchSampler(dataset, SIZES, 5, seed=0, rank=0)
    left_out = []
    for epoch in range(3):
        indices = [index for batch in _batches(sampler, dataset, epoch) for index, _ in batch]
        assert len(indices) == len(set(indices)) == 45
        left_out.append(set(range(48)) - set(indices))
    assert left_out[0] != left_out[1] != left_out[2]
    ranks = [PaddedBatchSampler(dataset, SIZES, 40, seed=0, rank=rank, num_ranks=2) for rank in range(2)]
    only = [_batches(sampler, dataset, 0) for sampler in ranks]  # an incomplete batch that is the only one
    assert [len(batches) for batches in only] == [1, 1]
    assert sorted(index for batches in only for batch in batches for index, _ in batch) == list(range(48))


def test_batches_depend_on_seed_and_epoch_only(mixed):
    def draw(seed: int, epoch: int) -> list[list[tuple]]:
        dataset = _dataset(mixed, seed=seed)
        return _batches(PaddedBatchSampler(dataset, SIZES, 4, seed=seed), dataset, epoch)

    assert draw(1, 5) == draw(1, 5)
    assert draw(1, 5) != draw(1, 6)
    assert draw(1, 5) != draw(2, 5)


@pytest.mark.parametrize("num_ranks", [2, 3])
def test_the_ranks_of_a_step_have_equal_shapes(mixed, num_ranks):
    dataset = _dataset(mixed)
    ranks = [
        _batches(PaddedBatchSampler(dataset, SIZES, 4, seed=0, rank=rank, num_ranks=num_ranks), dataset, 2)
        for rank in range(num_ranks)
    ]
    together = _batches(PaddedBatchSampler(dataset, SIZES, 4 * num_ranks, seed=0), dataset, 2)
    assert len({padded for step in together for _, padded in step}) > 1
    for step, complete in zip(zip(*ranks, strict=True), together, strict=True):
        assert len({padded for batch in step for _, padded in batch}) == 1
        assert {len(batch) for batch in step} == {4}
        assert sorted(index for batch in step for index in batch) == sorted(complete)


@pytest.mark.parametrize("single_resize", [False, True])
def test_sizes_are_drawn_as_images_are_transformed(mixed, single_resize):
    augmentation = Augmentation(**{**vars(AUGMENTATION), "single_resize": single_resize})
    for transform in (augmentation, Resize(64, 96)):
        dataset = _dataset(mixed, transform, seed=1)
        for epoch in range(3):
            dataset.set_epoch(epoch)
            drawn = dataset.draw_sizes()
            assert drawn == [tuple(dataset[index].image.shape[:2]) for index in range(len(dataset))]


def test_images_are_those_of_batches_without_padded_sizes(mixed):
    """Only images of the last batches are scaled down, and their boxes, which are fractions, are not changed."""
    dataset = _dataset(mixed)
    for epoch in range(4):
        scaled = 0
        for batch in _batches(PaddedBatchSampler(dataset, SIZES[:2], 4, seed=0), dataset, epoch):
            for entry in batch:
                sample, plain = dataset[entry], dataset[entry.image]
                height, width = sample.image.shape[:2]
                assert height <= entry.padded_size[0]
                assert width <= entry.padded_size[1]
                assert torch.equal(sample.boxes, plain.boxes)
                fits = sample.image.shape == plain.image.shape
                assert not fits or torch.equal(sample.image, plain.image)
                scaled += not fits
                factor = min(height / plain.image.shape[0], width / plain.image.shape[1])
                assert height == pytest.approx(plain.image.shape[0] * factor, abs=1)
                assert width == pytest.approx(plain.image.shape[1] * factor, abs=1)
        assert scaled < 2 * 4


def test_most_images_go_to_the_smallest_size_that_holds_them(mixed):
    dataset = _dataset(mixed)
    sizes = dataset.draw_sizes()
    entries = [e for batch in _batches(PaddedBatchSampler(dataset, SIZES, 1, seed=0), dataset, 0) for e in batch]
    for index, padded in entries:  # with batches of one image, none is moved to a larger size
        holding = [size for size in SIZES if size[0] >= sizes[index][0] and size[1] >= sizes[index][1]]
        assert padded[0] * padded[1] == min(height * width for height, width in holding)
    assert {padded for _, padded in entries} == set(SIZES[:3])  # the fourth is never the smallest


@pytest.mark.parametrize("stated", [{"width": None, "height": None}, {"width": 40, "height": 10}])
def test_images_of_unknown_or_wrong_size_are_made_to_fit(tmp_path, stated):
    root = _write_data(tmp_path / "data", 8)
    content = json.loads((root / "instances.json").read_text())
    for image in content["images"][:4]:
        image.update(stated)
        if stated["width"] is None:
            del image["width"], image["height"]
    (root / "instances.json").write_text(json.dumps(content))
    with pytest.warns(RuntimeWarning) if stated["width"] else nullcontext():
        dataset = _dataset(root)
        sampler = PaddedBatchSampler(dataset, SIZES, 4, seed=0)
        loaded = [collate([dataset[entry] for entry in batch]) for batch in sampler]
    assert sorted(i for packed in loaded for i in packed.image_ids) == list(range(10, 18))
    described = sampler.describe_exceeding()
    if stated["width"] is None:
        assert described.startswith(
            "the size of 4 of 8 images is not stated, which are padded to 96x96 and scaled down"
        )
    else:
        assert described is None
    for packed in loaded:
        assert packed.padded_size in SIZES
        assert tuple(packed.to("cpu").images.shape[2:]) == packed.padded_size


@pytest.fixture(autouse=True)
def benchmark_restored():
    before = torch.backends.cudnn.benchmark
    yield
    torch.backends.cudnn.benchmark = before


def test_convolutions_are_tuned_for_few_shapes_only(padded_config, tmp_path):
    torch.backends.cudnn.benchmark = False
    Trainer(padded_config(padded_sizes=[]))
    assert not torch.backends.cudnn.benchmark
    Trainer(padded_config(output=str(tmp_path / "other")))
    assert torch.backends.cudnn.benchmark


def test_images_that_no_padded_size_holds_are_told(padded_config, tmp_path, capsys):
    Trainer(padded_config())
    assert "padded" not in capsys.readouterr().out
    Trainer(padded_config(padded_sizes=[(32, 96), (64, 64)], output=str(tmp_path / "other")))
    told = capsys.readouterr().out
    assert "data.padded_sizes: none of them holds" in told
    assert "of 48 images, which reach 96x96 pixels and are scaled down" in told


def test_a_transform_that_cannot_draw_sizes_is_named(mixed):
    dataset = _dataset(mixed, lambda image, boxes, labels, rng: (image, boxes, labels))
    with pytest.raises(TypeError, match="function has no method draw_size"):
        dataset.draw_sizes()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_the_loader_of_a_run_goes_on_within_an_epoch(padded_config, num_workers):
    data = build_train_data(padded_config(num_workers=num_workers).data, Accelerator(cpu=True), seed=0)
    assert len(data) == 12
    complete = [(batch.image_ids, batch.padded_size, batch.images.pixels) for batch in data.epoch(1)]
    rest = [(batch.image_ids, batch.padded_size, batch.images.pixels) for batch in data.epoch(1, start=7)]
    assert [batch[:2] for batch in rest] == [batch[:2] for batch in complete[7:]]
    assert all(torch.equal(a[2], b[2]) for a, b in zip(rest, complete[7:], strict=True))
    assert {size for _, size, _ in complete} <= set(SIZES)
    assert sorted(i for ids, _, _ in complete for i in ids) == list(range(10, 58))


@pytest.mark.slow
def test_a_run_resumed_within_an_epoch_is_never_stopped(padded_config, tmp_path, monkeypatch):
    import signal

    options = {"epochs": 2, "eval_every": 2, "ema_decay": 0.9, "dropout": 0.1}
    complete = Trainer(padded_config(output=str(tmp_path / "complete"), **options))
    complete.run()
    settings = padded_config(output=str(tmp_path / "parts"), **options)
    first = Trainer(settings)
    step = first.state.advance

    def step_then_stop() -> None:
        step()
        if first.state.progress.step + 1 == 17:  # of the 12 steps of each epoch, the fifth of the second
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(first.state, "advance", step_then_stop)
    with pytest.raises(Stopped):
        first.run()
    second = Trainer(settings, resume=True)
    second.run()
    assert second.state.progress.step == complete.state.progress.step == 24
    expected, actual = complete.state.weights.state_dict(), second.state.weights.state_dict()
    assert all(torch.equal(actual[name], value) for name, value in expected.items())
    records = [read_metrics(tmp_path / run / "metrics.jsonl") for run in ("complete", "parts")]
    for found, reference in zip(*records, strict=True):
        assert found.get("padding") == reference.get("padding")
        assert found.get("loss") == reference.get("loss")
    shares = [record["padding"] for record in records[0] if record["kind"] == "train"]
    assert all(0 <= share < 1 for share in shares)
    assert len(set(shares)) > 1


@torch.no_grad()
def _losses(model, samples, size) -> dict[str, float]:
    batch = collate(samples, [size]).to("cpu")
    assert tuple(batch.images.shape[2:]) == size
    output = model(batch.images, batch.padding)
    total, terms = SetCriterion()(output.logits, output.boxes, batch.targets)
    return {name: float(value) for name, value in {"total": total, **terms}.items()}


class Patches(nn.Module):
    """A backbone of stride 32, as that of a ResNet, whose features are those of patches that do not overlap."""

    num_channels = 16

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 32, stride=32)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.conv1(images).relu()


@pytest.mark.parametrize("backbone", ["resnet_tiny", Patches])
def test_the_loss_of_an_image_is_the_same_in_every_size_that_holds_it(mixed, small_detr, backbone):
    """The positions and the masks of encoder and decoder are exact, and so are the features of these backbones.

    The features of a ResNet with frozen batch norms are not, near the edge of an image: their biases, and the reach of
    the strided convolutions over the edge, give features to the padding, which the next convolutions mix into those of
    the image. Every implementation of DETR trains with that; see the next test.
    """
    torch.manual_seed(0)
    model = small_detr(backbone=backbone if isinstance(backbone, str) else backbone(), dropout=0.0).eval()
    dataset = _dataset(mixed, Resize(64, 96))
    for index in range(8):
        sample = dataset[index]
        height, width = sample.image.shape[:2]
        holding = [size for size in [*SIZES, (128, 96), (160, 192)] if height <= size[0] and width <= size[1]]
        expected = _losses(model, [sample], holding[0])
        assert len(holding) > 2
        for size in holding[1:]:
            assert _losses(model, [sample], size) == pytest.approx(expected, rel=1e-5)


def test_the_loss_of_a_resnet_depends_on_the_size_slightly(mixed, small_detr):
    """This is the dependence that the documentation states; if it vanishes, that can be changed."""
    model = small_detr(backbone="resnet18", dropout=0.0).eval()
    for module in model.modules():
        if isinstance(module, FrozenBatchNorm2d):
            module.bias.fill_(0.1)
    sample = _dataset(mixed, Resize(40, 50))[0]
    losses = [_losses(model, [sample], size)["total"] for size in [(64, 64), (96, 96)]]
    assert losses[0] != pytest.approx(losses[1], rel=1e-5)
    assert losses[0] == pytest.approx(losses[1], rel=0.1)


def test_the_losses_of_a_batch_are_the_same_in_every_size(mixed, small_detr):
    model = small_detr(dropout=0.0).eval()
    dataset = _dataset(mixed, Resize(48, 64))
    samples = [dataset[index] for index in range(8)]
    expected = _losses(model, samples, (64, 64))
    for size in [(64, 96), (96, 96), (128, 64)]:
        assert _losses(model, samples, size) == pytest.approx(expected, rel=1e-5), size


def test_no_mask_is_passed_where_nothing_is_padded(mixed):
    dataset = _dataset(mixed, Resize(64, 96))
    exact = dataset[6]  # 64 x 96 pixels
    assert exact.image.shape[:2] == (96, 64)
    batch = collate([exact, exact], SIZES).to("cpu")
    assert (batch.padding, batch.padding_share) == (None, 0)
    packed = collate([exact, exact], [(96, 96)])
    assert packed.padding_share == pytest.approx(1 / 3)
    padded = packed.to("cpu")  # of images that have the same size
    assert padded.padding is padded.mask
    assert float(padded.mask.float().mean()) == pytest.approx(padded.padding_share) == pytest.approx(1 / 3)


def test_an_image_that_exceeds_the_padded_size_is_refused(mixed):
    sample = _dataset(mixed, Resize(64, 96))[0]
    with pytest.raises(ValueError, match="do not fit into a size of 32x32"):
        collate([sample._replace(padded_size=(32, 32))]).to("cpu")


def _eval_data(root: Path, padded_sizes, batch_size: int = 5):
    return build_eval_data(
        root / "images",
        root / "instances.json",
        Accelerator(cpu=True),
        transform=Resize(64, 96),
        categories=None,
        batch_size=batch_size,
        num_workers=0,
        orientation="upright",
        padded_sizes=padded_sizes,
    )


def test_an_evaluation_loads_every_image_once_and_scales_none_down(mixed):
    dataset, loader = _eval_data(mixed, [(64, 96), (96, 64)])
    batches = list(loader)
    assert len(loader) == len(batches)
    assert sorted(i for packed in batches for i in packed.image_ids) == dataset.image_ids
    assert {packed.padded_size for packed in batches} == {(64, 96), (96, 64)}
    sizes = dict(zip(dataset.image_ids, dataset.draw_sizes(), strict=True))
    for packed in batches:
        assert packed.images.sizes == [sizes[i] for i in packed.image_ids]
    _, loader = _eval_data(mixed, [(64, 64)])  # holds square images only
    found = {packed.padded_size: packed for packed in loader}
    assert set(found) == {(64, 64), None}


def test_an_evaluation_in_padded_sizes_has_the_same_detections(mixed, small_detr):
    """They are those of images that are not padded, for a backbone whose features do not depend on padding."""
    rows = []
    for sizes, batch_size in (((), 1), (SIZES, 5)):
        dataset, loader = _eval_data(mixed, sizes, batch_size)
        found, _ = detect(small_detr(), loader, dataset, Accelerator(cpu=True))
        rows.append(torch.from_numpy(found[found[:, 0].argsort(kind="stable")]))
    torch.testing.assert_close(rows[1], rows[0], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ([(800, 1333)], r"multiples of 32 pixels, .* got \[800, 1333\]; \[800, 1344\] is the nearest"),
        ([(0, 32)], r"from 32 to 16384, got \[0, 32\]; \[32, 32\] is"),
        ([(64, 20000)], r"got \[64, 20000\]; \[64, 16384\] is"),
        ([(64, 64), (96, 64), (64, 64)], r"lists \[64, 64\] more than once; remove all but one"),
        ([64, 96], "data.padded_sizes must be"),
        ([(64, 96, 3)], "data.padded_sizes must be"),
        ([(64.0, 96)], "data.padded_sizes must be"),
    ],
)
def test_padded_sizes_that_cannot_be_used_are_refused(sizes, message):
    with pytest.raises(ConfigError, match=message):
        DataConfig("", "", "", "", padded_sizes=sizes)


def test_padded_sizes_are_pairs_whatever_file_they_come_from():
    assert DataConfig("", "", "", "", padded_sizes=[[64, 96]]) == DataConfig("", "", "", "", padded_sizes=[(64, 96)])


@pytest.mark.slow
def test_two_ranks_train_as_one_with_the_double_batch(padded_config, tmp_path):
    """The share of padding is the mean of the ranks, which is that of one rank if their shapes are equal."""
    options = {"dropout": 0.0, "epochs": 1}
    two = padded_config(output=str(tmp_path / "two"), batch_size=2, **options)
    one = padded_config(output=str(tmp_path / "one"), batch_size=4, **options)
    run_command("train", "--config", write_config(one, tmp_path / "one.yaml"))
    run_command("train", "--config", write_config(two, tmp_path / "two.yaml"), ranks=2)
    expected, actual = (read_metrics(tmp_path / run / "metrics.jsonl") for run in ("one", "two"))
    assert len(expected) == len(actual) == 13
    for found, reference in zip(actual, expected, strict=True):
        # The validation loss depends on which images share a batch.
        for name in ("AP50",) if reference["kind"] == "eval" else ("loss", "loss_giou", "padding", "grad_norm"):
            if name in reference:
                assert found[name] == pytest.approx(reference[name], rel=1e-3, abs=1e-5), (name, reference["step"])
