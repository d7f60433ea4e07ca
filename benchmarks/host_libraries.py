"""The losses of other libraries' detectors, as they are and accelerated by the integrations."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.peers import import_peer

_COSTS = {"class_cost": 1, "bbox_cost": 5, "giou_cost": 2, "bbox_loss_coefficient": 5, "giou_loss_coefficient": 2}
_DETR = {**_COSTS, "num_labels": 91, "auxiliary_loss": True, "decoder_layers": 6, "eos_coefficient": 0.1}
_RT_DETR = {
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
_TRANSFORMERS = {
    "DETR": ("ForObjectDetection", _DETR),
    "Deformable DETR": ("DeformableDetrForObjectDetection", {**_DETR, "focal_alpha": 0.25}),
    "RT-DETR": ("RTDetrForObjectDetection", _RT_DETR),
}

NUM_LOGITS = {"DETR": 92, "Deformable DETR": 91, "RT-DETR": 80, "RF-DETR": 91}
NUM_LAYERS = {"DETR": 6, "Deformable DETR": 6, "RT-DETR": 7, "RF-DETR": 5}  # the encoder's output included
Truth = list[dict[str, Tensor]]
Loss = Callable[[Tensor, Tensor], Tensor]  # from logits [L,B,Q,C] and boxes [L,B,Q,4] to the total


class Losses(NamedTuple):
    """A detector's matcher and losses."""

    host_library: Loss
    accelerated: Loss


def losses(family: str, truth: Truth, device: torch.device) -> Losses:
    """Return the losses of a family.

    Raises:
        Unavailable: The library is not installed.
    """
    return rfdetr_loss(truth) if family == "RF-DETR" else transformers_loss(family, truth, device)


def label_key(family: str) -> str:
    """Return the key of the labels in an image's target."""
    return "labels" if family == "RF-DETR" else "class_labels"


def transformers_loss(family: str, truth: Truth, device: torch.device) -> Losses:
    """Return the losses of one of transformers' detectors."""
    loss_mapping = import_peer("transformers", "transformers.loss.loss_utils").LOSS_MAPPING
    from detr_fast.integrations.huggingface.criteria import FastLoss

    name, settings = _TRANSFORMERS[family]
    config = SimpleNamespace(**settings)

    def call(function: Any) -> Loss:
        def loss(logits: Tensor, boxes: Tensor) -> Tensor:
            arguments: tuple[Any, ...] = (logits[-1], truth, device, boxes[-1], config, logits, boxes)
            extra = {}
            if family == "RT-DETR":  # its images come before its layers; the last layer stands for the encoder
                (x, encoder_x), (y, encoder_y) = ((t[:-1].transpose(0, 1), t[-1]) for t in (logits, boxes))
                arguments = (x[:, -1], truth, device, y[:, -1], config, x, y)
                extra = {"enc_topk_logits": encoder_x, "enc_topk_bboxes": encoder_y}
            total, *_ = function(*arguments, **extra)
            return total

        return loss

    function = loss_mapping[name]
    return Losses(call(function), call(FastLoss(function, matcher=True, loss=True)))


def rfdetr_loss(truth: Truth) -> Losses:
    """Return the sum of RF-DETR's losses, before they are weighted."""
    import_peer("rfdetr")
    from detr_fast.integrations import rfdetr

    matcher = rfdetr.HungarianMatcher(cost_class=2, cost_bbox=5, cost_giou=2)
    criterion = rfdetr.SetCriterion(91, matcher, {}, 0.25, ["labels", "boxes", "cardinality"], ia_bce_loss=True)

    def call(prepare: Callable[[Any], Any]) -> Loss:
        def loss(logits: Tensor, boxes: Tensor) -> Tensor:
            prepare(criterion)
            layers = [{"pred_logits": x, "pred_boxes": y} for x, y in zip(logits, boxes, strict=True)]
            found = criterion(layers[0] | {"aux_outputs": layers[1:-1], "enc_outputs": layers[-1]}, truth)
            return torch.stack([value for name, value in found.items() if name.startswith("loss")]).sum()

        return loss

    return Losses(call(rfdetr.restore), call(rfdetr.accelerate))
