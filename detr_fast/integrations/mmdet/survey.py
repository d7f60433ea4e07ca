"""The comparison of all parts of MMDetection."""

from __future__ import annotations

from mmcv.ops import MultiScaleDeformableAttention
from mmdet.models.layers import SinePositionalEncoding
from mmdet.models.losses import CrossEntropyLoss, FocalLoss, GIoULoss, L1Loss
from mmdet.models.task_modules.assigners import BBoxL1Cost, ClassificationCost, HungarianAssigner, IoUCost

from detr_fast.integrations.evidence import SHAPES, Finding
from detr_fast.integrations.mmdet.assigner import find_assigner
from detr_fast.integrations.mmdet.layers import find_attention, find_encoding
from detr_fast.integrations.mmdet.losses import FastDETRHead, find_focal_loss, find_head


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
