"""The command line: detr-fast demo | train | eval | predict | convert | check-data | info."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import fields
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detr_fast.info import describe
from detr_fast.ops.dispatch import BackendError

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

    from detr_fast.training.config import TrainConfig

CONFIGS = files("detr_fast.configs")
DEMO_IMAGES = {"num_train": 6000, "num_val": 500}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command; its name comes first, ``--help`` explains the rest."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s: %(message)s")
    logging.getLogger("faster_coco_eval").setLevel(logging.WARNING)
    if arguments == ["info"]:  # works without the extra that all else needs
        print(describe())
        return
    try:
        import detr_fast.training
    except ModuleNotFoundError as error:
        sys.exit(f"detr-fast: {error.name} is missing; install the extra: pip install 'detr_fast[train]'")
    parser = _build_parser()
    parsed = parser.parse_args(_with_packaged_configs(arguments))
    try:
        options = parser.instantiate(parsed)[parsed.subcommand]
    except ValueError as error:  # a value that its class refuses
        parser.error(str(error))
    try:
        sys.exit(COMMANDS[parsed.subcommand](options))
    except detr_fast.training.Stopped as stopped:
        print(stopped, file=sys.stderr)
        sys.exit(128 + stopped.signal)
    except KeyboardInterrupt:
        sys.exit(130)
    except (BackendError, *detr_fast.training.USER_ERRORS) as error:
        sys.exit(f"detr-fast: {error}")


def demo(options: Namespace) -> None:
    """Generate pictures of shapes, train a small DETR on them, score and show it."""
    from detr_fast.data import make_shapes

    config = _train_config(options)
    make_shapes(Path(config.data.train_images).parent, **DEMO_IMAGES)
    _run(config, resume=True)


def train(options: Namespace) -> None:
    """Train a DETR on COCO-format data."""
    _run(_train_config(options), resume=options.resume)


def evaluate(options: Namespace) -> None:
    """Score a saved model on COCO-format data."""
    from detr_fast.training import evaluate_model

    arguments = {name: options[name] for name in ("batch_size", "num_workers", "mixed_precision")}
    metrics = evaluate_model(options.model, options.images, options.annotations, **arguments)
    if metrics:
        if options.output:
            Path(options.output).write_text(json.dumps(metrics, indent=2) + "\n")
        _print_metrics(metrics)


def predict(options: Namespace) -> int:
    """Draw what a saved model finds in pictures, and write it as JSON; 1 where a picture could not be read."""
    from detr_fast.training import predict_files

    failures = predict_files(options.model, options.images, Path(options.output), threshold=options.threshold)
    for failure in failures:
        print(failure, file=sys.stderr)
    return 1 if failures else 0


def convert(options: Namespace) -> None:
    """Convert a DETR's weights between the original's, Hugging Face's and MMDetection's formats."""
    from detr_fast.models import convert_checkpoint

    print(
        convert_checkpoint(
            options.source, options.target, options.to, num_classes=options.classes, num_heads=options.num_heads
        )
    )


def check_data(options: Namespace) -> int:
    """Report every fault of a data set; 1 where there are any."""
    from detr_fast.data import check_dataset, count_faults, describe_counts

    faults = check_dataset(options.images, options.annotations)
    for fault in faults:
        print(fault)
    print(f"{len(faults)} faults: {describe_counts(count_faults(faults))}" if faults else "no faults")
    return 1 if faults else 0


def info(options: Namespace) -> None:
    """Show versions, devices, and the backend of each hot path."""
    print(describe())


COMMANDS = {
    "demo": demo,
    "train": train,
    "eval": evaluate,
    "predict": predict,
    "convert": convert,
    "check-data": check_data,
    "info": info,
}


def _build_parser() -> ArgumentParser:
    from jsonargparse import ArgumentParser

    from detr_fast.training.config import TrainConfig

    parser = ArgumentParser(prog="detr-fast", description="DETR with its hot paths as swappable, verified kernels")
    commands = parser.add_subcommands(required=True)
    parsers = {}
    for name, command in COMMANDS.items():
        summary = (command.__doc__ or "").split(";")[0].rstrip(".")
        parsers[name] = ArgumentParser(description=summary)
        commands.add_subcommand(name, parsers[name], help=summary)

    for name in ("demo", "train"):
        parsers[name].add_argument("--config", action="config", help="a YAML file, or the name of one that is shipped")
        parsers[name].add_class_arguments(TrainConfig, as_group=False)
    parsers["demo"].default_config_files = [str(CONFIGS / "demo.yaml")]
    parsers["train"].add_argument(
        "--resume", action="store_true", help="go on from the last whole checkpoint in the output directory"
    )

    for name in ("eval", "predict"):
        parsers[name].add_argument("--model", required=True, help="directory of a saved model, as runs/demo/model")
    parsers["eval"].add_argument("--images", required=True, help="directory of the pictures")
    parsers["eval"].add_argument("--annotations", required=True, help="COCO detection JSON")
    parsers["eval"].add_argument("--batch_size", type=int, default=2, help="pictures in a batch, on each rank")
    parsers["eval"].add_argument("--num_workers", type=int, default=2, help="processes that load pictures")
    parsers["eval"].add_argument("--mixed_precision", choices=["no", "fp16", "bf16"], default="no")
    parsers["eval"].add_argument("--output", help="a JSON file for the metrics")

    parsers["predict"].add_argument("images", nargs="+", help="files, or directories of pictures")
    parsers["predict"].add_argument("--output", default="predictions", help="directory of what is written")
    parsers["predict"].add_argument("--threshold", type=float, default=0.5, help="the least score that is kept")

    parsers["convert"].add_argument("source", help="a .pth or .safetensors file")
    parsers["convert"].add_argument("target", help="a file, or for Hugging Face's formats a directory")
    formats = ["original", "huggingface", "huggingface_timm", "mmdet2", "mmdet3"]
    parsers["convert"].add_argument("--to", choices=formats, default="original", help="the format to write")
    parsers["convert"].add_argument(
        "--classes", type=int, choices=[80, 91], help="turn COCO's 91 raw ids into its 80 contiguous classes, or back"
    )
    parsers["convert"].add_argument("--num_heads", type=int, default=8, help="heads of the transformer")

    parsers["check-data"].add_argument("--images", required=True, help="directory of the pictures")
    parsers["check-data"].add_argument("--annotations", required=True, help="COCO detection JSON")
    return parser


def _with_packaged_configs(arguments: list[str]) -> list[str]:
    """Let ``--config detr_r50`` name a configuration that is shipped with the package."""
    resolved = list(arguments)
    for place, argument in enumerate(arguments):
        option, equals, value = argument.partition("=")
        if option != "--config":
            continue
        at = place if equals else place + 1
        name = value if equals else (arguments[at] if at < len(arguments) else "")
        shipped = CONFIGS / f"{name.removesuffix('.yaml')}.yaml"
        if name and not Path(name).exists() and shipped.is_file():
            resolved[at] = f"--config={shipped}" if equals else str(shipped)
    return resolved


def _train_config(options: Namespace) -> TrainConfig:
    from detr_fast.training.config import TrainConfig

    return TrainConfig(**{field.name: options[field.name] for field in fields(TrainConfig)})


def _run(config: TrainConfig, *, resume: bool) -> None:
    from detr_fast.training import Trainer

    trainer = Trainer(config, resume=resume)
    metrics = trainer.run()
    if trainer.accelerator.is_main_process:
        _print_metrics(metrics)


def _print_metrics(metrics: dict[str, Any]) -> None:
    for name, value in metrics["classes"].items():
        print(f"AP of {name}: {value:.3f}")
    print(", ".join(f"{name} {metrics[name]:.3f}" for name in ("AP75", "AP_small", "AP_medium", "AP_large")))
    print(f"AP {metrics['AP']:.3f}")
    print(f"AP50 {metrics['AP50']:.3f}")


if __name__ == "__main__":
    main()
