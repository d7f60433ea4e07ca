"""Training, evaluation and prediction: the matcher and criterion, the loop, and what it writes.

Needs the extra: ``pip install 'detr_fast[train]'``.
"""

from detr_fast.data import DataError
from detr_fast.images import ImageError
from detr_fast.models import CheckpointError
from detr_fast.training.config import ConfigError, DataConfig, ModelConfig, OptimConfig, TrainConfig
from detr_fast.training.evaluation import coco_metrics, evaluate_model
from detr_fast.training.monitor import TrainingError
from detr_fast.training.prediction import predict_files
from detr_fast.training.trainer import Stopped, Trainer

# What a user can cause and mend; the message says how.
USER_ERRORS = (CheckpointError, ConfigError, DataError, FileNotFoundError, ImageError, TrainingError)

__all__ = [
    "USER_ERRORS",
    "ConfigError",
    "DataConfig",
    "ModelConfig",
    "OptimConfig",
    "Stopped",
    "TrainConfig",
    "Trainer",
    "TrainingError",
    "coco_metrics",
    "evaluate_model",
    "predict_files",
]
