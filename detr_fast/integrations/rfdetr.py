"""The integration of RF-DETR: one call to each op for all layers and query groups.

>>> accelerate(criterion)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from detr_fast import ops
from detr_fast.integrations.pairs import Pairs, from_pairs, to_pairs
from detr_fast.integrations.versions import require_version
from detr_fast.ops.metrics import cardinality_error, class_error
from detr_fast.ops.targets import Targets
from detr_fast.ops.weights import LossWeights, MatchWeights

TESTED_VERSIONS = ("1.11",)
require_version("rfdetr", TESTED_VERSIONS)

from rfdetr.models.criterion import SetCriterion  # noqa: E402  (after the check of its version)
from rfdetr.models.matcher import HungarianMatcher  # noqa: E402

__all__ = ["TESTED_VERSIONS", "FastCriterion", "FastMatcher", "accelerate", "restore"]

Output = dict[str, Any]
Criterion = TypeVar("Criterion", bound=nn.Module)


def accelerate(criterion: Criterion, matcher: bool = True, loss: bool = True) -> Criterion:
    """Run the criterion of RF-DETR on the ops of this package; losses, gradients and matches do not change.

    The criterion is modified in place, and other instances are not affected. A second call replaces the selection of
    the first. Masks, keypoints, fixed-size target padding and costs that are not finite are computed by RF-DETR.

    Args:
        criterion: A criterion built by ``rfdetr.models.build_criterion_from_config``.
        matcher: Whether to match all layers and groups in one call.
        loss: Whether to compute the class and box losses of all layers in one call. This applies to ``ia_bce_loss``,
            the default of RF-DETR.

    Returns:
        The criterion.

    Raises:
        ValueError: The criterion is not one of RF-DETR, or has a custom matcher.
    """
    restore(criterion)
    if type(criterion) is not SetCriterion or type(criterion.matcher) is not HungarianMatcher:
        raise ValueError(
            f"expected the SetCriterion of RF-DETR with its HungarianMatcher, got {type(criterion).__name__} with "
            f"{type(getattr(criterion, 'matcher', None)).__name__}"
        )
    if matcher:
        criterion.matcher.__class__ = FastMatcher
    if loss:
        criterion.__class__ = FastCriterion
    return criterion


def restore(criterion: Criterion) -> Criterion:
    """Undo :func:`accelerate`; any other criterion is unchanged."""
    if type(criterion) is FastCriterion:
        criterion.__class__ = SetCriterion
    if type(getattr(criterion, "matcher", None)) is FastMatcher:
        criterion.matcher.__class__ = HungarianMatcher
    return criterion


class FastMatcher(HungarianMatcher):
    """The matcher of RF-DETR, which matches all layers in one call."""

    @torch.no_grad()
    def _match_many(
        self, outputs_list: list[Output], targets: list[Output], group_detr: int = 1, target_side_safety: Any = None
    ) -> list[Pairs] | None:
        packed = pack_targets(targets) if is_plain_detection(outputs_list, targets) else None
        index = None if packed is None else self.match(outputs_list, packed, group_detr)
        if packed is None or index is None:
            return super()._match_many(outputs_list, targets, group_detr, target_side_safety)
        num_queries = outputs_list[0]["pred_logits"].shape[1]
        return [to_pairs(of_layer, packed, num_queries) for of_layer in index]

    def match(self, outputs_list: Sequence[Output], targets: Targets, groups: int) -> Tensor | None:
        """Match all layers.

        Args:
            outputs_list: The outputs of L layers.
            targets: The targets.
            groups: Number of query groups G.

        Returns:
            The query of each target, int64 [L,G,T]; None if costs on a CPU are not finite.
        """
        weights = MatchWeights(
            self.cost_class,
            self.cost_bbox,
            self.cost_giou,
            class_cost="focal",
            focal_alpha=self.focal_alpha,
            focal_eps=0.0,
        )
        logits, boxes = stack_layers([{k: v.detach() for k, v in _detections(o).items()} for o in outputs_list])
        cost = ops.match_cost(logits, boxes, targets, weights=weights, groups=groups)
        if cost.device.type == "cpu" and not cost.isfinite().all():
            return None
        largest = torch.finfo(cost.dtype).max
        cost.nan_to_num_(nan=largest, posinf=largest, neginf=largest)
        index = ops.batch_linear_sum_assignment(cost, targets, groups=groups)
        return index.view(len(logits), groups, targets.num_targets)


class FastCriterion(SetCriterion):
    """The criterion of RF-DETR, which computes the losses of all layers in one call."""

    def forward(
        self, outputs: Output, targets: list[Output], num_boxes: Tensor | float | None = None
    ) -> dict[str, Tensor]:
        auxiliary = list(outputs.get("aux_outputs", ()))
        layers = [outputs, *auxiliary]
        suffixes = ["", *(f"_{i}" for i in range(len(auxiliary)))]
        if "enc_outputs" in outputs:
            layers.append(outputs["enc_outputs"])
            suffixes.append("_enc")
        supported = self.ia_bce_loss and self.losses == ["labels", "boxes", "cardinality"]
        packed = pack_targets(targets) if supported and is_plain_detection(layers, targets) else None
        if packed is None:
            return super().forward(outputs, targets, num_boxes)
        groups = self.group_detr if self.training else 1
        index = self.matcher.match(layers, packed, groups) if isinstance(self.matcher, FastMatcher) else None
        if index is None:
            index = torch.stack(
                [
                    from_pairs(self.matcher(layer, targets, group_detr=groups), packed, _num_queries(layer), groups)
                    for layer in layers
                ]
            )
        if num_boxes is None:
            num_boxes = self.num_boxes_for_targets(outputs, targets)
        logits, boxes = stack_layers([_detections(layer) for layer in layers])
        weights = LossWeights(class_loss="ia_bce", focal_alpha=self.focal_alpha)
        terms = ops.set_loss(logits, boxes, packed, index, weights=weights, num_boxes=num_boxes)
        terms["cardinality_error"] = cardinality_error(logits, packed, softmax=False)
        losses = {"class_error": class_error(logits[0], packed, index[0])}
        for name, values in terms.items():
            losses |= {name + suffix: value for suffix, value in zip(suffixes, values.unbind(), strict=True)}
        return losses


def is_plain_detection(layers: Sequence[Output], targets: Sequence[Output]) -> bool:
    """Return whether only boxes and classes are matched, and all layers have the same shape."""
    extra = {"masks", "keypoints", "valid"}
    shapes = {layer["pred_logits"].shape for layer in layers}
    return bool(targets) and not any(extra & target.keys() for target in targets) and len(shapes) == 1


def pack_targets(targets: Sequence[Output]) -> Targets | None:
    """Pack the targets of a batch; None if they are invalid, which RF-DETR reports."""
    try:
        return Targets.from_list(targets)
    except ValueError:
        return None


def stack_layers(layers: Sequence[Output]) -> tuple[Tensor, Tensor]:
    """Stack the outputs of L layers to logits [L,B,Q,C] and boxes [L,B,Q,4]."""
    return torch.stack([layer["pred_logits"] for layer in layers]), torch.stack([x["pred_boxes"] for x in layers])


def _detections(layer: Output) -> Output:
    return {name: layer[name] for name in ("pred_logits", "pred_boxes")}


def _num_queries(layer: Output) -> int:
    return int(layer["pred_logits"].shape[1])
