"""The criteria of transformers, their matching and losses computed by our ops for all layers at once.

A loss function of transformers builds a criterion at each call, hands it the layers' outputs and weighs what comes
back. Only what the criterion computes is replaced.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from accelerate import PartialState
from accelerate.utils import reduce
from torch import Tensor, nn

from detr_fast import ops
from detr_fast.integrations.huggingface.matching import (
    MATCHERS,
    BatchedMatcher,
    Output,
    group_by_shape,
    match_weights,
    pack_labels,
)
from detr_fast.integrations.huggingface.rebinding import OwnAssignment, rebind
from detr_fast.integrations.pairs import from_pairs, to_pairs
from detr_fast.ops.metrics import cardinality_error
from detr_fast.ops.targets import Targets
from detr_fast.ops.weights import LossWeights

Losses = dict[str, Tensor]
Labels = Sequence[Mapping[str, Tensor]]


@dataclass(frozen=True)
class Family:
    """What the criteria of one loss function have in common."""

    criterion: str  # the name under which the loss function looks its criterion up
    weights: Callable[[Any], LossWeights] | None = None  # of a criterion; None: its losses stay its own
    classes: str = "labels"  # the entry of criterion.losses that ours takes the place of
    class_loss: str = "loss_ce"  # and the name of its result
    auxiliary: str = "_{}"  # suffix of an auxiliary layer's losses
    weighted: bool = False  # the criterion itself applies its weight_dict
    count: Callable[[int, torch.device], float] = lambda num_boxes, device: float(
        num_boxes
    )  # the divisor of the box losses, from this process's number


def _over_processes(num_boxes: int, device: torch.device) -> float:
    """As ImageLoss counts: accelerate's mean over the processes, divided by their number once more."""
    if not PartialState._shared_state or PartialState().num_processes == 1:
        return float(num_boxes)
    return float(reduce(torch.full((1,), float(num_boxes), device=device))) / PartialState().num_processes


def _over_ranks(num_boxes: int, device: torch.device) -> float:
    """As LW-DETR counts: the mean over torch's ranks."""
    if not dist.is_available() or not dist.is_initialized():
        return float(num_boxes)
    total = torch.full((1,), float(num_boxes), device=device)
    dist.all_reduce(total)
    return float(total) / dist.get_world_size()


def _softmax(criterion: Any) -> LossWeights:
    return LossWeights(no_object=criterion.eos_coef)


def _focal(criterion: Any) -> LossWeights:
    return LossWeights(class_loss="focal", focal_alpha=criterion.focal_alpha)


def _varifocal(criterion: Any) -> LossWeights:
    return LossWeights(class_loss="varifocal", focal_alpha=criterion.alpha, focal_gamma=criterion.gamma)


def _ia_bce(criterion: Any) -> LossWeights:
    return LossWeights(class_loss="ia_bce", focal_alpha=criterion.focal_alpha)


_RT_DETR = Family("RTDetrLoss", _varifocal, "vfl", "loss_vfl", "_aux_{}", weighted=True)

FAMILIES = {
    "ForObjectDetectionLoss": Family("ImageLoss", _softmax, count=_over_processes),
    "ForSegmentationLoss": Family("ImageLoss", _softmax, count=_over_processes),
    "DeformableDetrForObjectDetectionLoss": Family("DeformableDetrImageLoss", _focal, count=_over_processes),
    "DeformableDetrForSegmentationLoss": Family("DeformableDetrImageLoss", _focal, count=_over_processes),
    "RTDetrForObjectDetectionLoss": _RT_DETR,
    "DFineForObjectDetectionLoss": replace(_RT_DETR, criterion="DFineLoss"),
    "Deimv2ForObjectDetectionLoss": Family("Deimv2Loss"),
    "LwDetrForObjectDetectionLoss": Family("LwDetrImageLoss", _ia_bce, count=_over_ranks),
    "RfDetrForSegmentationLoss": Family("RfDetrImageLoss"),
    "GroundingDinoForObjectDetectionLoss": Family("GroundingDinoImageLoss"),
}


class FastLoss:
    """Takes the place of a model's ``loss_function``.

    Args:
        original: the loss function of transformers.
        matcher: match with our ops.
        loss: compute the losses with our ops, where the family's are among those we have.
    """

    def __init__(self, original: Callable[..., Any], *, matcher: bool, loss: bool) -> None:
        self.original = original
        self.matcher = matcher
        self.loss = loss

    @property
    def family(self) -> Family:
        return FAMILIES[self.original.__name__]

    @torch.compiler.disable  # a solver on the host, as theirs: the graph breaks here and nowhere else
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        name = self.family.criterion
        build = partial(self._build_criterion, self.original.__globals__[name])
        return rebind(self.original, **{name: build})(*args, **kwargs)

    def _build_criterion(self, theirs: Callable[..., nn.Module], *args: Any, **kwargs: Any) -> nn.Module:
        criterion = theirs(*args, **kwargs)
        if self.matcher and _can_batch(criterion):
            criterion.matcher = BatchedMatcher(criterion.matcher)  # type: ignore[arg-type]
            criterion.register_forward_pre_hook(_prepare_matcher)
        elif self.matcher:
            criterion.matcher.forward = OwnAssignment(criterion.matcher)  # type: ignore[arg-type, union-attr]
        if self.loss and self.family.weights is not None:
            criterion.forward = partial(compute_losses, criterion, self.family)
        return criterion


def _can_batch(criterion: Any) -> bool:
    """Whether our costs are those of the criterion's matcher; softmax ones want no-object among the logits."""
    if type(criterion.matcher).__name__ not in MATCHERS:
        return False
    return match_weights(criterion.matcher).class_cost == "focal" or type(criterion).__name__ == "ImageLoss"


def _prepare_matcher(criterion: nn.Module, arguments: tuple[Output, Labels]) -> None:
    outputs, labels = arguments
    assert isinstance(criterion.matcher, BatchedMatcher)
    criterion.matcher.prepare([layer for _, layer in _layers(outputs, "")], pack_labels(labels), _groups(criterion))


def _groups(criterion: Any) -> int:
    return getattr(criterion, "group_detr", 1)


def _layers(outputs: Output, auxiliary: str) -> list[tuple[str, Output]]:
    """The layers that are matched, each with the suffix of its losses' names."""
    layers = [("", outputs)]
    layers += [(auxiliary.format(i), layer) for i, layer in enumerate(outputs.get("auxiliary_outputs", ()))]
    if "enc_outputs" in outputs:
        layers.append(("_enc", outputs["enc_outputs"]))
    return layers


def compute_losses(criterion: Any, family: Family, outputs: Output, labels: Labels) -> Losses:
    """What ``criterion.forward`` returns, by the same names."""
    groups = _groups(criterion)
    total = groups * sum(len(image["class_labels"]) for image in labels)
    num_boxes = max(family.count(total, outputs["logits"].device), 1.0)
    layers = _layers(outputs, family.auxiliary)
    if isinstance(criterion.matcher, BatchedMatcher):
        targets = criterion.matcher.targets
        matched = [criterion.matcher.matched[id(layer["logits"])] for _, layer in layers]
    else:
        targets = pack_labels(labels)
        with_groups = {"group_detr": groups} if groups > 1 else {}
        matched = [
            from_pairs(criterion.matcher(layer, labels, **with_groups), targets, layer["logits"].shape[1], groups)
            for _, layer in layers
        ]
    losses = _losses_of_layers(criterion, family, layers, matched, targets, labels, num_boxes)

    if "dn_auxiliary_outputs" in outputs:
        meta = outputs["denoising_meta_values"]
        layers = [(f"_dn_{i}", layer) for i, layer in enumerate(outputs["dn_auxiliary_outputs"])]
        index = denoising_matches(meta, targets)
        num_boxes *= meta["dn_num_group"]
        losses |= _losses_of_layers(criterion, family, layers, [index] * len(layers), targets, labels, num_boxes)
    return losses


def _losses_of_layers(
    criterion: Any,
    family: Family,
    layers: Sequence[tuple[str, Output]],
    matched: Sequence[Tensor],  # for each layer [G,T]
    targets: Targets,
    labels: Labels,
    num_boxes: float,
) -> Losses:
    assert family.weights is not None
    weights = family.weights(criterion)
    suffixes = {id(layer): suffix for suffix, layer in layers}
    index_of = {id(layer): index for (_, layer), index in zip(layers, matched, strict=True)}
    losses: Losses = {}
    for alike in group_by_shape([layer for _, layer in layers]):
        logits = torch.stack([layer["logits"] for layer in alike])  # [L,B,Q,C]
        boxes = torch.stack([layer["pred_boxes"] for layer in alike])
        index = torch.stack([index_of[id(layer)] for layer in alike])  # [L,G,T]
        terms = ops.set_loss(logits, boxes, targets, index, weights=weights, num_boxes=num_boxes)
        terms[family.class_loss] = terms.pop("loss_ce")
        if "cardinality" in criterion.losses:
            terms["cardinality_error"] = cardinality_error(logits, targets, softmax=weights.class_loss == "softmax")
        for name, values in terms.items():
            losses |= {name + suffixes[id(layer)]: value for layer, value in zip(alike, values.unbind(), strict=True)}
    # What we have no op for, as masks and distributions over box edges, the criterion computes from our matches.
    for (suffix, layer), index in zip(layers, matched, strict=True):
        for name in [name for name in criterion.losses if name not in (family.classes, "boxes", "cardinality")]:
            if name == "masks" and suffix:
                continue  # theirs are of the last layer only
            pairs = to_pairs(index, targets, layer["logits"].shape[1])
            found = criterion.get_loss(name, layer, labels, pairs, num_boxes)
            losses |= {key + suffix: value for key, value in found.items()}
    return _weigh(losses, criterion.weight_dict) if family.weighted else losses


def _weigh(losses: Losses, weights: Mapping[str, float]) -> Losses:
    """Each loss times the weight of its name without the suffix, those without a weight left out."""
    return {
        key: weight * value
        for key, value in losses.items()
        for name, weight in weights.items()
        if key == name or key.startswith(f"{name}_")
    }


def denoising_matches(meta: Mapping[str, Any], targets: Targets) -> Tensor:
    """The denoising queries [G,T] that were made from each target."""
    groups = meta["dn_num_group"]
    queries = [
        query.reshape(groups, -1) for query, size in zip(meta["dn_positive_idx"], targets.sizes, strict=True) if size
    ]
    if not queries:
        return torch.zeros(groups, 0, dtype=torch.int64, device=targets.labels.device)
    return torch.cat(queries, 1).to(targets.labels.device)
