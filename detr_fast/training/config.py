"""The configuration of a training run, as it is read from YAML and flags and saved with the run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from detr_fast.data import Augmentation
from detr_fast.ops.weights import LossWeights, MatchWeights


class ConfigError(ValueError):
    """A configuration cannot be carried out; the message names the part and the cause."""


@dataclass
class ModelConfig:
    """The model; the number of classes comes from the data.

    Args:
        backbone: resnet18, resnet34, resnet50, resnet101, with _dc5 for a dilated last stage, or resnet_tiny.
        hidden_dim: width of the transformer.
        num_heads: attention heads.
        num_encoder_layers: encoder layers.
        num_decoder_layers: decoder layers, each with a loss of its own.
        dim_feedforward: width of the feed-forward blocks.
        dropout: probability of dropping.
        num_queries: the most objects that can be found in one picture.
        position_encoding: sine or learned.
        pre_norm: normalise before each block instead of after it.
        weights: a model to start from: a file of weights, a saved model's directory, or a hub's name.
        backbone_weights: a file of ImageNet weights for the backbone, in torchvision's names.
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
    pre_norm: bool = False
    weights: str | None = None
    backbone_weights: str | None = None


@dataclass
class DataConfig:
    """Where the pictures are and how they are fed.

    Args:
        train_images: directory of the training pictures.
        train_annotations: COCO detection JSON of the training pictures.
        val_images: directory of the held-out pictures.
        val_annotations: COCO detection JSON of the held-out pictures.
        batch_size: pictures in a batch, on each rank.
        num_workers: processes that load pictures, on each rank.
        augmentation: what is done to the training pictures.
        eval_size: shorter side of a picture in evaluation and prediction, in pixels.
        eval_max_size: longest side there, in pixels.
    """

    train_images: str
    train_annotations: str
    val_images: str
    val_annotations: str
    batch_size: int = 2
    num_workers: int = 2
    augmentation: Augmentation = field(default_factory=Augmentation)
    eval_size: int = 800
    eval_max_size: int | None = 1333


@dataclass
class OptimConfig:
    """AdamW and its schedule.

    Args:
        lr: rate of the transformer and the heads.
        backbone_lr: rate of the backbone.
        weight_decay: of AdamW.
        clip_norm: the largest norm of the gradient; 0 turns clipping off.
        schedule: step multiplies the rate by 0.1 after drop_epoch; cosine goes down to 0.
        drop_epoch: epoch of the step.
        warmup_steps: optimiser steps over which the rate rises from 0.
        accumulate: batches whose gradients make one optimiser step.
        ema_decay: decay of an exponential moving average of the weights, which is then what is evaluated
            and saved as the model; 0 turns it off.
    """

    lr: float = 1e-4
    backbone_lr: float = 1e-5
    weight_decay: float = 1e-4
    clip_norm: float = 0.1
    schedule: Literal["step", "cosine"] = "step"
    drop_epoch: int = 200
    warmup_steps: int = 0
    accumulate: int = 1
    ema_decay: float = 0.0


@dataclass
class TrainConfig:
    """Everything a training run depends on.

    Args:
        model: the model.
        data: pictures and annotations.
        optim: optimiser and schedule.
        match: costs of the matching.
        loss: weights of the losses.
        output: directory that receives checkpoints, metrics, curves and pictures.
        epochs: passes over the training pictures.
        seed: of weights, order, augmentation and dropout.
        mixed_precision: what Accelerate computes in.
        device: auto takes a GPU where there is one.
        eval_every: epochs between evaluations; the last epoch always ends with one.
        checkpoint_every: epochs between checkpoints that are kept; 0 keeps only the last and the best.
        checkpoint_steps: optimiser steps between writes of the last checkpoint within an epoch; 0 writes it
            after each epoch only.
        log_every: optimiser steps between lines of metrics.jsonl.
    """

    data: DataConfig
    model: ModelConfig = field(default_factory=ModelConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    match: MatchWeights = field(default_factory=MatchWeights)
    loss: LossWeights = field(default_factory=LossWeights)
    output: str = "runs/train"
    epochs: int = 300
    seed: int = 42
    mixed_precision: Literal["no", "fp16", "bf16"] = "no"
    device: Literal["auto", "cpu"] = "auto"
    eval_every: int = 1
    checkpoint_every: int = 100
    checkpoint_steps: int = 0
    log_every: int = 20
