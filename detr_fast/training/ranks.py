"""The ranks of a launch: each launched process is one, or the launch is refused."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, is_initialized
from accelerate.utils import broadcast_object_list, gather_object

from detr_fast.checkpoints.state_dict import CheckpointError
from detr_fast.training.config import ConfigError
from detr_fast.training.trackers import check_trackers

Result = TypeVar("Result")

_WORLD_SIZE = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")  # of torchrun and MPI
_LOCAL_WORLD_SIZE = ("LOCAL_WORLD_SIZE", "MPI_LOCALNRANKS", "OMPI_COMM_WORLD_LOCAL_SIZE")


def check_device(device: str) -> None:
    """Raise ConfigError if the device ``"cuda"`` is asked for and there is no GPU."""
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device: there is no GPU that PyTorch can use; choose auto or cpu")


def build_accelerator(
    *, mixed_precision: str, device: str = "auto", trackers: Sequence[str] = (), directory: Path | None = None
) -> Accelerator:
    """Build the accelerator, with one rank for each process of the launch.

    Args:
        mixed_precision: ``"no"``, ``"fp16"``, ``"bf16"``, or ``"auto"`` for bf16 on a GPU that supports it and no
            mixed precision elsewhere.
        device: ``"auto"`` for a GPU if there is one, ``"cpu"`` or ``"cuda"``.
        trackers: Names of experiment trackers.
        directory: Directory for the trackers that write files.

    Raises:
        ConfigError: There is no such device, or it does not support the precision, or this process has used another
            device or precision before, or Accelerate runs another number of ranks than processes were launched, or a
            tracker is unknown or not installed.
    """
    check_device(device)
    check_trackers(trackers)
    launched = _read_number(_WORLD_SIZE) or 1
    # Without an accelerator, Accelerate makes ranks of the processes only if the CPU is asked for.
    cpu = device == "cpu" or (launched > 1 and not torch.accelerator.is_available())
    if mixed_precision == "auto":
        supported = not cpu and torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
        mixed_precision = "bf16" if supported else "no"
    kept = AcceleratorState() if is_initialized() else None  # of an earlier call
    try:
        accelerator = Accelerator(
            mixed_precision=mixed_precision, cpu=cpu, log_with=list(trackers) or None, project_dir=directory
        )
    except ValueError as error:
        raise ConfigError(f"mixed_precision: {error}" if kept is None else _describe_kept(kept)) from error
    if kept is not None and kept.device.type == "cpu" and not cpu and torch.cuda.is_available():
        raise ConfigError(_describe_kept(kept))
    if accelerator.num_processes != launched:
        raise ConfigError(
            f"{launched} processes were launched, but Accelerate runs {accelerator.num_processes} rank(s) on "
            f"{accelerator.device}, so that several would write the same files; start the command with torchrun"
        )
    return accelerator


def _describe_kept(state: AcceleratorState) -> str:
    return (
        f"mixed_precision, device: this process has trained or evaluated in precision {state.mixed_precision!r} on "
        f"{state.device}, which Accelerate keeps until it ends; to change them, restart the process (in a notebook, "
        "the kernel)"
    )


def count_local_ranks(accelerator: Accelerator) -> int:
    """Return the number of ranks on this machine; that of all ranks if the launcher does not tell."""
    return _read_number(_LOCAL_WORLD_SIZE) or accelerator.num_processes


def _read_number(variables: Sequence[str]) -> int | None:
    """Return the first number above 0 among environment variables; None if there is none."""
    numbers = (int(os.environ[name]) for name in variables if os.environ.get(name, "").isdecimal())
    return next(filter(None, numbers), None)


def call_on_main(accelerator: Accelerator, function: Callable[[], Result]) -> Result | None:
    """Call a function on the rank that writes.

    Args:
        accelerator: The accelerator.
        function: The function.

    Returns:
        Its result on that rank, None on the others.

    Raises:
        CheckpointError: The function raises it. All ranks do, so that none waits for another.
        ConfigError: Likewise.
    """
    result = None
    raised: list[Exception | None] = [None]
    if accelerator.is_main_process:
        try:
            result = function()
        except (CheckpointError, ConfigError) as error:
            raised = [error]
    broadcast_object_list(raised)
    if raised[0] is not None:
        raise raised[0]
    return result


def check_agreement(accelerator: Accelerator, facts: Mapping[str, Any]) -> None:
    """Check that all ranks start from the same facts; ranks that differ would wait for each other forever.

    Args:
        accelerator: The accelerator.
        facts: Comparable values by their descriptions.

    Raises:
        ConfigError: The facts of two ranks differ. All ranks raise it.
    """
    of_ranks = gather_object([dict(facts)])
    for name, value in of_ranks[0].items():
        for rank, other in enumerate(of_ranks):
            if other[name] != value:
                raise ConfigError(f"the ranks differ in {name}: {value} on rank 0, {other[name]} on rank {rank}")
