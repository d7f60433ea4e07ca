from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from detr_fast.images import ImageError, pad_images
from detr_fast.models import BACKBONES


@pytest.fixture
def model(small_detr):
    """A model that has detections in each image, a different one for each query."""
    model = small_detr()
    nn.init.normal_(model.query_embed.weight, std=5)
    nn.init.normal_(model.class_embed.weight, std=1)
    nn.init.normal_(model.bbox_embed.layers[2].weight, std=2)
    return model


def make_image(height: int = 40, width: int = 56, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def assert_same(found, expected, tolerance=0.0):
    assert found.keys() == expected.keys() == {"scores", "labels", "boxes", "queries", "names"}
    assert found["names"] == expected["names"]
    for name in ("scores", "labels", "boxes", "queries"):
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=tolerance)


def test_all_kinds_of_inputs_are_the_same(model, tmp_path):
    pixels = make_image()
    image = Image.fromarray(pixels)
    image.save(tmp_path / "image.png")
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    kinds = [tmp_path / "image.png", str(tmp_path / "image.png"), image, image.convert("RGBA"), pixels, tensor]
    kinds += [tensor / 255, (tensor / 255).double()]
    expected = model.predict(kinds[0], threshold=0)[0]
    assert len(expected["scores"]) == 5
    for found in model.predict(kinds, threshold=0, batch_size=1):
        assert_same(found, expected)
    for kind in kinds:
        assert_same(model.predict(kind, threshold=0)[0], expected)


def test_two_dimensional_arrays_are_grayscale_images(model):
    gray = make_image()[..., 0]
    found = model.predict([gray, np.repeat(gray[..., None], 3, -1)], threshold=0)
    assert_same(found[0], found[1], 1e-5)


def test_images_of_mixed_sizes_do_not_affect_each_other(model):
    """The detections in a padded image of a batch do not depend on the other images."""
    first, second, third = make_image(40, 56), make_image(70, 31, 1), make_image(9, 200, 2)
    batch = model.predict([first, second, third], threshold=0, batch_size=3)
    other = model.predict([first, 255 - second, 255 - third], threshold=0, batch_size=3)
    assert_same(batch[0], other[0], 1e-4)
    assert not torch.equal(batch[1]["boxes"], other[1]["boxes"])


def test_boxes_are_pixels_of_the_given_image(model, monkeypatch):
    logits = torch.zeros(2, 1, 5, 4)
    logits[-1, 0, :, 3] = torch.tensor([9.0, 0, 9, 0, 9])  # no object in queries 0, 2 and 4
    logits[-1, 0, 1, 2], logits[-1, 0, 3, 0] = 8.0, 9.0
    boxes = torch.tensor([0.5, 0.5, 0.25, 0.5]).repeat(2, 1, 5, 1)
    boxes[-1, 0, 3] = torch.tensor([0.1, 0.9, 0.4, 0.4])
    seen = []

    def forward(images, mask=None):
        seen.append(images.shape)
        return type("Output", (), {"pred_logits": logits[-1], "pred_boxes": boxes[-1]})

    monkeypatch.setattr(model, "forward", forward)
    (found,) = model.predict(make_image(100, 400))
    assert seen == [(1, 3, 16, 64)]  # shorter side 48 would make the longer one 192; that is limited to 64
    assert found["labels"].tolist() == [0, 2]  # the higher score first
    expected = torch.tensor([[0.0, 70, 120, 100], [150, 25, 250, 75]])  # the first is clipped: -40 and 110
    torch.testing.assert_close(found["boxes"], expected)
    assert found["scores"][0] > found["scores"][1] > 0.99


def test_only_scores_from_the_threshold_on(model):
    everything = model.predict(make_image(), threshold=0)[0]
    middle = everything["scores"][2].item()
    found = model.predict(make_image(), threshold=middle)[0]
    assert_same(found, {name: values[:3] for name, values in everything.items()})
    nothing = model.predict(make_image(), threshold=1)[0]
    assert (nothing["scores"].shape, nothing["labels"].shape, nothing["boxes"].shape) == ((0,), (0,), (0, 4))


def test_classes_are_named(small_detr):
    torch.manual_seed(0)
    model = small_detr(categories=[{"id": 5, "name": "cat"}, {"id": 9, "name": "Straße"}])
    nn.init.normal_(model.query_embed.weight, std=5)
    nn.init.normal_(model.class_embed.weight, std=1)
    found = model.predict([make_image(seed=seed) for seed in range(4)], threshold=0)
    labels = torch.cat([image["labels"] for image in found]).tolist()
    assert len(set(labels)) > 1
    names = ["cat", "Straße", "2"]  # the last class has no category
    assert [name for image in found for name in image["names"]] == [names[label] for label in labels]


def test_no_images_no_results(model):
    assert model.predict([]) == []


@pytest.mark.parametrize("training", [False, True])
def test_the_mode_is_left_as_it_was(model, training):
    model.train(training)
    first, second = (model.predict(make_image(), threshold=0)[0] for _ in range(2))
    assert_same(first, second)  # without dropout
    assert model.training == training
    with pytest.raises(ImageError):
        model.predict(np.zeros(3))
    assert model.training == training


def test_predicts_in_the_models_dtype(model):
    expected = model.predict(make_image(), threshold=0)[0]
    found = model.double().predict(make_image(), threshold=0)[0]
    torch.testing.assert_close(found["scores"].float(), expected["scores"], rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (np.zeros((4, 4, 3)), r"image 1: an array must be uint8 \[H,W,3\] or \[H,W\], got float64 \[4, 4, 3\]"),
        (np.zeros((3, 4, 4), np.uint8), r"image 1: .*got uint8 \[3, 4, 4\]"),
        (np.zeros((0, 4, 3), np.uint8), r"image 1: .*got uint8 \[0, 4, 3\]"),
        (torch.zeros(2, 3, 4, 4), r"image 1: a tensor must be \[3,H,W\], got \[2, 3, 4, 4\].*list\(batch\)"),
        (torch.full((3, 4, 4), float("nan")), r"image 1: .*without NaN"),
        (torch.full((3, 4, 4), 1.5), r"image 1: .*within \[0,1\].*do not normalize"),
        (torch.zeros(3, 4, 4, dtype=torch.int64), r"image 1: a tensor must be uint8.*got torch.int64"),
        ("nowhere.png", r"image 1: nowhere\.png"),
        (None, "image 1: expected a path, a PIL image, an array or a tensor, got NoneType"),
    ],
)
def test_a_bad_image_is_named_with_its_index(model, bad, message):
    with pytest.raises(ImageError, match=message):
        model.predict([make_image(), bad], batch_size=1)


def test_a_truncated_pil_image_is_named(model, tmp_path):
    Image.fromarray(make_image()).save(tmp_path / "cut.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "cut.jpg").read_bytes()[:900])
    with Image.open(tmp_path / "cut.jpg") as lazy, pytest.raises(ImageError, match=r"image 0: .*truncated"):
        model.predict(lazy)


def test_bad_options_are_named(model):
    with pytest.raises(ValueError, match=r"threshold must be within \[0, 1\], got 50"):
        model.predict(make_image(), threshold=50)
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        model.predict(make_image(), batch_size=0)


def test_a_diverged_model_is_named(model):
    model.class_embed.bias.data[0] = float("nan")
    with pytest.raises(ValueError, match="outputs are not finite"):
        model.predict(make_image())


@pytest.mark.slow
@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_prediction_is_the_same_alone_and_beside_a_larger_image(small_detr, backbone):
    model = small_detr(backbone=backbone, image_size=96, max_image_size=200).double()
    for name, tensor in model.state_dict().items():  # as of a trained network: batch norms whose zeros are no zeros
        if name.endswith((".bias", ".running_mean")):
            tensor.normal_(std=0.2)
    model.load_state_dict(model.state_dict())  # batch norms are folded anew
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in ((48, 50), (40, 100), (70, 33), (96, 100))]
    together = model.predict(images, threshold=0.0)
    for image, found in zip(images, together, strict=True):
        (alone,) = model.predict(image, threshold=0.0)
        for name in ("scores", "labels", "boxes", "queries"):
            torch.testing.assert_close(found[name], alone[name], rtol=0, atol=1e-8)


def test_a_batch_of_the_tiny_network_is_its_images(small_detr):
    """Through the model itself, as in training and evaluation, with padding to multiples of the stride."""
    torch.manual_seed(0)
    model = small_detr().double().eval()
    for parameter in model.body.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    sizes = [(64, 64), (32, 80), (48, 24)]
    images = [torch.randn(3, *size, dtype=torch.float64) for size in sizes]
    output = model(*pad_images(images))
    for row, image in enumerate(images):
        alone = model(image[None])
        torch.testing.assert_close(output.pred_logits[row], alone.pred_logits[0], rtol=0, atol=1e-9)
        torch.testing.assert_close(output.pred_boxes[row], alone.pred_boxes[0], rtol=0, atol=1e-9)
