"""Matching and losses of the criteria of transformers, with one call to each op for all layers.

A loss function of transformers builds a criterion at each call, passes it the outputs of the layers, and weights the
losses that it returns. Only the computation of the criterion is replaced.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
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
from detr_fast.integrations.huggingface.rebinding import FastAssignment, rebind
from detr_fast.integrations.pairs import from_pairs, to_pairs
from detr_fast.ops.metrics import cardinality_error
from detr_fast.ops.targets import Targets
from detr_fast.ops.weights import LossWeights

Losses = dict[str, Tensor]
Labels = Sequence[Mapping[str, Tensor]]


@dataclass(frozen=True)
class Family:
    """The common properties of the criteria of a loss function.

    Attributes:
        criterion: Name of the criterion class in the module of the loss function.
        weights: Returns the weights of a criterion; None if its losses are not replaced.
        classes: The entry of ``criterion.losses`` that stands for the class loss.
        class_loss: Name of the class loss in the result.
        auxiliary: Suffix of the losses of an auxiliary layer.
        weighted: Whether the criterion applies its ``weight_dict``.
        config: Name of the configuration of a model with this loss function.
    """

    criterion: str
    weights: Callable[[Any], LossWeights] | None = None
    classes: str = "labels"
    class_loss: str = "loss_ce"
    auxiliary: str = "_{}"
    weighted: bool = False
    config: str = "DetrConfig"

    @property
    def has_no_object(self) -> bool:
        """Whether the last logit stands for no object."""
        return self.criterion == "ImageLoss"


def _over_processes(num_boxes: int, device: torch.device) -> float:
    """The divisor of ImageLoss: Accelerate's mean over the processes, divided by their number again."""
    if "accelerate" not in sys.modules:  # transformers does not need it
        return float(num_boxes)
    from accelerate import PartialState
    from accelerate.utils import reduce

    if not PartialState._shared_state or PartialState().num_processes == 1:
        return float(num_boxes)
    return float(reduce(torch.full((1,), float(num_boxes), device=device))) / PartialState().num_processes


def _over_ranks(num_boxes: int, device: torch.device) -> float:
    """The divisor of LW-DETR in recent releases: the mean over the ranks of torch.distributed."""
    if not dist.is_available() or not dist.is_initialized():
        return float(num_boxes)
    total = torch.full((1,), float(num_boxes), device=device)
    dist.all_reduce(total)
    return float(total) / dist.get_world_size()


def count_boxes(criterion: Any, num_boxes: int, device: torch.device) -> float:
    """Return the divisor of the box losses of a criterion, which each release averages over processes in its own way.

    Args:
        criterion: A criterion of transformers.
        num_boxes: The number of boxes of this process.
        device: The device on which processes exchange it.

    Returns:
        The divisor, at least 1.
    """
    names = inspect.unwrap(type(criterion).forward).__code__.co_names
    count = float(num_boxes)
    if "PartialState" in names:
        count = _over_processes(num_boxes, device)
    elif "all_reduce" in names:
        count = _over_ranks(num_boxes, device)
    return max(count, 1.0)


def _softmax(criterion: Any) -> LossWeights:
    return LossWeights(no_object=criterion.eos_coef)


def _focal(criterion: Any) -> LossWeights:
    return LossWeights(class_loss="focal", focal_alpha=criterion.focal_alpha)


def _varifocal(criterion: Any) -> LossWeights:
    return LossWeights(class_loss="varifocal", focal_alpha=criterion.alpha, focal_gamma=criterion.gamma)


def _ia_bce(criterion: Any) -> LossWeights:
    return LossWeights(class_loss="ia_bce", focal_alpha=criterion.focal_alpha)


_RT_DETR = Family("RTDetrLoss", _varifocal, "vfl", "loss_vfl", "_aux_{}", weighted=True, config="RTDetrConfig")
_DEFORMABLE = Family("DeformableDetrImageLoss", _focal, config="DeformableDetrConfig")

FAMILIES = {
    "ForObjectDetectionLoss": Family("ImageLoss", _softmax),
    "ForSegmentationLoss": Family("ImageLoss", _softmax),
    "DeformableDetrForObjectDetectionLoss": _DEFORMABLE,
    "DeformableDetrForSegmentationLoss": replace(_DEFORMABLE, config="ConditionalDetrConfig"),
    "RTDetrForObjectDetectionLoss": _RT_DETR,
    "DFineForObjectDetectionLoss": replace(_RT_DETR, criterion="DFineLoss", config="DFineConfig"),
    "Deimv2ForObjectDetectionLoss": Family("Deimv2Loss", config="Deimv2Config"),
    "LwDetrForObjectDetectionLoss": Family("LwDetrImageLoss", _ia_bce, config="LwDetrConfig"),
    "RfDetrForSegmentationLoss": Family("RfDetrImageLoss", config="RfDetrConfig"),
    "GroundingDinoForObjectDetectionLoss": Family("GroundingDinoImageLoss", config="GroundingDinoConfig"),
}


class FastLoss:
    """Replaces the ``loss_function`` of a model.

    Args:
        function: The loss function of transformers.
        matcher: Whether to replace the matching.
        loss: Whether to replace the computation of the losses, if the family supports it.
        cardinality: Whether the losses that are replaced include the cardinality error.
    """

    def __init__(self, function: Callable[..., Any], *, matcher: bool, loss: bool, cardinality: bool = True) -> None:
        self.function = function
        self.matcher = matcher
        self.loss = loss
        self.cardinality = cardinality

    @property
    def family(self) -> Family:
        return FAMILIES[self.function.__name__]

    @torch.compiler.disable  # the solver breaks the graph as in transformers, and only here
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        name = self.family.criterion
        build = partial(self._build_criterion, self.function.__globals__[name])
        return rebind(self.function, **{name: build})(*args, **kwargs)

    def _build_criterion(self, build: Callable[..., nn.Module], *args: Any, **kwargs: Any) -> nn.Module:
        criterion = build(*args, **kwargs)
        if self.matcher and _can_batch(criterion):
            criterion.matcher = BatchedMatcher(criterion.matcher)  # type: ignore[arg-type]
            criterion.register_forward_pre_hook(_prepare_matcher)
        elif self.matcher:
            criterion.matcher.forward = FastAssignment(criterion.matcher)  # type: ignore[arg-type, union-attr]
        if self.loss and self.family.weights is not None:
            criterion.forward = partial(compute_losses, criterion, self.family, self.cardinality)
        return criterion


def _can_batch(criterion: Any) -> bool:
    """Return whether ``match_cost`` computes the costs of the matcher; with softmax it needs a no-object logit."""
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
    """Return the layers that are matched, each with the suffix of its losses."""
    layers = [("", outputs)]
    layers += [(auxiliary.format(i), layer) for i, layer in enumerate(outputs.get("auxiliary_outputs", ()))]
    if "enc_outputs" in outputs:
        layers.append(("_enc", outputs["enc_outputs"]))
    return layers


def compute_losses(criterion: Any, family: Family, cardinality: bool, outputs: Output, labels: Labels) -> Losses:
    """Compute the losses that ``criterion.forward`` returns.

    Args:
        criterion: A criterion of transformers.
        family: The family of the criterion.
        cardinality: Whether the cardinality error is computed here; otherwise the criterion computes it.
        outputs: The outputs of the model with those of the auxiliary layers.
        labels: ``class_labels`` [t] and ``boxes`` [t,4], cxcywh in [0,1], of each image.

    Returns:
        Scalars by the names of transformers.
    """
    groups = _groups(criterion)
    total = groups * sum(len(image["class_labels"]) for image in labels)
    num_boxes = count_boxes(criterion, total, outputs["logits"].device)
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
    own = {family.classes, "boxes", *(["cardinality"] if cardinality else [])}
    losses = _losses_of_layers(criterion, family, own, layers, matched, targets, labels, num_boxes)

    if "dn_auxiliary_outputs" in outputs:
        meta = outputs["denoising_meta_values"]
        layers = [(f"_dn_{i}", layer) for i, layer in enumerate(outputs["dn_auxiliary_outputs"])]
        index = denoising_matches(meta, targets)
        num_boxes *= meta["dn_num_group"]
        losses |= _losses_of_layers(criterion, family, own, layers, [index] * len(layers), targets, labels, num_boxes)
    return losses


def _losses_of_layers(
    criterion: Any,
    family: Family,
    own: Set[str],
    layers: Sequence[tuple[str, Output]],
    matched: Sequence[Tensor],
    targets: Targets,
    labels: Labels,
    num_boxes: float,
) -> Losses:
    """Compute the losses of layers, given the query of each target, int64 [G,T], of each layer.

    Those entries of ``criterion.losses`` that are not in ``own`` are computed by the criterion.
    """
    assert family.weights is not None
    weights = family.weights(criterion)
    suffixes = {id(layer): suffix for suffix, layer in layers}
    index_of = {id(layer): index for (_, layer), index in zip(layers, matched, strict=True)}
    losses: Losses = {}
    for stacked in group_by_shape([layer for _, layer in layers]):
        logits = torch.stack([layer["logits"] for layer in stacked])  # [L,B,Q,C]
        boxes = torch.stack([layer["pred_boxes"] for layer in stacked])
        index = torch.stack([index_of[id(layer)] for layer in stacked])  # [L,G,T]
        terms = ops.set_loss(logits, boxes, targets, index, weights=weights, num_boxes=num_boxes)
        terms[family.class_loss] = terms.pop("loss_ce")
        if "cardinality" in criterion.losses and "cardinality" in own:
            terms["cardinality_error"] = cardinality_error(logits, targets, softmax=weights.class_loss == "softmax")
        for name, values in terms.items():
            losses |= {name + suffixes[id(layer)]: value for layer, value in zip(stacked, values.unbind(), strict=True)}
    # The criterion computes losses without an op, such as those of masks, from the matches.
    for (suffix, layer), index in zip(layers, matched, strict=True):
        for name in [name for name in criterion.losses if name not in own]:
            if name == "masks" and suffix:
                continue  # transformers computes them for the last layer only
            pairs = to_pairs(index, targets, layer["logits"].shape[1])
            found = criterion.get_loss(name, layer, labels, pairs, num_boxes)
            losses |= {key + suffix: value for key, value in found.items()}
    return _apply_weights(losses, criterion.weight_dict) if family.weighted else losses


def _apply_weights(losses: Losses, weights: Mapping[str, float]) -> Losses:
    """Multiply each loss by the weight of its name without the suffix, and drop losses without a weight."""
    return {
        key: weight * value
        for key, value in losses.items()
        for name, weight in weights.items()
        if key == name or key.startswith(f"{name}_")
    }


def denoising_matches(meta: Mapping[str, Any], targets: Targets) -> Tensor:
    """Return the denoising queries of each target.

    Args:
        meta: The ``denoising_meta_values`` of the model.
        targets: The T targets.

    Returns:
        int64 [G,T], where G is the number of denoising groups.
    """
    groups = meta["dn_num_group"]
    queries = [
        query.reshape(groups, -1) for query, size in zip(meta["dn_positive_idx"], targets.sizes, strict=True) if size
    ]
    if not queries:
        return torch.zeros(groups, 0, dtype=torch.int64, device=targets.labels.device)
    return torch.cat(queries, 1).to(targets.labels.device)
