"""The hot paths: for each its contract, its reference and the choice of a backend."""

from detr_fast.ops.backends import BackendError, use_backend
from detr_fast.ops.linear_sum_assignment import Assignment, batch_linear_sum_assignment, linear_sum_assignment
from detr_fast.ops.match_cost import match_cost
from detr_fast.ops.matched_pairs import matched_pairs
from detr_fast.ops.pairwise_box import pairwise_box_iou, pairwise_box_l1
from detr_fast.ops.set_loss import set_loss, weighted_set_loss
from detr_fast.ops.sine_position_encoding import sine_coordinate_embedding, sine_position_encoding
from detr_fast.ops.targets import Targets
from detr_fast.ops.verify_assignment import AssignmentProof, verify_assignment
from detr_fast.ops.weights import LossWeights, MatchWeights

__all__ = [
    "Assignment",
    "AssignmentProof",
    "BackendError",
    "LossWeights",
    "MatchWeights",
    "Targets",
    "batch_linear_sum_assignment",
    "linear_sum_assignment",
    "match_cost",
    "matched_pairs",
    "pairwise_box_iou",
    "pairwise_box_l1",
    "set_loss",
    "sine_coordinate_embedding",
    "sine_position_encoding",
    "use_backend",
    "verify_assignment",
    "weighted_set_loss",
]
