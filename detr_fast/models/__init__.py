"""The DETR network: backbone, position encoding and transformer, its construction from weights, and inference."""

from detr_fast.extras import explaining_missing

with explaining_missing("detr_fast.models"):
    from detr_fast.checkpoints.state_dict import CheckpointError, load_backbone_weights, load_weights, read_state_dict
    from detr_fast.models.convert import convert_checkpoint
    from detr_fast.models.detr import DETR, DETROutput
    from detr_fast.models.export import ExportError, export_model
    from detr_fast.models.factories import (
        build_detr,
        detr_resnet18,
        detr_resnet34,
        detr_resnet50,
        detr_resnet50_dc5,
        detr_resnet101,
        detr_resnet101_dc5,
    )
    from detr_fast.models.inference import postprocess
    from detr_fast.models.resnet import BACKBONES, build_backbone
    from detr_fast.models.supervision import to_supervision

__all__ = [
    "BACKBONES",
    "DETR",
    "CheckpointError",
    "DETROutput",
    "ExportError",
    "build_backbone",
    "build_detr",
    "convert_checkpoint",
    "detr_resnet18",
    "detr_resnet34",
    "detr_resnet50",
    "detr_resnet50_dc5",
    "detr_resnet101",
    "detr_resnet101_dc5",
    "export_model",
    "load_backbone_weights",
    "load_weights",
    "postprocess",
    "read_state_dict",
    "to_supervision",
]
