"""Modules for models of one's own; they need torch alone."""

from detr_fast.nn.multi_scale_deformable_attention import MultiScaleDeformableAttention

__all__ = ["MultiScaleDeformableAttention"]
