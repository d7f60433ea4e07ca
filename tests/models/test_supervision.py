from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from detr_fast.models import to_supervision

supervision = pytest.importorskip("supervision")


@pytest.fixture
def model(small_detr):
    model = small_detr()
    nn.init.normal_(model.class_embed.weight, std=1)
    return model


@pytest.mark.parametrize("threshold", [0.0, 1.0])
def test_the_detections_are_those_that_supervision_reads(model, threshold):
    image = np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)
    (found,) = model.predict(image, threshold=threshold)
    actual = to_supervision(found)
    names = {label: f"{label}" for label in range(model.num_classes)}
    expected = supervision.Detections.from_transformers(
        {name: found[name] for name in ("scores", "labels", "boxes")}, id2label=names
    )
    assert len(actual) == len(found["scores"]) == (0 if threshold else 5)
    np.testing.assert_array_equal(actual.xyxy, expected.xyxy)
    np.testing.assert_array_equal(actual.confidence, expected.confidence)
    np.testing.assert_array_equal(actual.class_id, expected.class_id)
    assert actual["class_name"].tolist() == expected["class_name"].tolist() == found["names"]
    drawn = supervision.BoxAnnotator().annotate(image.copy(), actual)
    assert (drawn != image).any() == bool(len(actual))


def test_names_are_optional():
    found = {"boxes": torch.zeros(1, 4), "scores": torch.ones(1), "labels": torch.tensor([2])}
    assert to_supervision(found).class_id.tolist() == [2]
    assert "class_name" not in to_supervision(found).data
