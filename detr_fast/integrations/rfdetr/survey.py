"""The comparison of all parts of RF-DETR."""

from __future__ import annotations

from rfdetr.models.criterion import SetCriterion
from rfdetr.models.matcher import HungarianMatcher

from detr_fast.integrations.evidence import Finding
from detr_fast.integrations.rfdetr.attention import find_attention
from detr_fast.integrations.rfdetr.criterion import find_loss
from detr_fast.integrations.rfdetr.matching import find_matcher


def find_all() -> list[Finding]:
    """Compare all parts of RF-DETR, with the settings of its detection models."""
    matcher = HungarianMatcher(cost_class=2, cost_bbox=5, cost_giou=2, focal_alpha=0.25)
    losses = ["labels", "boxes", "cardinality"]
    criterion = SetCriterion(91, matcher, {}, focal_alpha=0.25, losses=losses, group_detr=13, ia_bce_loss=True)
    return [find_matcher(matcher), *find_loss(criterion), find_attention()]
