"""The command line: detr-fast demo | train | eval | predict | convert | export | check-data | info."""

from __future__ import annotations

import argparse
import io
import json
import logging
import shlex
import sys
from collections.abc import Container, Iterator, Sequence
from dataclasses import fields, is_dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

import detr_fast
from detr_fast.console import warnings_as_lines
from detr_fast.extras import explain_missing
from detr_fast.text import escape, format_metric

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

    from detr_fast.training import TrainConfig

logger = logging.getLogger(__name__)

CONFIGS = files("detr_fast.configs")
COMPLETION = "--print_completion"  # writes a script for a shell
DEMO_IMAGES = {"num_train": 6000, "num_val": 500}

# Each command imports what it needs when it runs, so that --help and --version print at once.


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command that the first argument names."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal that cannot show a character ends no run
    logging.basicConfig(level=logging.INFO, format="%(levelname)s: %(message)s")
    if arguments == ["info"]:  # needs no package of the extra
        _print_info()
        return
    try:
        sys.exit(_run_command(arguments))
    except ModuleNotFoundError as error:
        explanation = explain_missing(error)
        if explanation is None:
            raise
        sys.exit(f"detr-fast: {explanation}")


def demo(options: Namespace) -> None:
    """Train and evaluate a small DETR on generated images of shapes."""
    from detr_fast.data import make_shapes

    config = _train_config(options)
    make_shapes(Path(config.data.train_images).parent, **DEMO_IMAGES)
    _run(config, resume=True)


def train(options: Namespace) -> None:
    """Train a DETR on data in COCO, YOLO, Roboflow or Pascal VOC format."""
    _run(_train_config(options), resume=options.resume)


def evaluate(options: Namespace) -> None:
    """Evaluate a saved model on data in COCO, YOLO, Roboflow or Pascal VOC format."""
    from detr_fast.training import evaluate_model

    names = ("batch_size", "num_workers", "mixed_precision", "device", "orientation", "figures")
    arguments = {name: options[name] for name in names}
    metrics = evaluate_model(options.model, options.images, options.annotations, **arguments)
    if metrics:
        if options.output:
            Path(options.output).write_text(json.dumps(metrics, indent=2) + "\n")
        _print_metrics(metrics)


def predict(options: Namespace) -> int:
    """Detect objects in images and videos and write drawings and a JSON file; exits with 1 if a file was unreadable."""
    from detr_fast.training import predict_files

    failures = predict_files(
        options.model,
        options.images,
        Path(options.output),
        threshold=options.threshold,
        attention=options.attention,
        device=options.device,
    )
    for failure in failures:
        print(escape(failure), file=sys.stderr)
    return 1 if failures else 0


def convert(options: Namespace) -> None:
    """Convert DETR weights between the formats of facebookresearch/detr, Hugging Face and MMDetection."""
    from detr_fast.models import convert_checkpoint

    print(
        convert_checkpoint(
            options.source,
            options.target,
            options.to,
            num_classes=options.classes,
            num_heads=options.num_heads,
            norm_between_layers=options.norm_between_layers or None,
            activation=options.activation,
        )
    )


def export(options: Namespace) -> str | None:
    """Export a saved model to ONNX, or to the format of torch.export, and check the file."""
    from detr_fast.models import DETR, ExportError, export_model

    try:
        error = export_model(DETR.from_pretrained(options.model), options.output)
    except ExportError as refused:
        return f"detr-fast: {refused}"
    print(f"{options.output}: its outputs differ from those of the model by at most {error:.1e} of their magnitude")
    return None


def check_data(options: Namespace) -> int:
    """Report every fault of a data set; the exit status is 1 if there are any."""
    from detr_fast.data import check_dataset, count_faults, describe_counts

    faults = check_dataset(
        options.images,
        options.annotations,
        num_queries=options.num_queries,
        orientation=options.orientation,
        figures=options.figures,
    )
    for fault in faults:
        print(fault)
    print(f"{len(faults)} faults: {describe_counts(count_faults(faults))}" if faults else "no faults")
    return 1 if faults else 0


def info(options: Namespace) -> None:
    """Show versions, devices, the backend of each op, and what is replaced in the installed host libraries."""
    _print_info()


COMMANDS = {
    "demo": demo,
    "train": train,
    "eval": evaluate,
    "predict": predict,
    "convert": convert,
    "export": export,
    "check-data": check_data,
    "info": info,
}


def _run_command(arguments: Sequence[str]) -> int | str | None:
    """Parse the arguments and run the command; returns the exit status, or a message for the status 1."""
    command, options = _parse(arguments)
    from detr_fast.training import USER_ERRORS, Stopped

    try:
        with warnings_as_lines():
            return COMMANDS[command](options)
    except Stopped as stopped:
        print(f"{stopped}; to continue, run the same command with --resume", file=sys.stderr)
        return 128 + stopped.signal
    except KeyboardInterrupt:
        return 130
    except USER_ERRORS as error:
        return f"detr-fast: {error}"
    finally:
        _leave_process_group()


def _leave_process_group() -> None:
    """Destroy the process group of the ranks, whose threads may abort a process that ends while they run."""
    import torch.distributed as dist  # which the errors of detr_fast.training have imported

    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def _parse(arguments: Sequence[str]) -> tuple[str, Namespace]:
    """Return the name of the command and its options; an error ends the process with one line."""
    command = next((argument for argument in arguments if argument in COMMANDS), None)
    completes = command is None and any(argument.partition("=")[0] == COMPLETION for argument in arguments)
    parser = _build_parser(COMMANDS if completes else {command})
    try:
        parsed = parser.parse_args(_resolve_configs(arguments, parser))
        return parsed.subcommand, parser.instantiate(parsed)[parsed.subcommand]
    # An integer beyond a float, or a value that a class refused.
    except (argparse.ArgumentError, OverflowError, ValueError) as error:
        name = "detr-fast" if command is None else f"detr-fast {command}"
        what, required, options = " ".join(str(error).split()).partition(" are required: ")
        dashes = "" if command == "convert" else "--"  # what convert requires is positional
        options = options.replace(f"{command}.", dashes)  # the parser writes train.epochs for --epochs
        print(f"{name}: {what}{required}{options} (see {name} --help)", file=sys.stderr)
        raise SystemExit(2) from None


def _build_parser(complete: Container[str | None]) -> ArgumentParser:
    """Build the parser, with the options of some commands only; those of the others would be imported in vain."""
    from jsonargparse import ArgumentParser, set_parsing_settings

    set_parsing_settings(add_print_completion_argument=True)  # the option that COMPLETION names
    parser = ArgumentParser(
        prog="detr-fast",
        description="DETR with interchangeable, verified backends",
        version=detr_fast.__version__,
        allow_abbrev=False,
        exit_on_error=False,
    )
    commands = parser.add_subcommands(required=True)
    for name, function in COMMANDS.items():
        summary = (function.__doc__ or "").split(";")[0].rstrip(".")
        subparser = ArgumentParser(
            description=summary, usage=f"detr-fast {name} [options]", allow_abbrev=False, exit_on_error=False
        )
        if name in complete:
            _add_arguments(subparser, name)
        commands.add_subcommand(name, subparser, help=summary)
    return parser


def _add_arguments(parser: ArgumentParser, command: str) -> None:
    from jsonargparse.typing import ClosedUnitInterval, NonNegativeInt, PositiveInt

    add = parser.add_argument
    if command in ("demo", "train"):
        from detr_fast.training import TrainConfig

        add("--config", action="config", help="a YAML file, or the name of a configuration of the package")
        parser.add_class_arguments(TrainConfig, as_group=False)
    if command == "demo":
        parser.default_config_files = [str(CONFIGS / "demo.yaml")]
    if command in ("demo", "train"):
        continues = "continue from the last readable checkpoint in the output directory"
        add("--resume", action="store_true", help=continues + (", as demo always does" if command == "demo" else ""))
    if command in ("eval", "export", "predict"):
        model = "directory of a saved model or of a run, for example runs/demo; or weights as for convert"
        add("--model", required=True, help=model)
    if command == "export":
        add("--output", required=True, help="the file to write, .onnx or .pt2, for any batch and image size")
    if command in ("eval", "predict"):
        add("--device", choices=["auto", "cpu", "cuda"], default="auto", help="auto uses a GPU if there is one")
    if command in ("eval", "check-data"):
        add("--images", required=True, help="directory of the images")
        add("--annotations", required=True, help="COCO JSON, or what tells of YOLO, Roboflow or Pascal VOC")
        orientation = "what boxes refer to in images with an EXIF orientation, where the stated size does not tell"
        add("--orientation", choices=["upright", "stored"], default="upright", help=orientation)
    if command == "check-data":
        add("--num_queries", type=PositiveInt, default=100, help="queries of the model to train, one for each object")
        add("--figures", help="a directory for drawings of images with faults, the first of each kind")
    if command == "eval":
        add("--batch_size", type=PositiveInt, default=2, help="images per batch on each rank")
        num_workers = "processes that load images on each rank; by default chosen by the number of cores"
        add("--num_workers", type=NonNegativeInt, default=None, help=num_workers)
        add("--mixed_precision", choices=["no", "fp16", "bf16"], default="no", help="precision of the model")
        add("--output", help="a JSON file for the metrics")
        add("--figures", help="a directory for precision-recall curves, a confusion matrix and drawn predictions")
    if command == "predict":
        add("images", nargs="+", help="image and video files, or directories of images, searched recursively")
        add("--output", default="predictions", help="directory for the drawings and predictions.json")
        add("--threshold", type=ClosedUnitInterval, default=0.5, help="minimum score of a detection")
        add("--attention", action="store_true", help="draw what the query of each detection attends to, too")
    if command == "convert":
        add("source", help="a file or a URL of weights, a name of published ones, a directory, or a Hub repository")
        add("target", help="a file, or a directory for the formats of Hugging Face")
        formats = ["original", "huggingface", "huggingface_timm", "mmdet2", "mmdet3"]
        add("--to", choices=formats, default="original", help="format to write; original is facebookresearch/detr's")
        convert_classes = "convert the class head between COCO's 91 raw ids and its 80 contiguous classes"
        add("--classes", type=int, choices=[80, 91], help=convert_classes)
        add(
            "--num_heads",
            type=PositiveInt,
            help="attention heads, where no configuration states them and they are not 8",
        )
        norm_between_layers = "the decoder normalizes between its layers (Hugging Face's auxiliary_loss)"
        add("--norm_between_layers", action="store_true", help=norm_between_layers)
        activations = ["relu", "leaky_relu", "elu", "gelu", "silu", "tanh"]
        add("--activation", choices=activations, help="activation of the feed-forward networks, where it is not relu")


def _resolve_configs(arguments: Sequence[str], parser: ArgumentParser) -> list[str]:
    """Replace the name of a configuration of the package after ``--config`` by its path, and check the files."""
    resolved = list(arguments)
    for position, argument in enumerate(arguments):
        option, equals, value = argument.partition("=")
        if option != "--config":
            continue
        at = position if equals else position + 1
        name = value if equals else (arguments[at] if at < len(arguments) else "")
        shipped = CONFIGS / f"{name.removesuffix('.yaml')}.yaml"
        if name and not Path(name).exists() and shipped.is_file():
            resolved[at] = f"--config={shipped}" if equals else str(shipped)
        elif name and Path(name).is_file():
            _refuse_nested_files(Path(name), parser)
    return resolved


def _refuse_nested_files(path: Path, parser: ArgumentParser) -> None:
    """End with an error if a configuration names other files, which would be read, and printed if they are no YAML."""
    import yaml

    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        parser.error(f"--config: cannot read {path}: {error}")
    if not isinstance(content, dict):
        parser.error(f"--config: {path} must contain a mapping of options")
    if "config" in content:
        parser.error(f"--config: {path} contains the key config; a configuration cannot include another")
    from detr_fast.training import TrainConfig

    for name, group in _groups(content, TrainConfig):
        if not isinstance(group, dict):
            parser.error(f"--config: {name} must be a mapping of options, got {group!r}")


def _groups(content: dict[str, Any], config: type, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the values that stand for groups of options, by their names."""
    for name, kind in get_type_hints(config).items():
        if is_dataclass(kind) and isinstance(kind, type) and name in content:
            yield prefix + name, content[name]
            if isinstance(content[name], dict):
                yield from _groups(content[name], kind, f"{prefix}{name}.")


def _train_config(options: Namespace) -> TrainConfig:
    from detr_fast.training import TrainConfig

    return TrainConfig(**{field.name: options[field.name] for field in fields(TrainConfig)})


def _run(config: TrainConfig, *, resume: bool) -> None:
    from detr_fast.training import Trainer

    trainer = Trainer(config, resume=resume)
    metrics = trainer.run()
    if trainer.accelerator.is_main_process:
        _print_metrics(metrics)
        logger.info(
            "%s has the best model in model, and curves.png, predictions.png and metrics.json beside it; "
            "to use the model: detr-fast predict IMAGES --model %s",
            *(escape(config.output), escape(shlex.quote(config.output))),
        )


def _print_info() -> None:
    from detr_fast.info import describe
    from detr_fast.integrations import describe_hosts

    print(describe())
    print(describe_hosts())


def _print_metrics(metrics: dict[str, Any]) -> None:
    for name, value in metrics["classes"].items():
        print(f"AP of {escape(name)}: {format_metric(value)}")
    print(", ".join(f"{name} {format_metric(metrics[name])}" for name in ("AP75", "AP_small", "AP_medium", "AP_large")))
    print(f"AP {format_metric(metrics['AP'])}")
    print(f"AP50 {format_metric(metrics['AP50'])}")


if __name__ == "__main__":
    main()
