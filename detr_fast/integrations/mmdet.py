"""The integration of MMDetection 3, through its registries. In the configuration of a DETR::

    custom_imports = dict(imports=["detr_fast.integrations.mmdet"])
    model = dict(type="FastDETR", bbox_head=dict(type="FastDETRHead"),
                 train_cfg=dict(assigner=dict(type="FastHungarianAssigner")))

All other settings are kept, and matches, losses, their names and checkpoints do not change. The types
``FastDeformableDETR`` and ``FastDINO`` replace Deformable DETR and DINO; :func:`accelerate` takes other detectors with
multi-scale deformable attention after they are built.

MMDetection 3 and its continuation onedl-mmdetection are taken by what they compute. An object of a fast type compares
itself with its base class when it is built: by the parameters of the methods that it overrides and, once per process,
by the results on small random inputs. If they differ it becomes an object of the base class, and a warning in the log
names the difference. The setting ``check=False`` of each type turns this off.

MMDetection cannot be imported with mmcv-lite, which lacks the compiled ops of mmcv, unless this module is imported
first. A compiled op is then an error when it is called.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Hashable, Sequence
from copy import deepcopy
from dataclasses import replace
from functools import partial
from importlib.machinery import ModuleSpec
from importlib.metadata import packages_distributions
from types import ModuleType
from typing import Any, NoReturn, TypeVar

import torch
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
from detr_fast.integrations.mmdet_api.boxes import mean_side
from detr_fast.ops.boxes import box_xyxy_to_cxcywh
from detr_fast.ops.normalizers import count_class_weight
from detr_fast.ops.targets import Targets
from detr_fast.ops.weights import LossWeights, MatchWeights


class MissingOps(ModuleType):
    """The compiled ops of mmcv where they are not installed: each exists, and raises RuntimeError when it is called."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)

        def missing(*args: Any, **kwargs: Any) -> NoReturn:
            raise RuntimeError(f"mmcv-lite has no compiled op {name}; install mmcv, built for this release of torch")

        return missing


def _import_without_compiled_ops(name: str = "mmcv._ext") -> None:
    if importlib.util.find_spec(name) is None:
        sys.modules[name] = MissingOps(name)
        sys.modules[name].__spec__ = ModuleSpec(name, None)


_import_without_compiled_ops()

from mmcv.ops import MultiScaleDeformableAttention  # noqa: E402  (after the compiled ops are declared)
from mmdet.models.dense_heads import DETRHead  # noqa: E402
from mmdet.models.detectors import DETR, DINO, DeformableDETR  # noqa: E402
from mmdet.models.layers import SinePositionalEncoding  # noqa: E402
from mmdet.models.losses import CrossEntropyLoss, FocalLoss, GIoULoss, L1Loss  # noqa: E402
from mmdet.models.task_modules.assigners import (  # noqa: E402
    AssignResult,
    BBoxL1Cost,
    ClassificationCost,
    FocalLossCost,
    HungarianAssigner,
    IoUCost,
)
from mmdet.registry import MODELS, TASK_UTILS  # noqa: E402
from mmdet.utils import reduce_mean  # noqa: E402
from mmengine.structures import InstanceData  # noqa: E402

__all__ = [
    "FastDETR",
    "FastDETRHead",
    "FastDINO",
    "FastDeformableDETR",
    "FastFocalLoss",
    "FastHungarianAssigner",
    "FastMultiScaleDeformableAttention",
    "FastSinePositionalEncoding",
    "accelerate",
    "restore",
]

Model = TypeVar("Model", bound=nn.Module)

PACKAGE = packages_distributions().get("mmdet", ["mmdet"])[0]  # or its continuation, which has the same modules
IOU_EPS = 1e-6  # smallest area, in squared pixels, in the overlaps of MMDetection


def match_weights(match_costs: Sequence[Any]) -> MatchWeights | None:
    """Convert match costs of MMDetection to :class:`MatchWeights`.

    Args:
        match_costs: The costs of an assigner.

    Returns:
        The weights; None if ``match_cost`` does not support one of the costs.
    """
    weights = MatchWeights(0.0, 0.0, 0.0, giou_eps=IOU_EPS)
    if len({type(cost) for cost in match_costs}) < len(match_costs):
        return None
    for cost in match_costs:
        if type(cost) is ClassificationCost:
            weights = replace(weights, cost_class=cost.weight)
        elif type(cost) is FocalLossCost and not cost.binary_input:
            focal = {"focal_alpha": cost.alpha, "focal_gamma": cost.gamma, "focal_eps": cost.eps}
            weights = replace(weights, cost_class=cost.weight, class_cost="focal", **focal)
        elif type(cost) is BBoxL1Cost:
            weights = replace(
                weights, cost_bbox=cost.weight, l1_format="cxcywh" if cost.box_format == "xywh" else "xyxy"
            )
        elif type(cost) is IoUCost and cost.iou_mode in ("giou", "iou", "iof"):
            weights = replace(weights, cost_giou=cost.weight, iou_kind=cost.iou_mode)
        else:
            return None
    return weights


@TASK_UTILS.register_module()
class FastHungarianAssigner(HungarianAssigner):
    """The Hungarian assigner of MMDetection.

    Class costs (softmax or focal), L1 and GIoU, IoU or IoF are computed in one call; other costs are computed by
    MMDetection.
    """

    def __init__(self, *args: Any, check: bool = True, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if check:
            keep_or_leave(self, find_assigner(self), HungarianAssigner)

    @torch.no_grad()
    def assign(self, pred_instances: Any, gt_instances: Any, img_meta: Any = None, **kwargs: Any) -> AssignResult:
        """Assign the queries of an image to its targets.

        Args:
            pred_instances: ``scores`` [Q,C], which are logits, and ``bboxes`` [Q,4], xyxy in pixels.
            gt_instances: ``labels`` [T] and ``bboxes`` [T,4], xyxy in pixels.
            img_meta: Meta information of the image with its ``img_shape``.
            **kwargs: Ignored.

        Returns:
            For each query the one-based index of its target, 0 if it is unassigned, and the label of the target.
        """
        num_targets, num_queries = len(gt_instances), len(pred_instances)
        weights = match_weights(self.match_costs)
        if weights is not None and num_targets and num_queries:
            cost = _match_cost(weights, pred_instances, gt_instances, img_meta["img_shape"])
        else:
            costs = (
                [
                    cost(pred_instances=pred_instances, gt_instances=gt_instances, img_meta=img_meta)
                    for cost in self.match_costs
                ]
                if num_targets and num_queries
                else []
            )
            device = gt_instances.labels.device
            cost = (
                torch.stack(costs).sum(0).T[None] if costs else torch.zeros(1, num_targets, num_queries, device=device)
            )
        query = ops.batch_linear_sum_assignment(cost, [num_targets])[0]  # [T]
        # Unassigned targets are written to an extra row, which is then dropped.
        rows = query.where(query >= 0, num_queries)
        assigned = torch.zeros(num_queries + 1, dtype=torch.int64, device=query.device)
        assigned[rows] = torch.arange(1, num_targets + 1, device=query.device)
        labels = torch.full((num_queries + 1,), -1, dtype=torch.int64, device=query.device)
        labels[rows] = gt_instances.labels
        return AssignResult(num_targets, assigned[:-1], None, labels=labels[:-1])


def _match_cost(weights: MatchWeights, predicted: Any, truth: Any, size: tuple[int, int]) -> Tensor:
    """Return the costs [1,T,Q] of an image of a size, height and width in pixels."""
    boxes = _normalize(predicted.bboxes, size)
    weights = replace(weights, box_scale=mean_side([size]))
    return ops.match_cost(predicted.scores[None, None], boxes[None, None], _pack([truth], [size]), weights=weights)


@MODELS.register_module()
class FastSinePositionalEncoding(SinePositionalEncoding):
    """The sine positional encoding of MMDetection."""

    def __init__(self, *args: Any, check: bool = True, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if check:
            keep_or_leave(self, find_encoding(self), SinePositionalEncoding)

    def forward(self, mask: Tensor | None, input: Tensor | None = None) -> Tensor:
        """Encode the cells of a feature map.

        Args:
            mask: Padding mask [B,H,W], nonzero where padded; None without padding.
            input: Feature map [B,d,H,W], of which only the shape and the device are used; needed if there is no mask.

        Returns:
            The encoding [B,2F,H,W].
        """
        batch = 1
        if mask is None:
            assert input is not None
            batch = input.shape[0]
            mask = torch.zeros(1, *input.shape[-2:], dtype=torch.bool, device=input.device)
        encoding = ops.sine_position_encoding(
            mask.bool(),
            self.num_feats,
            temperature=self.temperature,
            normalize=self.normalize,
            scale=self.scale,
            eps=self.eps,
            offset=self.offset if self.normalize else 0.0,
        )
        return encoding.expand(batch, -1, -1, -1) if batch > 1 else encoding


@MODELS.register_module()
class FastMultiScaleDeformableAttention(MultiScaleDeformableAttention):
    """The multi-scale deformable attention of mmcv, without compiled ops of mmcv and on any device."""

    def __init__(self, *args: Any, check: bool = True, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if check:
            keep_or_leave(self, find_attention(self), MultiScaleDeformableAttention)

    def forward(
        self,
        query: Tensor,
        key: Tensor | None = None,
        value: Tensor | None = None,
        identity: Tensor | None = None,
        query_pos: Tensor | None = None,
        key_padding_mask: Tensor | None = None,
        reference_points: Tensor | None = None,
        spatial_shapes: Tensor | None = None,
        level_start_index: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Attend to the values of all levels; axes 0 and 1 of query, value and result swap without ``batch_first``.

        Args:
            query: [B,Q,E].
            key: Not used.
            value: [B,S,E], the features of all levels; None for those of the query.
            identity: [B,Q,E], added to the result; None for the query.
            query_pos: [B,Q,E], added to the query before it is projected; None for zero.
            key_padding_mask: [B,S], True for values that are padding; None without padding.
            reference_points: [B,Q,L,2] or [B,Q,L,4], points or boxes cxcywh in [0,1].
            spatial_shapes: int64 [L,2], height and width of each level.
            level_start_index: Not used.
            **kwargs: Not used.

        Returns:
            [B,Q,E].
        """
        assert reference_points is not None
        assert spatial_shapes is not None
        value = query if value is None else value
        identity = query if identity is None else identity
        query = query if query_pos is None else query + query_pos
        if not self.batch_first:
            query, value = query.transpose(0, 1), value.transpose(0, 1)
        value = self.value_proj(value)
        if key_padding_mask is not None:
            value = value.masked_fill(key_padding_mask[..., None].bool(), 0.0)
        points = (*query.shape[:2], self.num_heads, self.num_levels, self.num_points)
        output = ops.fused_deformable_attention(
            value.unflatten(-1, (self.num_heads, -1)),
            spatial_shapes,
            reference_points,
            self.sampling_offsets(query).view(*points, 2),
            self.attention_weights(query).view(points),
        )
        output = self.output_proj(output)
        return self.dropout(output if self.batch_first else output.transpose(0, 1)) + identity


FAST_LAYERS: dict[type[nn.Module], type[nn.Module]] = {
    MultiScaleDeformableAttention: FastMultiScaleDeformableAttention,
    SinePositionalEncoding: FastSinePositionalEncoding,
}


def accelerate(model: Model, check: bool = True) -> Model:
    """Run the multi-scale deformable attention and the positional encodings of a detector on the ops of this package.

    The model is modified in place. Outputs, gradients and checkpoints do not change. Layers that this release of
    MMDetection or mmcv computes in another way are left as they are, and a warning in the log says so.

    Args:
        model: A detector of MMDetection, such as Mask2Former or Grounding DINO.
        check: Whether to compare the layers with their replacements; otherwise all are replaced.

    Returns:
        The model.
    """
    findings: list[Finding] = []
    for module in model.modules():
        if type(module) not in FAST_LAYERS:
            continue
        if check:
            is_attention = type(module) is MultiScaleDeformableAttention
            findings.append(find_attention(module) if is_attention else find_encoding(module))
        if not check or findings[-1].reason is None:
            module.__class__ = FAST_LAYERS[type(module)]
    report(PACKAGE, findings)
    return model


def restore(model: Model) -> Model:
    """Undo :func:`accelerate`; any other model is unchanged."""
    originals = {fast: original for original, fast in FAST_LAYERS.items()}
    for module in model.modules():
        if type(module) in originals:
            module.__class__ = originals[type(module)]
    return model


@MODELS.register_module()
class FastDeformableDETR(DeformableDETR):
    """The Deformable DETR of MMDetection, which builds its layers without the registry, with the fast layers."""

    def __init__(self, *args: Any, check: bool = True, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        accelerate(self, check=check)


@MODELS.register_module()
class FastDINO(DINO):
    """The DINO of MMDetection, which builds its layers without the registry, with the fast layers."""

    def __init__(self, *args: Any, check: bool = True, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        accelerate(self, check=check)


@MODELS.register_module()
class FastFocalLoss(FocalLoss):
    """The focal loss of MMDetection, without the compiled op of mmcv on a GPU."""

    def __init__(self, *args: Any, check: bool = True, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if check:
            keep_or_leave(self, find_focal_loss(self), FocalLoss)

    def forward(self, pred: Tensor, target: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Compute the loss.

        Args:
            pred: Logits [N,C].
            target: Classes [N], C for no object, or one-hot [N,C].
            *args: As in the base class.
            **kwargs: As in the base class.

        Returns:
            The loss of the base class.
        """
        if target.dim() < pred.dim():
            target = nn.functional.one_hot(target, pred.shape[1] + 1)[:, :-1]
        return super().forward(pred, target, *args, **kwargs)


@MODELS.register_module()
class FastDETR(DETR):
    """The DETR of MMDetection, which builds its positional encoding without the registry, with the fast encoding."""

    def __init__(self, *args: Any, check: bool = True, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        accelerate(self, check=check)


@MODELS.register_module()
class FastDETRHead(DETRHead):
    """The DETR head of MMDetection, with one call to each op for all decoder layers.

    The losses CrossEntropyLoss (with ``bg_cls_weight``) or FocalLoss, L1Loss and GIoULoss, and the match costs of
    :class:`FastHungarianAssigner` are supported. With other losses or costs the base class computes the losses.
    """

    def __init__(self, *args: Any, loss_cls: Any = None, check: bool = True, **kwargs: Any) -> None:
        loss_cls = dict(loss_cls or {"type": "CrossEntropyLoss", "bg_cls_weight": 0.1, "class_weight": 1.0})
        class_weight = loss_cls.get("class_weight")
        background = loss_cls.pop("bg_cls_weight", class_weight)
        if class_weight is not None:  # the base class does this only if the type is exactly DETRHead
            num_classes = kwargs["num_classes"] if "num_classes" in kwargs else args[0]
            loss_cls["class_weight"] = [float(class_weight)] * num_classes + [float(background)]
        super().__init__(*args, loss_cls=loss_cls, **kwargs)
        if class_weight is not None:
            self.bg_cls_weight = float(background)
        if check and self.train_cfg:
            keep_or_leave(self, find_head(self), DETRHead)

    def loss_by_feat(
        self,
        all_layers_cls_scores: Tensor,
        all_layers_bbox_preds: Tensor,
        batch_gt_instances: list[Any],
        batch_img_metas: list[dict[str, Any]],
        batch_gt_instances_ignore: None = None,
    ) -> dict[str, Tensor]:
        """Compute the losses of all decoder layers.

        Args:
            all_layers_cls_scores: Class logits [L,B,Q,C].
            all_layers_bbox_preds: Boxes [L,B,Q,4], cxcywh in [0,1].
            batch_gt_instances: ``labels`` [t] and ``bboxes`` [t,4], xyxy in pixels, of each image.
            batch_img_metas: Meta information of each image with its ``img_shape``.
            batch_gt_instances_ignore: Not supported, as in the base class.

        Returns:
            The losses by the names of MMDetection.
        """
        sizes = [meta["img_shape"] for meta in batch_img_metas]
        match = match_weights(getattr(self.assigner, "match_costs", [None]))
        loss = self._loss_weights(mean_side(sizes))
        if match is None or loss is None:
            return super().loss_by_feat(
                all_layers_cls_scores, all_layers_bbox_preds, batch_gt_instances, batch_img_metas
            )
        logits, boxes = all_layers_cls_scores, all_layers_bbox_preds
        targets = _pack(batch_gt_instances, sizes)
        with torch.no_grad():
            cost = ops.match_cost(logits, boxes, targets, weights=replace(match, box_scale=mean_side(sizes)))
            index = ops.batch_linear_sum_assignment(cost, targets)
        num_queries = logits.shape[2]
        matched = logits.new_tensor([float(sum(min(size, num_queries) for size in targets.sizes))])
        num_boxes = reduce_mean(matched).clamp(min=1)
        class_normalizer = logits.new_tensor([count_class_weight(targets, num_queries, loss)])
        if self.sync_cls_avg_factor:
            class_normalizer = reduce_mean(class_normalizer)
        terms = ops.set_loss(
            logits,
            boxes,
            targets,
            index,
            weights=loss,
            num_boxes=num_boxes,
            class_normalizer=class_normalizer.clamp(min=1),
        )
        if (
            loss.class_loss == "focal"
        ):  # divided by the pairs of this rank, unless the divisor is averaged over the ranks
            positives = reduce_mean(matched) if self.sync_cls_avg_factor else matched
            terms["loss_ce"] = terms["loss_ce"] * num_boxes / positives.clamp(min=1)
        names = {"loss_cls": ("loss_ce", self.loss_cls), "loss_bbox": ("loss_bbox", self.loss_bbox)}
        names["loss_iou"] = ("loss_giou", self.loss_iou)
        losses = {}
        for name, (term, module) in names.items():
            *auxiliary, final = (terms[term] * module.loss_weight).unbind()
            losses[name] = final
            losses |= {f"d{layer}.{name}": value for layer, value in enumerate(auxiliary)}
        return losses

    def _loss_weights(self, side: float) -> LossWeights | None:
        if type(self.loss_bbox) is not L1Loss or type(self.loss_iou) is not GIoULoss:
            return None
        weights = LossWeights(normalizer="matched", giou_eps=self.loss_iou.eps, box_scale=side)
        if type(self.loss_cls) is FocalLoss and self.loss_cls.use_sigmoid and not self.loss_cls.activated:
            focal = {"focal_alpha": self.loss_cls.alpha, "focal_gamma": self.loss_cls.gamma}
            return replace(weights, class_loss="focal", no_object=0.0, **focal)
        of_classes = self.loss_cls.class_weight
        softmax = (
            type(self.loss_cls) is CrossEntropyLoss and not self.loss_cls.use_sigmoid and not self.loss_cls.use_mask
        )
        if softmax and of_classes is not None and all(weight == 1 for weight in of_classes[:-1]):
            return replace(weights, no_object=self.bg_cls_weight, min_class_normalizer=1.0)
        return None


def _normalize(corners: Tensor, size: tuple[int, int]) -> Tensor:
    """Convert boxes [N,4] from xyxy in pixels to cxcywh as fractions of the image."""
    height, width = size
    boxes = corners / corners.new_tensor([width, height, width, height])
    return box_xyxy_to_cxcywh(boxes)


def _pack(instances: Sequence[Any], sizes: Sequence[tuple[int, int]]) -> Targets:
    return Targets.from_list(
        [
            {"labels": image.labels, "boxes": _normalize(_as_tensor(image.bboxes), size)}
            for image, size in zip(instances, sizes, strict=True)
        ]
    )


def _as_tensor(boxes: Any) -> Tensor:
    return boxes if isinstance(boxes, Tensor) else boxes.tensor  # a box type of MMDetection that contains a tensor


IMAGE = (480, 640)


def keep_or_leave(module: Any, finding: Finding, base: type) -> None:
    """Make an object of a fast type one of its base class if both compute something else, and say so."""
    if finding.reason is not None and type(module) in FAST_TYPES:
        module.__class__ = base
        report(PACKAGE, [finding])


def find_assigner(assigner: HungarianAssigner) -> Finding:
    """Compare the assignments of an assigner with those of MMDetection."""
    return examine(
        "the assigner",
        partial(_compare_assigners, assigner),
        ("assigner", HungarianAssigner.assign, _identity(*assigner.match_costs)),
    )


def find_encoding(encoding: SinePositionalEncoding) -> Finding:
    """Compare a positional encoding with that of MMDetection."""
    return examine(
        "the positional encoding",
        partial(_compare_encodings, encoding),
        ("encoding", SinePositionalEncoding.forward, _identity(encoding)),
    )


def find_attention(attention: MultiScaleDeformableAttention) -> Finding:
    """Compare the multi-scale deformable attention of mmcv with its replacement."""
    return examine(
        "the multi-scale deformable attention",
        partial(_compare_attentions, attention.batch_first),
        ("attention", MultiScaleDeformableAttention.forward, attention.batch_first),
    )


def find_focal_loss(loss: FocalLoss) -> Finding:
    """Compare a focal loss with that of MMDetection."""
    return examine(
        "the focal loss", partial(_compare_focal_losses, loss), ("focal", FocalLoss.forward, _identity(loss))
    )


def find_head(head: DETRHead) -> Finding:
    """Compare the losses of a head, and their gradients, with those of MMDetection."""
    parts = (head.loss_cls, head.loss_bbox, head.loss_iou, *getattr(head.assigner, "match_costs", ()))
    key = ("head", DETRHead.loss_by_feat, head.num_classes, _identity(head, *parts))
    return examine("the losses of the head", partial(_compare_heads, head), key)


def find_all() -> list[Finding]:
    """Compare all parts of MMDetection, with the settings that it ships for DETR and Deformable DETR."""
    costs = [
        {"type": ClassificationCost, "weight": 1.0},
        {"type": BBoxL1Cost, "weight": 5.0, "box_format": "xywh"},
        {"type": IoUCost, "iou_mode": "giou", "weight": 2.0},
    ]
    assigner = HungarianAssigner(costs)
    head = FastDETRHead(
        num_classes=7,
        embed_dims=16,
        loss_cls={"type": CrossEntropyLoss, "bg_cls_weight": 0.1, "class_weight": 1.0},
        loss_bbox={"type": L1Loss, "loss_weight": 5.0},
        loss_iou={"type": GIoULoss, "loss_weight": 2.0},
        train_cfg={"assigner": {"type": HungarianAssigner, "match_costs": costs}},
        check=False,
    )
    attention = MultiScaleDeformableAttention(16, 2, len(SHAPES), 3, batch_first=True)
    encoding = SinePositionalEncoding(8, normalize=True)
    return [
        find_assigner(assigner),
        find_head(head),
        find_encoding(encoding),
        find_attention(attention),
        find_focal_loss(FocalLoss()),
    ]


def _identity(*objects: Any) -> Hashable:
    plain = (bool, int, float, str, type(None))
    return tuple(
        (type(part), *sorted((k, v) for k, v in vars(part).items() if isinstance(v, plain) and k != "training"))
        for part in objects
    )


def _with_class(module: Any, of: type) -> Any:
    """Return a copy of a module as an object of another class."""
    twin = deepcopy(module)
    twin.__class__ = of
    return twin.cpu() if isinstance(twin, nn.Module) else twin


def _instances(generator: torch.Generator, num_classes: int) -> list[InstanceData]:
    height, width = IMAGE
    scale = torch.tensor([width, height, width, height])
    return [
        InstanceData(bboxes=_corners(image["boxes"]) * scale, labels=image["labels"])
        for image in random_targets(SIZES, num_classes, generator)
    ]


def _corners(boxes: Tensor) -> Tensor:
    center, size = boxes.split(2, -1)
    return torch.cat((center - size / 2, center + size / 2), -1)


def _compare_assigners(assigner: HungarianAssigner) -> None:
    check_parameters(HungarianAssigner.assign, parameter_names(FastHungarianAssigner.assign))
    generator = torch.Generator().manual_seed(0)
    meta = {"img_shape": IMAGE}
    host, fast = (_with_class(assigner, of) for of in (HungarianAssigner, FastHungarianAssigner))
    _compare_costs(assigner.match_costs)
    for truth in _instances(generator, num_classes=7):
        predicted = _predictions(generator)
        actual, desired = (side.assign(predicted, truth, meta) for side in (fast, host))
        check_close(*({"gt_inds": found.gt_inds, "labels": found.labels} for found in (actual, desired)))


def _predictions(generator: torch.Generator) -> InstanceData:
    boxes = _corners(random_boxes(NUM_QUERIES, generator=generator)) * torch.tensor([IMAGE[1], IMAGE[0]] * 2)
    return InstanceData(scores=torch.randn(NUM_QUERIES, 8, generator=generator), bboxes=boxes)


def _compare_costs(match_costs: Sequence[Any]) -> None:
    weights = match_weights(match_costs)
    if weights is None:
        return  # MMDetection computes them
    generator = torch.Generator().manual_seed(0)
    truth, predicted = _instances(generator, num_classes=7)[0], _predictions(generator)
    desired = [
        cost(pred_instances=predicted, gt_instances=truth, img_meta={"img_shape": IMAGE}) for cost in match_costs
    ]
    actual = _match_cost(weights, predicted, truth, IMAGE)
    check_close({"the cost": actual[0].T}, {"the cost": torch.stack(desired).sum(0)})


def _compare_encodings(encoding: SinePositionalEncoding) -> None:
    names = parameter_names(SinePositionalEncoding.forward)
    check_parameters(SinePositionalEncoding.forward, parameter_names(FastSinePositionalEncoding.forward))
    host, fast = (_with_class(encoding, of) for of in (SinePositionalEncoding, FastSinePositionalEncoding))
    mask = torch.zeros(2, 6, 7)
    mask[1, -2:] = 1
    mask[1, :, -3:] = 1
    cases: list[tuple[Any, ...]] = [(mask,)]
    if "input" in names:
        cases.append((None, torch.zeros(2, 4, 6, 7)))
    for given in cases:
        check_close({"the encoding": fast(*given)}, {"the encoding": host(*given)})


def _compare_attentions(batch_first: bool) -> None:
    check_parameters(MultiScaleDeformableAttention.forward, parameter_names(FastMultiScaleDeformableAttention.forward))
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    host = MultiScaleDeformableAttention(16, 2, len(SHAPES), 3, batch_first=batch_first, dropout=0.0)
    for layer in (host.sampling_offsets, host.attention_weights):
        nn.init.normal_(layer.weight, std=0.3)
        nn.init.normal_(layer.bias)
    fast = _with_class(host, FastMultiScaleDeformableAttention)
    size = sum(height * width for height, width in SHAPES)
    shapes, starts = torch.tensor(SHAPES), torch.tensor([0, SHAPES[0][0] * SHAPES[0][1]])
    padding = torch.rand(2, size, generator=generator) > 0.8
    for coordinates in (2, 4):
        leaves = {
            "query": torch.randn(2, 5, 16, generator=generator),
            "value": torch.randn(2, size, 16, generator=generator),
            "query_pos": torch.randn(2, 5, 16, generator=generator),
            "reference_points": torch.rand(2, 5, len(SHAPES), coordinates, generator=generator),
        }
        for leaf in leaves.values():
            leaf.requires_grad_()
        given = dict(leaves)
        if not batch_first:
            given |= {name: given[name].transpose(0, 1) for name in ("query", "value", "query_pos")}
        given |= {"spatial_shapes": shapes, "level_start_index": starts, "key_padding_mask": padding}
        results = []
        for module in (fast, host):
            output = module(**given)
            weighted = {"the output": (output * torch.arange(output.numel()).view(output.shape).cos()).sum()}
            parameters = dict(module.named_parameters())
            results.append({"the values": output.detach()} | evaluate(weighted, leaves | parameters))
        check_close(*results)


def _compare_focal_losses(loss: FocalLoss) -> None:
    generator = torch.Generator().manual_seed(0)
    leaves = {"pred": torch.randn(20, 7, generator=generator).requires_grad_()}
    target, weight = torch.randint(8, (20,), generator=generator), torch.rand(20, generator=generator)
    sides = [_with_class(loss, of) for of in (FastFocalLoss, FocalLoss)]
    results = [{"the loss": side(leaves["pred"], target, weight, avg_factor=3.0).sum()} for side in sides]
    check_close(*(evaluate(result, leaves) for result in results))


def _compare_heads(head: DETRHead) -> None:
    check_parameters(DETRHead.loss_by_feat, parameter_names(FastDETRHead.loss_by_feat))
    host, fast = (_with_class(head, of) for of in (DETRHead, FastDETRHead))
    _compare_costs(getattr(head.assigner, "match_costs", [None]))
    for side in (host, fast):
        if type(side.assigner) is FastHungarianAssigner:
            side.assigner.__class__ = HungarianAssigner
    generator = torch.Generator().manual_seed(0)
    shape = (3, len(SIZES), NUM_QUERIES)
    leaves = {
        "logits": torch.randn(*shape, head.cls_out_channels, generator=generator).requires_grad_(),
        "boxes": random_boxes(*shape, generator=generator).requires_grad_(),
    }
    instances = _instances(generator, head.num_classes)
    metas = [{"img_shape": IMAGE} for _ in SIZES]
    results = []
    for side in (fast, host):
        losses = side.loss_by_feat(*leaves.values(), instances, metas)
        # Weighted, so that errors of two losses do not cancel out.
        weighted = {name: (1 + i) * losses[name] for i, name in enumerate(sorted(losses))}
        results.append(evaluate(weighted, leaves))
    check_close(*results)


FAST_TYPES = (
    FastHungarianAssigner,
    FastSinePositionalEncoding,
    FastMultiScaleDeformableAttention,
    FastFocalLoss,
    FastDETRHead,
)
