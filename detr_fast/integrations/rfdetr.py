"""The integration of RF-DETR: one call to each op for all layers and query groups, and one for each attention.

>>> accelerate(model)
>>> accelerate(criterion)
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from copy import deepcopy
from functools import partial
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from rfdetr.models.criterion import SetCriterion
from rfdetr.models.matcher import HungarianMatcher
from rfdetr.models.ops.modules import MSDeformAttn
from torch import Tensor, nn

from detr_fast import ops
from detr_fast.integrations.evidence import (
    NUM_QUERIES,
    SHAPES,
    SIZES,
    Finding,
    check_close,
    check_parameters,
    evaluate,
    examine,
    parameter_names,
    random_boxes,
    random_targets,
    report,
)
from detr_fast.integrations.pairs import Pairs, from_pairs, to_pairs
from detr_fast.ops.metrics import cardinality_error, class_error
from detr_fast.ops.targets import Targets
from detr_fast.ops.weights import LossWeights, MatchWeights

__all__ = ["FastAttention", "FastCriterion", "FastMatcher", "accelerate", "restore"]

Output = dict[str, Any]
Module = TypeVar("Module", bound=nn.Module)


def accelerate(
    module: Module, matcher: bool = True, loss: bool = True, deformable_attention: bool = True, check: bool = True
) -> Module:
    """Run RF-DETR on the ops of this package; outputs, losses, gradients and matches do not change.

    The module is modified in place, and other instances are not affected. A second call replaces the selection of
    the first. Masks, keypoints, fixed-size target padding and costs that are not finite are computed by RF-DETR, and
    so is the attention of a model that is exported by RF-DETR. With several processes call it in all of them.

    A part is taken from any release of RF-DETR that computes it as this package does. What is replaced is compared by
    its parameters and, once per process, by its results on small random inputs. Parts that differ are left to RF-DETR,
    and a warning in the log names them with the difference.

    Args:
        module: A model, as ``rfdetr.models.build_model_from_config`` returns it, or a criterion built by
            ``rfdetr.models.build_criterion_from_config``.
        matcher: Whether a criterion matches all layers and groups in one call.
        loss: Whether a criterion computes the class and box losses of all layers in one call. This applies to
            ``ia_bce_loss``, the default of RF-DETR.
        deformable_attention: Whether a model computes each multi-scale deformable attention by
            :func:`detr_fast.ops.fused_deformable_attention`, in training and in inference.
        check: Whether to compare the parts; otherwise every part that exists is replaced.

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
    findings: list[Finding] = []
    if is_criterion and matcher:
        findings.append(find_matcher(module.matcher) if check else Finding("the matching"))
        if findings[-1].reason is None:
            module.matcher.__class__ = FastMatcher
    if is_criterion and loss and supports_losses(module):
        found = find_loss(module) if check else [Finding("the losses"), Finding("the cardinality error")]
        findings += found
        if found[0].reason is None:
            module.__class__ = FastCriterion if found[-1].reason is None else FastCriterionWithoutCardinality
    if deformable_attention and attentions:
        findings.append(find_attention() if check else Finding("the attention"))
        if findings[-1].reason is None:
            for attention in attentions:
                attention.__class__ = FastAttention
    report("rfdetr", findings)
    return module


def restore(module: Module) -> Module:
    """Undo :func:`accelerate`; any other module is unchanged."""
    if isinstance(module, FastCriterion):
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
        if getattr(self, "_export", False):
            return super().forward(
                query,
                reference_points,
                input_flatten,
                input_spatial_shapes,
                input_level_start_index,
                input_padding_mask,
                *_given(input_spatial_shapes_hw),
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
    def forward(
        self, outputs: Output, targets: list[Output], group_detr: int = 1, target_side_safety: Any = None
    ) -> Pairs:
        """Match one layer, as the matcher of RF-DETR does."""
        pairs = self._match_plain([outputs], targets, group_detr)
        return super().forward(outputs, targets, group_detr, *_given(target_side_safety)) if pairs is None else pairs[0]

    @torch.no_grad()
    def _match_many(
        self, outputs_list: list[Output], targets: list[Output], group_detr: int = 1, target_side_safety: Any = None
    ) -> list[Pairs] | None:
        pairs = self._match_plain(outputs_list, targets, group_detr)
        return super()._match_many(outputs_list, targets, group_detr, target_side_safety) if pairs is None else pairs

    def _match_plain(self, outputs_list: list[Output], targets: list[Output], groups: int) -> list[Pairs] | None:
        """Return the pairs of each layer; None if RF-DETR has to match them."""
        packed = pack_targets(targets) if is_plain_detection(outputs_list, targets) else None
        index = None if packed is None else self.match(outputs_list, packed, groups)
        if packed is None or index is None:
            return None
        return [to_pairs(of_layer, packed, _num_queries(outputs_list[0])) for of_layer in index]

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

    computes_cardinality = True

    def forward(
        self, outputs: Output, targets: list[Output], num_boxes: Tensor | float | None = None
    ) -> dict[str, Tensor]:
        auxiliary = list(outputs.get("aux_outputs", ()))
        layers = [outputs, *auxiliary]
        suffixes = ["", *(f"_{i}" for i in range(len(auxiliary)))]
        if "enc_outputs" in outputs:
            layers.append(outputs["enc_outputs"])
            suffixes.append("_enc")
        supported = supports_losses(self) and is_plain_detection(layers, targets)
        packed = pack_targets(targets) if supported else None
        if packed is None:
            return super().forward(outputs, targets, *_given(num_boxes))
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
            num_boxes = _count_boxes(self, outputs, targets)
        logits, boxes = stack_layers([_detections(layer) for layer in layers])
        weights = LossWeights(class_loss="ia_bce", focal_alpha=self.focal_alpha)
        terms = ops.set_loss(logits, boxes, packed, index, weights=weights, num_boxes=num_boxes)
        if self.computes_cardinality:
            terms["cardinality_error"] = cardinality_error(logits, packed, softmax=False)
        else:
            counted = [self.get_loss("cardinality", layer, targets, None, num_boxes) for layer in layers]
            terms["cardinality_error"] = torch.stack([error["cardinality_error"] for error in counted])
        losses = {"class_error": class_error(logits[0], packed, index[0])}
        for name, values in terms.items():
            losses |= {name + suffix: value for suffix, value in zip(suffixes, values.unbind(), strict=True)}
        return losses


class FastCriterionWithoutCardinality(FastCriterion):
    """The criterion for releases of RF-DETR that count predictions differently."""

    computes_cardinality = False


def supports_losses(criterion: Any) -> bool:
    """Return whether ``set_loss`` computes the losses that a criterion has been set to compute."""
    return bool(criterion.ia_bce_loss) and criterion.losses == ["labels", "boxes", "cardinality"]


def _count_boxes(criterion: Any, outputs: Output, targets: Sequence[Output]) -> Tensor:
    """Return the divisor of the box losses: the number of boxes of all groups, as a mean over the ranks."""
    if hasattr(criterion, "num_boxes_for_targets"):
        return criterion.num_boxes_for_targets(outputs, targets)
    count = sum(len(image["labels"]) for image in targets)
    if not criterion.sum_group_losses and criterion.training:
        count *= criterion.group_detr
    total = outputs["pred_logits"].new_full((1,), count, dtype=torch.float32)
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(total)
        total /= dist.get_world_size()
    return total.clamp(min=1)


def _given(argument: Any) -> list[Any]:
    """Return the last argument of a call as a list, which is empty if it is None; older releases do not take it."""
    return [] if argument is None else [argument]


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


NUM_GROUPS = 2


def find_matcher(matcher: HungarianMatcher) -> Finding:
    """Compare the matches of a matcher with those of its replacement."""
    return examine("the matching", partial(_compare_matches, matcher), ("matcher", *_identity(matcher)))


def find_loss(criterion: SetCriterion) -> list[Finding]:
    """Compare the losses of a criterion, from its own matches.

    Args:
        criterion: A criterion with losses that are supported.

    Returns:
        The finding about class and box losses and, unless these are left to RF-DETR, that about the cardinality error.
    """
    key = (*_identity(criterion), *_identity(criterion.matcher))
    compare = partial(_compare_losses, criterion, FastCriterionWithoutCardinality)
    losses = examine("the losses", compare, ("loss", *key))
    if losses.reason is not None:
        return [losses]
    compare = partial(_compare_losses, criterion, FastCriterion)
    return [losses, examine("the cardinality error", compare, ("cardinality", *key))]


def find_attention() -> Finding:
    """Compare the multi-scale deformable attention of RF-DETR with its replacement."""
    return examine("the attention", _compare_attention, ("attention", MSDeformAttn.forward))


def _identity(module: nn.Module) -> tuple[Hashable, ...]:
    settings = {name: value for name, value in vars(module).items() if isinstance(value, (bool, int, float))}
    settings.pop("training", None)
    return (type(module).forward, *sorted(settings.items()))


def _random_step(num_classes: int) -> tuple[Output, list[Output], dict[str, Tensor]]:
    """Return the outputs of all layers, targets, and the tensors that require gradients."""
    generator = torch.Generator().manual_seed(0)
    shape = (4, len(SIZES), NUM_GROUPS * NUM_QUERIES)
    leaves = {
        "pred_logits": torch.randn(*shape, num_classes, generator=generator).requires_grad_(),
        "pred_boxes": random_boxes(*shape, generator=generator).requires_grad_(),
    }
    layers = [dict(zip(leaves, layer, strict=True)) for layer in zip(*leaves.values(), strict=True)]
    outputs = layers[0] | {"aux_outputs": layers[1:-1], "enc_outputs": layers[-1]}
    return outputs, random_targets(SIZES, num_classes, generator), leaves


def _compare_matches(matcher: HungarianMatcher) -> None:
    last = "target_side_safety"
    check_parameters(HungarianMatcher.forward, ("outputs", "targets", "group_detr", last))
    if hasattr(HungarianMatcher, "_match_many"):
        check_parameters(HungarianMatcher._match_many, ("outputs_list", "targets", "group_detr", last))
    outputs, targets, _ = _random_step(num_classes=7)
    host = deepcopy(matcher)
    fast = deepcopy(matcher)
    fast.__class__ = FastMatcher
    layers = [outputs, *outputs["aux_outputs"], outputs["enc_outputs"]]
    for groups in (1, NUM_GROUPS):
        desired = [host(layer, targets, group_detr=groups) for layer in layers]
        for actual in (
            [fast(layer, targets, group_detr=groups) for layer in layers],
            fast._match_many(layers, targets, groups),
        ):
            check_close(_sorted_pairs(actual), _sorted_pairs(desired))


def _sorted_pairs(layers: Sequence[Pairs]) -> dict[str, Tensor]:
    return {
        f"the matches of layer {i}": torch.cat([torch.stack((q, t))[:, q.argsort()] for q, t in pairs], 1)
        for i, pairs in enumerate(layers)
    }


def _compare_losses(criterion: SetCriterion, fast_type: type[FastCriterion]) -> None:
    check_parameters(SetCriterion.forward, ("outputs", "targets", "num_boxes"))
    host = deepcopy(criterion).cpu()
    host.group_detr = min(host.group_detr, NUM_GROUPS)
    if type(host.matcher) is FastMatcher:
        host.matcher.__class__ = HungarianMatcher
    fast = deepcopy(host)
    fast.__class__ = fast_type
    for training in (True, False):
        results = []
        for module in (fast, host):
            outputs, targets, leaves = _random_step(criterion.num_classes)
            losses = module.train(training)(outputs, targets)
            # Weighted, so that errors of two losses do not cancel out.
            weighted = {name: (1 + i) * value for i, (name, value) in enumerate(sorted(losses.items()))}
            results.append(evaluate(weighted, leaves))
        check_close(*results)


def _compare_attention() -> None:
    check_parameters(MSDeformAttn.forward, parameter_names(FastAttention.forward))
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    host = MSDeformAttn(16, len(SHAPES), 2, 3)
    for layer in (host.sampling_offsets, host.attention_weights):
        nn.init.normal_(layer.weight, std=0.3)
        nn.init.normal_(layer.bias)
    fast = deepcopy(host)
    fast.__class__ = FastAttention
    size = sum(height * width for height, width in SHAPES)
    padding = torch.rand(2, size, generator=generator) > 0.8
    shapes, starts = torch.tensor(SHAPES), torch.tensor([0, SHAPES[0][0] * SHAPES[0][1]])
    for coordinates in (2, 4):
        leaves = {
            "query": torch.randn(2, 5, 16, generator=generator),
            "reference_points": torch.rand(2, 5, len(SHAPES), coordinates, generator=generator),
            "input_flatten": torch.randn(2, size, 16, generator=generator),
        }
        for leaf in leaves.values():
            leaf.requires_grad_()
        results = []
        for module in (fast, host):
            output = module(*leaves.values(), shapes, starts, padding)
            weighted = {"the output": (output * torch.arange(output.numel()).view(output.shape).cos()).sum()}
            parameters = dict(module.named_parameters())
            results.append({"the values": output.detach()} | evaluate(weighted, leaves | parameters))
        check_close(*results)


def find_all() -> list[Finding]:
    """Compare all parts of RF-DETR, with the settings of its detection models."""
    matcher = HungarianMatcher(cost_class=2, cost_bbox=5, cost_giou=2, focal_alpha=0.25)
    losses = ["labels", "boxes", "cardinality"]
    criterion = SetCriterion(91, matcher, {}, focal_alpha=0.25, losses=losses, group_detr=13, ia_bce_loss=True)
    return [find_matcher(matcher), *find_loss(criterion), find_attention()]
