"""DETR's matcher and set criterion, on top of the ops; both need PyTorch only."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple, Never

import torch
import torch.distributed as dist
from torch import Tensor, nn

from detr_fast.ops.arguments import as_integer
from detr_fast.ops.batch_linear_sum_assignment import batch_linear_sum_assignment
from detr_fast.ops.match_cost import match_cost
from detr_fast.ops.metrics import cardinality_error, class_error
from detr_fast.ops.normalizers import at_least, count_boxes, count_class_weight
from detr_fast.ops.set_loss import weighted_set_loss
from detr_fast.ops.targets import LARGEST_FRACTION, Targets
from detr_fast.ops.tracing import is_tracing
from detr_fast.ops.weights import LossWeights, MatchWeights, check_agreement, check_weights

# What a call (outputs, targets) leaves out, as facebookresearch/detr's matcher and criterion are called.
_ABSENT: Any = None

PRESETS = ("detr", "mmdet2", "mmdet3", "deformable", "rt_detr", "lw_detr")


class HungarianMatcher(nn.Module):
    """Bipartite matching of queries and targets, for all decoder layers and images in one call to each op.

    Args:
        weights: Costs of the matching; those of :meth:`MatchWeights.detr` by default.
        groups: Number of query groups. Each target is matched once in each group.

    Raises:
        TypeError: An argument is of another type, or one of facebookresearch/detr's.
        ValueError: ``groups`` is below 1.
    """

    def __init__(self, weights: MatchWeights | None = None, *, groups: int = 1, **others: Never) -> None:
        super().__init__()
        _refuse_others("HungarianMatcher", others, "HungarianMatcher(MatchWeights(cost_class=1.0, cost_bbox=5.0))")
        self.weights = MatchWeights() if weights is None else weights
        check_weights("weights", self.weights, MatchWeights)
        self.groups = as_integer("groups", groups)
        if self.groups < 1:
            raise ValueError(f"groups must be at least 1, got {groups}")

    @torch.no_grad()
    def forward(self, logits: Tensor, boxes: Tensor, targets: Targets = _ABSENT) -> Tensor:
        """Match each target to a query of its image.

        Args:
            logits: Class logits [L,B,Q,C].
            boxes: Predicted boxes [L,B,Q,4], cxcywh in [0,1].
            targets: Targets of the same B images.

        Returns:
            The index of the query that each target is matched to, -1 where it is unmatched: int64 [L,T], or [L,G,T]
            with more than one group.

        Raises:
            TypeError: An argument is of another type; the message says how to convert the outputs and targets of
                facebookresearch/detr.
            ValueError: As in :func:`match_cost` and :func:`batch_linear_sum_assignment`.
        """
        _refuse_output_dictionary(logits)
        cost = match_cost(logits, boxes, targets, weights=self.weights, groups=self.groups)
        return batch_linear_sum_assignment(cost, targets, groups=self.groups)


class CriterionOutput(NamedTuple):
    """The output of :class:`SetCriterion`.

    Attributes:
        total: Scalar, the weighted sum of all losses over all layers, to call ``backward`` on.
        terms: Scalars by name: the losses before weighting, and the errors that are logged beside them.
    """

    total: Tensor
    terms: dict[str, Tensor]


class SetCriterion(nn.Module):
    """The loss of DETR (https://arxiv.org/abs/2005.12872, section 3.1), applied to each decoder layer.

    In a distributed run the divisors of the box losses and of the cross-entropy are averaged over the ranks, so that
    the gradients equal those of a single process with the entire batch. With ``sync_class_normalizer=False`` of
    :class:`LossWeights` the divisor of the cross-entropy is that of each rank, as in MMDetection. In evaluation mode
    both are those of the rank, whose number of batches may differ from that of the others.

    Args:
        match: Costs of the matching; those of :meth:`MatchWeights.detr` by default.
        loss: Weights of the losses; those of :meth:`LossWeights.detr` by default.
        groups: Number of query groups; 1 unless the model is a Group DETR.

    Raises:
        TypeError: An argument is of another type, or one of facebookresearch/detr's.
        ValueError: The costs are those of a softmax with a no-object class and the losses those of sigmoids, or vice
            versa; or ``groups`` is below 1.
    """

    _warned_of_boxes = False  # the numbers in the warning differ, so that Python would repeat it at each step

    def __init__(
        self,
        match: MatchWeights | None = None,
        loss: LossWeights | None = None,
        *,
        groups: int = 1,
        **others: Never,
    ) -> None:
        super().__init__()
        example = "SetCriterion(MatchWeights(cost_class=1.0), LossWeights(loss_bbox=5.0, no_object=0.1))"
        _refuse_others("SetCriterion", others, example)
        match, loss = MatchWeights() if match is None else match, LossWeights() if loss is None else loss
        check_weights("match", match, MatchWeights)
        check_weights("loss", loss, LossWeights)
        self.matcher = HungarianMatcher(match, groups=groups)
        self.weights = loss
        check_agreement(self.matcher.weights, self.weights)

    @classmethod
    def preset(cls, name: str) -> SetCriterion:
        """Build the criterion of an implementation.

        Args:
            name: ``"detr"`` (facebookresearch/detr), ``"mmdet2"`` (the DETR head of MMDetection 2.11), ``"mmdet3"``
                (MMDetection 3.3), ``"deformable"`` (Deformable DETR), ``"rt_detr"`` or ``"lw_detr"``. The class
                methods of :class:`MatchWeights` and :class:`LossWeights` of that name have the details.

        Raises:
            ValueError: There is no preset of that name.
        """
        if name not in PRESETS:
            raise ValueError(f"there is no preset {name!r}; the presets are {', '.join(PRESETS)}")
        return cls(getattr(MatchWeights, name)(), getattr(LossWeights, name)())

    def forward(self, logits: Tensor, boxes: Tensor, targets: Targets = _ABSENT) -> CriterionOutput:
        """Match queries and targets, and compute all losses.

        Predicted boxes in pixels or with a negative side are computed, and on the CPU the first are warned of. On a GPU
        they are not read, which would synchronize.

        Args:
            logits: Class logits [L,B,Q,C]; layer L-1 is the output of the model.
            boxes: Predicted boxes [L,B,Q,4], cxcywh in [0,1].
            targets: Targets of the same B images.

        Returns:
            The total and the terms, named as in facebookresearch/detr: ``loss_ce``, ``loss_bbox``, ``loss_giou`` and
            ``cardinality_error`` for the last layer, the same with the suffixes ``_0`` to ``_{L-2}`` for the auxiliary
            layers, and ``class_error`` in percent for the last layer.

        Raises:
            TypeError: An argument is of another type; the message says how to convert the outputs and targets of
                facebookresearch/detr.
            ValueError: As in :func:`match_cost`, :func:`batch_linear_sum_assignment` and :func:`set_loss`.
        """
        _refuse_output_dictionary(logits)
        query_index = self.matcher(logits, boxes, targets)
        self._warn_of_boxes(boxes.detach())
        num_boxes, class_normalizer = loss_divisors(
            logits, targets, self.weights, groups=self.matcher.groups, synchronize=self.training
        )
        total, losses = weighted_set_loss(
            logits,
            boxes,
            targets,
            query_index,
            weights=self.weights,
            num_boxes=num_boxes,
            class_normalizer=class_normalizer,
        )
        with torch.no_grad():
            errors = {
                "cardinality_error": cardinality_error(logits, targets, softmax=self.weights.class_loss == "softmax")
            }
            terms = _by_layer({**losses, **errors})
            terms["class_error"] = class_error(logits[-1], targets, query_index[-1])
        return CriterionOutput(total, terms)

    def _warn_of_boxes(self, boxes: Tensor) -> None:
        """Warn once of predicted boxes in pixels or with a negative side, where reading them does not synchronize."""
        if is_tracing(boxes) or self._warned_of_boxes or boxes.device.type != "cpu" or not boxes.numel():
            return
        largest, smallest_side = float(boxes.max()), float(boxes[..., 2:].min())
        if largest > LARGEST_FRACTION or smallest_side < 0:
            self._warned_of_boxes = True
            what = f"contain {largest:.4g}" if largest > LARGEST_FRACTION else f"have a side of {smallest_side:.4g}"
            warnings.warn(
                f"the predicted boxes {what}; expected (cx, cy, width, height) in [0,1]. Are they in pixels, or "
                "corners, or is the sigmoid missing?",
                stacklevel=5,  # of the call of the module
            )


def loss_divisors(
    logits: Tensor, targets: Targets, weights: LossWeights, *, groups: int = 1, synchronize: bool = True
) -> tuple[Tensor | float, Tensor | float]:
    """Compute the divisors of the losses, in a distributed run over all ranks.

    Args:
        logits: Class logits [L,B,Q,C], of which only the shape and the device are used.
        targets: Targets of the same B images.
        weights: Which divisors, their minimum, and whether that of the cross-entropy is averaged over the ranks.
        groups: Number of query groups.
        synchronize: Whether divisors are averaged over the ranks, all of which then have to call the function.

    Returns:
        The divisors of the box losses and of the cross-entropy.
    """
    num_queries = logits.shape[2]
    boxes: Tensor | float = count_boxes(targets, num_queries, weights, groups=groups)
    classes: Tensor | float = count_class_weight(targets, num_queries, weights, groups=groups)
    if synchronize and dist.is_available() and dist.is_initialized():
        # new_full fills on the device; a tensor of host values would be copied, which synchronizes.
        both = torch.stack(
            [n if isinstance(n, Tensor) else logits.new_full((), n, dtype=torch.float32) for n in (boxes, classes)]
        )
        dist.all_reduce(both)
        boxes, mean_classes = (both / dist.get_world_size()).unbind()
        if weights.sync_class_normalizer:
            classes = mean_classes
    return at_least(boxes, 1), at_least(classes, weights.min_class_normalizer)


def _refuse_others(name: str, others: Mapping[str, Any], example: str) -> None:
    """Raise TypeError where keyword arguments of facebookresearch/detr, or unknown ones, were given."""
    if others:
        raise TypeError(
            f"{name} got an unexpected argument {next(iter(others))!r}; unlike facebookresearch/detr's, it takes costs "
            f"and weights of losses as MatchWeights and LossWeights, for example {example}"
        )


def _refuse_output_dictionary(logits: Any) -> None:
    """Raise TypeError for a call with the dictionary of outputs that facebookresearch/detr's model returns."""
    if isinstance(logits, Mapping):
        raise TypeError(
            "expected (logits, boxes, targets), got a dictionary of outputs; stack the layers, the last one last: "
            "logits = torch.stack([*(x['pred_logits'] for x in outputs['aux_outputs']), outputs['pred_logits']]), "
            "boxes alike of 'pred_boxes', and targets = Targets.from_list(targets)"
        )


def _by_layer(terms: dict[str, Tensor]) -> dict[str, Tensor]:
    """Split terms [L] into scalars, the auxiliary layers' with a suffix."""
    named = {}
    for name, layers in terms.items():
        *auxiliary, final = layers.unbind()
        named[name] = final
        named.update({f"{name}_{i}": value for i, value in enumerate(auxiliary)})
    return named
