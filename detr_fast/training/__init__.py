"""Training, evaluation and prediction: the training loop, its configuration, and the files that it writes.

This package needs the extra: ``pip install 'detr_fast[train]'``.
"""

from typing import TYPE_CHECKING

from detr_fast.lazy import lazy_attributes

if TYPE_CHECKING:
    from detr_fast.training.captured import CapturedStep
    from detr_fast.training.coco import coco_metrics
    from detr_fast.training.config import ConfigError, DataConfig, ModelConfig, OptimConfig, TrainConfig
    from detr_fast.training.errors import USER_ERRORS
    from detr_fast.training.evaluation import evaluate_model
    from detr_fast.training.monitor import TrainingError, read_metrics
    from detr_fast.training.prediction import predict_files
    from detr_fast.training.signals import Stopped
    from detr_fast.training.trainer import Trainer
else:  # the command line builds its parser from the configuration, without the packages that training needs
    __getattr__, __dir__ = lazy_attributes(
        __name__,
        {
            "detr_fast.training.captured": ("CapturedStep",),
            "detr_fast.training.coco": ("coco_metrics",),
            "detr_fast.training.config": ("ConfigError", "DataConfig", "ModelConfig", "OptimConfig", "TrainConfig"),
            "detr_fast.training.errors": ("USER_ERRORS",),
            "detr_fast.training.evaluation": ("evaluate_model",),
            "detr_fast.training.monitor": ("TrainingError", "read_metrics"),
            "detr_fast.training.prediction": ("predict_files",),
            "detr_fast.training.signals": ("Stopped",),
            "detr_fast.training.trainer": ("Trainer",),
        },
    )

__all__ = [
    "USER_ERRORS",
    "CapturedStep",
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
    "read_metrics",
]
