"""Which settings of a run may change when it is resumed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from detr_fast.checkpoints.state_dict import CheckpointError
from detr_fast.training.config import DataConfig, TrainConfig, as_plain_data

REMEDY = (
    "resume with the settings and the data of the run, or start another run with another --output, whose model.weights "
    "may be the saved model of this one"
)

# A name stands for a setting, or for all settings below it. Every setting is in exactly one of the two tables.

# These take effect with the next step, evaluation or checkpoint.
APPLIED = (
    "data.augmentation",
    "data.num_workers",
    "data.train_annotations",  # files may be moved; that their content is the same is verified
    "data.train_images",
    "data.val_annotations",
    "data.val_images",
    "model.dropout",
    "optim.backbone_lr",
    "optim.clip_norm",
    "optim.drop_epoch",
    "optim.lr",
    "optim.schedule",
    "optim.warmup_steps",
    "optim.weight_decay",
    "match",
    "loss",
    "output",
    "epochs",  # not below the number of completed epochs
    "mixed_precision",
    "allow_tf32",
    "compile",
    "capture",
    "device",
    "eval_every",
    "checkpoint_every",
    "checkpoint_steps",
    "patience",
    "log_every",
    "trackers",
)
# These determine the network, the position within an epoch, or what the best AP so far was measured on.
FIXED = (
    "data.batch_size",  # the product with the number of ranks
    "data.eval_max_size",
    "data.eval_size",
    "data.orientation",
    "data.padded_sizes",
    "model.activation",
    "model.backbone",
    "model.backbone_weights",
    "model.box_activation",
    "model.dim_feedforward",
    "model.freeze",  # the parameters of the optimizer
    "model.hidden_dim",
    "model.num_box_layers",
    "model.num_decoder_layers",
    "model.num_encoder_layers",
    "model.num_ffn_layers",
    "model.num_heads",
    "model.num_queries",
    "model.position_encoding",
    "model.position_eps",
    "model.position_normalize",
    "model.position_offset",
    "model.position_scale",
    "model.position_temperature",
    "model.pre_norm",
    "model.norm_between_layers",
    "model.weights",
    "optim.accumulate",
    "optim.ema_decay",
    "seed",
)


def check_resumed(state: Mapping[str, Any], config: TrainConfig, *, num_ranks: int) -> list[str]:
    """Compare the configuration of a checkpoint with the one to resume with.

    Args:
        state: The state of the run.
        config: The configuration to resume with.
        num_ranks: Number of ranks to resume on.

    Returns:
        A description of each setting that differs and is applied.

    Raises:
        CheckpointError: A setting differs that cannot change, or the run has completed more epochs already.
    """
    now = dict(_flatten(as_plain_data(config)))
    before = _DEFAULTS | dict(_flatten(state["config"]))  # a release before a setting was added did not record it
    before["data.batch_size"] = _per_step(before.get("data.batch_size"), len(state["random"]))
    now["data.batch_size"] = _per_step(now["data.batch_size"], num_ranks)
    changed = [name for name in now if now[name] != before.get(name)]
    refused = [name for name in changed if not is_applied(name)]
    if refused:
        described = ", ".join(f"{name} {now[name]} instead of {before.get(name)}" for name in refused)
        raise CheckpointError(
            f"the checkpoint was written with another configuration, and these settings cannot change when a run is "
            f"resumed: {described}; {REMEDY}"
        )
    progress = state["progress"]
    minimum = progress["epoch"] + (progress["samples"] > 0)
    if config.epochs < minimum:
        raise CheckpointError(f"epochs is {config.epochs}, but epoch {minimum} of the run has been started already")
    return [f"{name} {now[name]} instead of {before.get(name)}" for name in changed if name != "output"]


def is_applied(name: str) -> bool:
    """Return whether a setting may change when a run is resumed."""
    return any(name == applied or name.startswith(f"{applied}.") for applied in APPLIED)


def _per_step(batch_size: Any, num_ranks: int) -> str:
    total = batch_size * num_ranks if isinstance(batch_size, int) else batch_size
    return f"{total} in total on all ranks"


def _flatten(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield prefix + str(name), value


_DEFAULTS = dict(_flatten(as_plain_data(TrainConfig(data=DataConfig("", "", "", "")))))
