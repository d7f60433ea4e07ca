"""Data sets in the formats of COCO, YOLO, Roboflow and Pascal VOC.

They are read, validated, augmented and batched; a data set of shapes is generated.
"""

from detr_fast.extras import explaining_missing

with explaining_missing("detr_fast.data"):  # PIL, which the other modules import too
    from detr_fast.data.annotations import Category
from detr_fast.data.batch import Batch, PackedBatch, collate
from detr_fast.data.check import check_dataset
from detr_fast.data.coco import CocoDetection, Sample
from detr_fast.data.faults import DataError, Fault, FaultKind, count_faults, describe_counts
from detr_fast.data.huggingface import save_huggingface_dataset
from detr_fast.data.padded_sizes import PaddedBatchSampler
from detr_fast.data.shapes import make_shapes
from detr_fast.data.transforms import Augmentation, Labeled, Resize

__all__ = [
    "Augmentation",
    "Batch",
    "Category",
    "CocoDetection",
    "DataError",
    "Fault",
    "FaultKind",
    "Labeled",
    "PackedBatch",
    "PaddedBatchSampler",
    "Resize",
    "Sample",
    "check_dataset",
    "collate",
    "count_faults",
    "describe_counts",
    "make_shapes",
    "save_huggingface_dataset",
]
