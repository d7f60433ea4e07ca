"""The ops: for each its contract, its reference and the choice of a backend.

Every module of this package that registers an op exports the op's public functions here.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pkgutil import iter_modules

from detr_fast.ops.batch_linear_sum_assignment import Assignment, batch_linear_sum_assignment
from detr_fast.ops.dispatch import OPS, BackendError, use_backend
from detr_fast.ops.faults import raise_faults
from detr_fast.ops.fused_deformable_attention import fused_deformable_attention
from detr_fast.ops.linear_sum_assignment import linear_sum_assignment
from detr_fast.ops.match_cost import match_cost
from detr_fast.ops.matched_pairs import matched_pairs
from detr_fast.ops.multi_scale_deformable_attention import multi_scale_deformable_attention
from detr_fast.ops.normalize_and_pad import normalize_and_pad
from detr_fast.ops.packed_images import PackedImages
from detr_fast.ops.pairwise_box_iou import pairwise_box_iou
from detr_fast.ops.pairwise_box_l1 import pairwise_box_l1
from detr_fast.ops.set_loss import set_loss, weighted_set_loss
from detr_fast.ops.sine_coordinate_embedding import sine_coordinate_embedding
from detr_fast.ops.sine_position_encoding import sine_position_encoding
from detr_fast.ops.targets import Targets
from detr_fast.ops.verify_assignment import AssignmentProof, verify_assignment
from detr_fast.ops.weights import LossWeights, MatchWeights

__all__ = [
    "Assignment",
    "AssignmentProof",
    "BackendError",
    "LossWeights",
    "MatchWeights",
    "PackedImages",
    "Targets",
    "batch_linear_sum_assignment",
    "fused_deformable_attention",
    "linear_sum_assignment",
    "match_cost",
    "matched_pairs",
    "multi_scale_deformable_attention",
    "normalize_and_pad",
    "pairwise_box_iou",
    "pairwise_box_l1",
    "raise_faults",
    "set_loss",
    "sine_coordinate_embedding",
    "sine_position_encoding",
    "use_backend",
    "verify_assignment",
    "weighted_set_loss",
]

# The imports above are for static type checkers and readers; an op without one is exported all the same.
for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")
for _op in OPS.values():
    for _name in _op.public_names:
        globals()[_name] = getattr(sys.modules[_op.reference.__module__], _name)
