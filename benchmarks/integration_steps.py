"""Matcher and criterion of other people's detectors, from predictions to gradients: theirs, and patched with ours."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from benchmarks.conftest import coco_like_targets
from benchmarks.peers import import_peer

COSTS = {"class_cost": 1, "bbox_cost": 5, "giou_cost": 2, "bbox_loss_coefficient": 5, "giou_loss_coefficient": 2}
DETR = {**COSTS, "num_labels": 91, "auxiliary_loss": True, "decoder_layers": 6, "eos_coefficient": 0.1}
RT_DETR = {
    "num_labels": 80,
    "auxiliary_loss": True,
    "eos_coefficient": 0.1,
    "use_focal_loss": True,
    "matcher_class_cost": 2,
    "matcher_bbox_cost": 5,
    "matcher_giou_cost": 2,
    "matcher_alpha": 0.25,
    "matcher_gamma": 2.0,
    "focal_loss_alpha": 0.75,
    "focal_loss_gamma": 2.0,
    "weight_loss_vfl": 1,
    "weight_loss_bbox": 5,
    "weight_loss_giou": 2,
}
TRANSFORMERS = {
    "DETR": ("ForObjectDetection", DETR, 92),
    "Deformable DETR": ("DeformableDetrForObjectDetection", {**DETR, "focal_alpha": 0.25}, 91),
    "RT-DETR": ("RTDetrForObjectDetection", RT_DETR, 80),
}
FAMILIES = (*TRANSFORMERS, "RF-DETR")

Step = Callable[[], Tensor]


def predictions(
    layers: int, images: int, queries: int, num_logits: int, device: torch.device
) -> tuple[Tensor, Tensor]:  # [L,B,Q,C], [L,B,Q,4]
    generator = torch.Generator().manual_seed(images)
    shape = (layers, images, queries)
    logits = torch.randn(*shape, num_logits, generator=generator)
    return logits.to(device), (torch.rand(*shape, 4, generator=generator) * 0.4 + 0.2).to(device)


def labels(images: int, num_classes: int, name: str, device: torch.device) -> list[dict[str, Tensor]]:
    """The targets of ``coco_like_targets``, a mapping for each image; ``name`` is that of the labels in it."""
    targets = coco_like_targets(images, num_classes).to(device)
    split = zip(targets.labels.split(targets.sizes), targets.boxes.split(targets.sizes), strict=True)
    return [{name: of_image, "boxes": boxes} for of_image, boxes in split]


def steps(family: str, images: int, queries: int, device: torch.device) -> tuple[Step, Step]:
    """A family's step unpatched, and patched with our ops.

    Raises:
        PeerMissing: the family's library is not installed.
    """
    if family == "RF-DETR":
        return rfdetr_steps(images, queries, device)
    return transformers_steps(family, images, queries, device)


def transformers_steps(family: str, images: int, queries: int, device: torch.device) -> tuple[Step, Step]:
    loss_mapping = import_peer("transformers", "transformers.loss.loss_utils").LOSS_MAPPING
    from detr_fast.integrations.huggingface.criteria import FastLoss

    name, settings, num_logits = TRANSFORMERS[family]
    config = SimpleNamespace(**settings)
    logits, boxes = predictions(7 if family == "RT-DETR" else 6, images, queries, num_logits, device)
    truth = labels(images, config.num_labels, "class_labels", device)

    def step(function: Any) -> Tensor:
        leaves = logits.detach().requires_grad_(), boxes.detach().requires_grad_()
        if family == "RT-DETR":  # images first; the last layer stands for the encoder's
            (x, encoder_x), (y, encoder_y) = ((leaf[:6].transpose(0, 1), leaf[6]) for leaf in leaves)
            extra = {"enc_topk_logits": encoder_x, "enc_topk_bboxes": encoder_y}
            loss, *_ = function(x[:, -1], truth, device, y[:, -1], config, x, y, **extra)
        else:
            x, y = leaves
            loss, *_ = function(x[-1], truth, device, y[-1], config, x, y)
        loss.backward()
        return loss.detach()

    theirs = loss_mapping[name]
    ours = FastLoss(theirs, matcher=True, loss=True)
    return lambda: step(theirs), lambda: step(ours)


def rfdetr_steps(images: int, queries: int, device: torch.device, layers: int = 5) -> tuple[Step, Step]:
    import_peer("rfdetr")
    from detr_fast.integrations import rfdetr

    logits, boxes = predictions(layers, images, queries, 91, device)
    truth = labels(images, 91, "labels", device)
    matcher = rfdetr.HungarianMatcher(cost_class=2, cost_bbox=5, cost_giou=2)
    losses = ["labels", "boxes", "cardinality"]
    criterion = rfdetr.SetCriterion(91, matcher, {}, 0.25, losses, ia_bce_loss=True)

    def step(prepare: Any) -> Tensor:
        prepare(criterion)
        leaves = zip(logits.detach().requires_grad_(), boxes.detach().requires_grad_(), strict=True)
        each = [{"pred_logits": x, "pred_boxes": y} for x, y in leaves]
        found = criterion(each[0] | {"aux_outputs": each[1:-1], "enc_outputs": each[-1]}, truth)
        loss = torch.stack([value for name, value in found.items() if name.startswith("loss")]).sum()
        loss.backward()
        return loss.detach()

    return lambda: step(rfdetr.restore), lambda: step(rfdetr.accelerate)
