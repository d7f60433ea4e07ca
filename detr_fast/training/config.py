"""The configuration of a training run, read from YAML and command-line options and saved with the run."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from detr_fast.data.transforms import Augmentation
from detr_fast.images import MAX_SIDE, is_side
from detr_fast.nn.feed_forward import Activation
from detr_fast.ops.weights import LossWeights, MatchWeights

MAX_STRIDE = 32  # of the backbones
MAX_SEED = 2**32 - 1  # of NumPy


Part = Literal["backbone", "encoder", "decoder", "queries", "class_head", "box_head"]


class ConfigError(ValueError):
    """A configuration is invalid; the message names the option and the cause."""


@dataclass
class ModelConfig:
    """The model; its number of classes is that of the data set.

    Args:
        backbone: resnet18, resnet34, resnet50, resnet101, resnet50_dc5, resnet101_dc5 or resnet_tiny. The suffix _dc5
            stands for a dilated last stage.
        hidden_dim: number of features of the transformer.
        num_heads: number of attention heads.
        num_encoder_layers: number of encoder layers.
        num_decoder_layers: number of decoder layers; the losses are computed for each of them.
        dim_feedforward: number of hidden features of the feed-forward networks.
        dropout: dropout probability of the transformer.
        num_queries: number of queries, which is the maximum number of objects that are detected in an image.
        position_encoding: sine or learned.
        position_temperature: base of the wavelengths of the sine encoding.
        position_normalize: whether the sine encoding maps each axis of an image to position_scale.
        position_scale: length of a normalized axis in radians; the default is 2 pi.
        position_eps: added to the divisor of the normalization.
        position_offset: added to positions before they are normalized.
        pre_norm: normalize the input of each sublayer instead of its output.
        norm_between_layers: normalize the input of each decoder layer after the first, too, as transformers' DETR does
            with auxiliary_loss=True.
        activation: activation function of the feed-forward networks: relu, leaky_relu, elu, gelu, silu or tanh.
        num_ffn_layers: number of linear layers of each feed-forward network.
        box_activation: activation function of the box head.
        num_box_layers: number of linear layers of the box head.
        weights: weights to start from: a file, the directory of a saved model, a name of published weights such as
            detr_resnet50, a URL that ends with #sha256= and the checksum, or the id of a Hugging Face Hub
            repository.
        backbone_weights: a file of ImageNet weights of the backbone with torchvision's names.
        freeze: parts that are not trained.

    Raises:
        ConfigError: an option is of another type.
    """

    backbone: str = "resnet50"
    hidden_dim: int = 256
    num_heads: int = 8
    num_encoder_layers: int = 6
    num_decoder_layers: int = 6
    dim_feedforward: int = 2048
    dropout: float = 0.1
    num_queries: int = 100
    position_encoding: Literal["sine", "learned"] = "sine"
    position_temperature: float = 10000.0
    position_normalize: bool = True
    position_scale: float = 2 * math.pi
    position_eps: float = 1e-6
    position_offset: float = 0.0
    pre_norm: bool = False
    norm_between_layers: bool = False
    activation: Activation = "relu"
    num_ffn_layers: int = 2
    box_activation: Activation = "relu"
    num_box_layers: int = 3
    weights: str | None = None
    backbone_weights: str | None = None
    freeze: list[Part] = field(default_factory=list)

    def __post_init__(self) -> None:
        _check_types(self, "model.")


@dataclass
class DataConfig:
    """The data sets and how images are loaded.

    Args:
        train_images: directory of the training images.
        train_annotations: annotations of the training images: COCO detection JSON, or a path by which the format of
            YOLO, Roboflow or Pascal VOC is recognized.
        val_images: directory of the validation images.
        val_annotations: annotations of the validation images.
        batch_size: images per batch on each rank.
        num_workers: processes that load images on each rank. null is the rank's share of the cores less one, at most
            16, on a GPU, and 1 on a CPU, and no more than the rank has batches.
        padded_sizes: (height, width) pairs in pixels, to which batches are padded. A batch is put together of images
            that the same of them holds best, in training and evaluation, so that there are no other shapes. Without
            any, a batch is padded to its largest height and width.
        orientation: what the boxes of an image with an EXIF orientation refer to where its stated size does not tell,
            the upright image or the pixels as stored.
        augmentation: augmentation of the training images.
        eval_size: length of the shorter side of an image in evaluation and prediction, in pixels.
        eval_max_size: maximum length of the longer side in evaluation and prediction, in pixels.

    Raises:
        ConfigError: a number is out of range.
    """

    train_images: str
    train_annotations: str
    val_images: str
    val_annotations: str
    batch_size: int = 2
    num_workers: int | None = None
    padded_sizes: list[tuple[int, int]] = field(default_factory=list)
    orientation: Literal["upright", "stored"] = "upright"
    augmentation: Augmentation = field(default_factory=Augmentation)
    eval_size: int = 800
    eval_max_size: int | None = 1333

    def __post_init__(self) -> None:
        _check_types(self, "data.")
        _check_minimum(self, "data.", batch_size=1)
        if self.num_workers is not None:
            _check_minimum(self, "data.", num_workers=0)
        for name in ("eval_size", "eval_max_size"):
            value = getattr(self, name)
            if value is not None and not is_side(value):
                raise ConfigError(f"data.{name} must be from 1 to {MAX_SIDE} pixels, got {value}")
        self.padded_sizes = [(height, width) for height, width in self.padded_sizes]
        _check_padded_sizes(self.padded_sizes)


@dataclass
class OptimConfig:
    """AdamW and its learning rate schedule.

    Args:
        lr: learning rate of the transformer and the heads.
        backbone_lr: learning rate of the backbone; 0 freezes it.
        weight_decay: weight decay of AdamW.
        clip_norm: maximum norm of the gradient; 0 disables clipping.
        schedule: step multiplies the learning rate by 0.1 after drop_epoch; cosine anneals it to 0.
        drop_epoch: epoch after which the step schedule lowers the learning rate; null for two thirds of the epochs.
        warmup_steps: optimizer steps over which the learning rate rises from 0.
        accumulate: batches whose gradients are accumulated for an optimizer step.
        ema_decay: decay of an exponential moving average of the weights, which is then evaluated and saved as the
            model; 0 disables it.

    Raises:
        ConfigError: a number is out of range.
    """

    lr: float = 1e-4
    backbone_lr: float = 1e-5
    weight_decay: float = 1e-4
    clip_norm: float = 0.1
    schedule: Literal["step", "cosine"] = "step"
    drop_epoch: int | None = None
    warmup_steps: int = 0
    accumulate: int = 1
    ema_decay: float = 0.0

    def __post_init__(self) -> None:
        _check_types(self, "optim.")
        _check_minimum(self, "optim.", lr=0, backbone_lr=0, weight_decay=0, clip_norm=0)
        _check_minimum(self, "optim.", warmup_steps=0, accumulate=1)
        if self.drop_epoch is not None:
            _check_minimum(self, "optim.", drop_epoch=0)
        if not 0 <= self.ema_decay < 1:
            raise ConfigError(f"optim.ema_decay must be at least 0 and below 1, got {self.ema_decay}")


@dataclass
class TrainConfig:
    """All options of a training run.

    Args:
        model: the model.
        data: the data sets.
        optim: optimizer and learning rate schedule.
        match: costs of the matching.
        loss: weights of the losses.
        output: directory for checkpoints, metrics, curves and drawings.
        epochs: number of passes over the training images.
        seed: seed of the initial weights, the order of the images, the augmentation and dropout.
        mixed_precision: precision in which Accelerate runs the model; auto is bf16 on a GPU that supports it, and no
            elsewhere.
        allow_tf32: whether a GPU may round the factors of float32 matrix products and convolutions to TF32 where
            mixed_precision is no.
        compile: compile the backbone and the transformer with torch.compile.
        capture: capture a training step on a GPU as a CUDA graph, one for each of the first 16 shapes of the batches;
            for one rank, and mixed_precision other than fp16.
        device: auto uses a GPU if there is one, and cuda requires one.
        eval_every: epochs between evaluations; the last epoch is always evaluated.
        checkpoint_every: epochs between checkpoints that are kept; 0 keeps only the last and the best.
        checkpoint_steps: optimizer steps after which the last checkpoint is written within an epoch; 0 writes it
            after each epoch only.
        patience: evaluations without a higher AP after which the run ends early; 0 trains for all epochs.
        log_every: optimizer steps between the records of metrics.jsonl.
        trackers: experiment trackers that log the records too, by their names in Accelerate, such as wandb and mlflow.

    Raises:
        ConfigError: a number is out of range.
    """

    data: DataConfig
    model: ModelConfig = field(default_factory=ModelConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    match: MatchWeights = field(default_factory=MatchWeights)
    loss: LossWeights = field(default_factory=LossWeights)
    output: str = "runs/train"
    epochs: int = 300
    seed: int = 42
    mixed_precision: Literal["auto", "no", "fp16", "bf16"] = "no"
    allow_tf32: bool = False
    compile: bool = False
    capture: bool = False
    device: Literal["auto", "cpu", "cuda"] = "auto"
    eval_every: int = 1
    checkpoint_every: int = 100
    checkpoint_steps: int = 0
    patience: int = 0
    log_every: int = 20
    trackers: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        _check_types(self, "")
        _check_minimum(self, "", epochs=1, eval_every=1, checkpoint_every=0, checkpoint_steps=0, log_every=1, seed=0)
        _check_minimum(self, "", patience=0)
        if self.seed > MAX_SEED:
            raise ConfigError(f"seed must be at most {MAX_SEED}, got {self.seed}")
        for name, value in (("match.class_cost", self.match.class_cost), ("loss.class_loss", self.loss.class_loss)):
            if value != "softmax":
                raise ConfigError(f"{name} must be softmax, since the model has a no-object class; got {value}")


def as_plain_data(config: TrainConfig) -> dict[str, Any]:
    """Convert the configuration to plain data for YAML, which ``--config`` reads."""
    return json.loads(json.dumps(asdict(config)))


def as_flat_data(config: TrainConfig) -> dict[str, bool | int | float | str]:
    """Return the options by their dotted names, as experiment trackers take them; lists and null are text."""

    def flatten(settings: dict[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
        for name, value in settings.items():
            if isinstance(value, dict):
                yield from flatten(value, f"{prefix}{name}.")
            else:
                yield prefix + name, value if isinstance(value, bool | int | float | str) else str(value)

    return dict(flatten(as_plain_data(config), ""))


def _check_padded_sizes(sizes: list[tuple[int, int]]) -> None:
    """Raise ConfigError for padded sizes that are out of range or occur twice.

    The features of an image have a mask that does not depend on its padded size if the stride divides that.
    """
    for size in sizes:
        if not all(is_side(side) and side % MAX_STRIDE == 0 for side in size):
            nearest = [min(max(MAX_STRIDE, -(-side // MAX_STRIDE) * MAX_STRIDE), MAX_SIDE) for side in size]
            raise ConfigError(
                f"data.padded_sizes must consist of multiples of {MAX_STRIDE} pixels, the stride of the backbone, from "
                f"{MAX_STRIDE} to {MAX_SIDE}, got {list(size)}; {nearest} is the nearest that holds as much"
            )
    twice = [list(size) for size in dict.fromkeys(sizes) if sizes.count(size) > 1]
    if twice:
        raise ConfigError(f"data.padded_sizes lists {twice[0]} more than once; remove all but one")


def _check_types(config: Any, prefix: str) -> None:
    """Raise ConfigError for an option whose value is not of the annotated type."""
    for name, hint in get_type_hints(type(config)).items():
        value = getattr(config, name)
        kinds = get_args(hint) if get_origin(hint) is UnionType else (hint,)
        if not any(_is_of_type(value, kind) for kind in kinds):
            expected = hint.__name__ if isinstance(hint, type) else " or ".join(map(str, get_args(hint)))
            raise ConfigError(f"{prefix}{name} must be {expected}, got {value!r}")


def _is_of_type(value: Any, kind: Any) -> bool:
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    if get_origin(kind) is tuple:
        kinds = get_args(kind)
        return isinstance(value, list | tuple) and len(value) == len(kinds) and all(map(_is_of_type, value, kinds))
    if get_origin(kind) is list:
        return isinstance(value, list) and all(_is_of_type(item, *get_args(kind)) for item in value)
    if kind in (int, float):
        return isinstance(value, int if kind is int else (int, float)) and not isinstance(value, bool)
    return isinstance(value, kind)


def _check_minimum(config: Any, prefix: str, **minimums: int) -> None:
    """Raise ConfigError for an option that is not finite or below its minimum."""
    for name, minimum in minimums.items():
        value = getattr(config, name)
        if not minimum <= value <= sys.float_info.max:  # NaN fails the comparison
            raise ConfigError(f"{prefix}{name} must be at least {minimum}, got {value}")
