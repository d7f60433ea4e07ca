"""The assigner, costs, encoding, targets and losses of the DETR of MMDetection 2.11, by its names, without MMDetection.

Names, arguments, results and the meaning of each setting are MMDetection's; the values are computed by the ops of this
library. Arguments that MMDetection asserts are checked here with a ValueError or TypeError. The functions
:func:`get_targets` and :func:`loss` are the methods of its DETR head of that name, whose settings are arguments.
"""

from detr_fast.integrations.mmdet_api.assigner import (
    AssignResult,
    BBoxL1Cost,
    ClassificationCost,
    HungarianAssigner,
    IoUCost,
)
from detr_fast.integrations.mmdet_api.head import get_targets, loss
from detr_fast.integrations.mmdet_api.modules import FFN, SinePositionalEncoding

__all__ = [
    "FFN",
    "AssignResult",
    "BBoxL1Cost",
    "ClassificationCost",
    "HungarianAssigner",
    "IoUCost",
    "SinePositionalEncoding",
    "get_targets",
    "loss",
]
