"""The integration of MMDetection 3, through its registries. In the configuration of a DETR::

    custom_imports = dict(imports=["detr_fast.integrations.mmdet"])
    model = dict(type="FastDETR", bbox_head=dict(type="FastDETRHead"),
                 train_cfg=dict(assigner=dict(type="FastHungarianAssigner")))

All other settings are kept, and matches, losses, their names and checkpoints do not change. The types
``FastDeformableDETR`` and ``FastDINO`` replace Deformable DETR and DINO; :func:`accelerate` takes other detectors with
multi-scale deformable attention after they are built.

MMDetection 3 and its continuation onedl-mmdetection are taken by what they compute. An object of a fast type compares
itself with its base class when it is built: by the parameters of the methods that it overrides and, once per process,
by the results on small random inputs. If they differ it becomes an object of the base class, and a warning in the log
names the difference. The setting ``check=False`` of each type turns this off.

MMDetection cannot be imported with mmcv-lite, which lacks the compiled ops of mmcv, unless this module is imported
first. A compiled op is then an error when it is called.
"""

from __future__ import annotations

from detr_fast.integrations.mmdet.compiled_ops import declare_compiled_ops

declare_compiled_ops()

from detr_fast.integrations.mmdet.assigner import FastHungarianAssigner  # noqa: E402  (after the ops are declared)
from detr_fast.integrations.mmdet.detectors import (  # noqa: E402
    FastDeformableDETR,
    FastDETR,
    FastDINO,
    accelerate,
    restore,
)
from detr_fast.integrations.mmdet.layers import (  # noqa: E402
    FastMultiScaleDeformableAttention,
    FastSinePositionalEncoding,
)
from detr_fast.integrations.mmdet.losses import FastDETRHead, FastFocalLoss  # noqa: E402

__all__ = [
    "FastDETR",
    "FastDETRHead",
    "FastDINO",
    "FastDeformableDETR",
    "FastFocalLoss",
    "FastHungarianAssigner",
    "FastMultiScaleDeformableAttention",
    "FastSinePositionalEncoding",
    "accelerate",
    "restore",
]
