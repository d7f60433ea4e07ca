"""The integration of RF-DETR: one call to each op for all layers and query groups, and one for each attention.

>>> accelerate(model)
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
from rfdetr.models.ops.modules import MSDeformAttn  # noqa: E402

__all__ = ["TESTED_VERSIONS", "FastAttention", "FastCriterion", "FastMatcher", "accelerate", "restore"]

Output = dict[str, Any]
Module = TypeVar("Module", bound=nn.Module)


def accelerate(module: Module, matcher: bool = True, loss: bool = True, deformable_attention: bool = True) -> Module:
    """Run RF-DETR on the ops of this package; outputs, losses, gradients and matches do not change.

    The module is modified in place, and other instances are not affected. A second call replaces the selection of
    the first. Masks, keypoints, fixed-size target padding and costs that are not finite are computed by RF-DETR, and
    so is the attention of a model that is exported by RF-DETR.

    Args:
        module: A model, as ``rfdetr.models.build_model_from_config`` returns it, or a criterion built by
            ``rfdetr.models.build_criterion_from_config``.
        matcher: Whether a criterion matches all layers and groups in one call.
        loss: Whether a criterion computes the class and box losses of all layers in one call. This applies to
            ``ia_bce_loss``, the default of RF-DETR.
        deformable_attention: Whether a model computes each multi-scale deformable attention by
            :func:`detr_fast.ops.fused_deformable_attention`, in training and in inference.

    Returns:
        The module.

    Raises:
        ValueError: The module is no criterion of RF-DETR, or one with a custom matcher, and has no deformable
            attention of RF-DETR.
    """
    restore(module)
    attentions = [part for part in module.modules() if type(part) is MSDeformAttn]
    is_criterion = type(module) is SetCriterion and type(module.matcher) is HungarianMatcher
    if not attentions and not is_criterion:
        raise ValueError(
            "expected a model of RF-DETR with multi-scale deformable attention, or its SetCriterion with its "
            f"HungarianMatcher, got {type(module).__name__} with {type(getattr(module, 'matcher', None)).__name__}"
        )
    if is_criterion and matcher:
        module.matcher.__class__ = FastMatcher
    if is_criterion and loss:
        module.__class__ = FastCriterion
    if deformable_attention:
        for attention in attentions:
            attention.__class__ = FastAttention
    return module


def restore(module: Module) -> Module:
    """Undo :func:`accelerate`; any other module is unchanged."""
    if type(module) is FastCriterion:
        module.__class__ = SetCriterion
    if type(getattr(module, "matcher", None)) is FastMatcher:
        module.matcher.__class__ = HungarianMatcher
    for part in module.modules():
        if type(part) is FastAttention:
            part.__class__ = MSDeformAttn
    return module


class FastAttention(MSDeformAttn):
    """The multi-scale deformable attention of RF-DETR, without sampling locations and weights in memory."""

    def forward(
        self,
        query: Tensor,
        reference_points: Tensor,
        input_flatten: Tensor,
        input_spatial_shapes: Tensor,
        input_level_start_index: Tensor,
        input_padding_mask: Tensor | None = None,
        input_spatial_shapes_hw: list[tuple[int, int]] | None = None,
    ) -> Tensor:
        """Attend to the features of all levels.

        Args:
            query: [B,Q,E].
            reference_points: [B,Q,L,2] or [B,Q,L,4], points or boxes cxcywh in [0,1]; [B,Q,1,2] or [B,Q,1,4] for the
                same in all levels.
            input_flatten: [B,S,E], the features of all levels.
            input_spatial_shapes: int64 [L,2], height and width of each level.
            input_level_start_index: Not used.
            input_padding_mask: bool [B,S], True for features that are padding; None without padding.
            input_spatial_shapes_hw: Height and width of each level as numbers; None if they are in the tensor only.

        Returns:
            [B,Q,E].
        """
        if self._export:
            return super().forward(
                query,
                reference_points,
                input_flatten,
                input_spatial_shapes,
                input_level_start_index,
                input_padding_mask,
                input_spatial_shapes_hw,
            )
        value = self.value_proj(input_flatten)
        if input_padding_mask is not None:
            value = value.masked_fill(input_padding_mask[..., None], 0.0)
        points = (*query.shape[:2], self.n_heads, self.n_levels, self.n_points)
        output = ops.fused_deformable_attention(
            value.unflatten(-1, (self.n_heads, -1)),
            input_spatial_shapes if input_spatial_shapes_hw is None else input_spatial_shapes_hw,
            reference_points,
            self.sampling_offsets(query).view(*points, 2),
            self.attention_weights(query).view(points),
        )
        return self.output_proj(output)


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
