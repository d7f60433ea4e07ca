"""The errors that a user can cause and correct; their messages say how."""

from detr_fast.checkpoints.state_dict import CheckpointError
from detr_fast.data import DataError
from detr_fast.images import ImageError
from detr_fast.ops import BackendError
from detr_fast.training.config import ConfigError
from detr_fast.training.monitor import TrainingError

USER_ERRORS = (
    BackendError,
    CheckpointError,
    ConfigError,
    DataError,
    FileNotFoundError,
    ImageError,
    TrainingError,
)
