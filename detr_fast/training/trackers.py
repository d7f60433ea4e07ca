"""Experiment trackers: a resumed run continues in them, and their failures do not stop training."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker, get_available_trackers

from detr_fast.training.config import ConfigError
from detr_fast.training.files import write_atomically

logger = logging.getLogger(__name__)

PROJECT = "detr_fast"
RUNS_FILE = "trackers.json"  # the id of the run in each tracker
MAX_FAILURES = 3  # in succession; each may take minutes if a server does not answer


@dataclass(frozen=True)
class _Resumption:
    """How a tracker continues a run."""

    run_id: Callable[[Any], str]  # of what GeneralTracker.tracker returns
    arguments: Callable[[str], dict[str, str]]  # of Accelerate's class of the tracker, from the id


_RESUMPTIONS = {
    "mlflow": _Resumption(lambda run: run.info.run_id, lambda run_id: {"run_id": run_id}),
    "wandb": _Resumption(lambda run: run.id, lambda run_id: {"id": run_id, "resume": "allow"}),
}


class Tracker:
    """An experiment tracker that has been started. Its failures are logged; after several it is left out.

    Args:
        tracker: Accelerate's tracker.
    """

    def __init__(self, tracker: GeneralTracker) -> None:
        self._tracker = tracker
        self._failures = 0  # since a record was last logged

    def store_settings(self, settings: Mapping[str, Any]) -> None:
        """Log the settings of the run."""
        try:
            self._tracker.store_init_configuration(dict(settings))
        except Exception as error:  # MLflow, for example, refuses settings that changed since the run was started
            logger.warning("%s did not take the settings, which config.yaml has: %s", self._tracker.name, error)

    def log(self, scalars: Mapping[str, float], step: int) -> None:
        """Log scalars by their names."""
        if self._failures == MAX_FAILURES:
            return
        try:
            self._tracker.log(dict(scalars), step=step)
        except Exception as error:  # of any type
            self._failures += 1
            ending = "; it gets no more records of this run" if self._failures == MAX_FAILURES else ""
            logger.warning(
                "%s could not log step %d: %s; training continues%s", self._tracker.name, step, error, ending
            )
        else:
            self._failures = 0

    def finish(self) -> None:
        """End the run in the tracker."""
        try:
            self._tracker.finish()
        except Exception as error:  # of any type; what was trained is saved
            logger.warning("could not finish the tracker %s: %s", self._tracker.name, error)


def check_trackers(names: Sequence[str]) -> None:
    """Raise ConfigError for a tracker that Accelerate would ignore."""
    known, available = list(LOGGER_TYPE_TO_CLASS), [str(name) for name in get_available_trackers()]
    for name in names:
        if name not in known:
            raise ConfigError(f"trackers: Accelerate has no tracker {name!r}; it has {', '.join(known)}")
        if name not in available:
            raise ConfigError(f"trackers: the package of {name} is not installed; pip install {name} installs it")


def start_trackers(
    accelerator: Accelerator, directory: Path, settings: Mapping[str, Any], *, resumed: bool
) -> list[Tracker]:
    """Start the experiment trackers whose names the accelerator has, on the rank that writes.

    Args:
        accelerator: The accelerator.
        directory: Output directory of the run, which keeps the id of the run in each tracker.
        settings: The settings by their names.
        resumed: Whether the run continues from a checkpoint, and therefore in the runs of the trackers.

    Returns:
        The trackers.

    Raises:
        ConfigError: A tracker could not be started, or the ids cannot be read.
    """
    path = directory / RUNS_FILE
    ids = _read_ids(path) if resumed else {}
    arguments = {name: way.arguments(ids[name]) for name, way in _RESUMPTIONS.items() if name in ids}
    accelerator.trackers.clear()  # those of an earlier call have been finished
    try:
        accelerator.init_trackers(PROJECT, init_kwargs=arguments)
    except Exception as error:  # of any type
        names = ", ".join(str(name) for name in accelerator.log_with)
        hint = f", or remove {path}, so that new runs are started in the trackers" if ids else ""
        raise ConfigError(f"trackers: cannot start {names}: {error}; train without them{hint}") from error
    for tracker in accelerator.trackers:
        if way := _RESUMPTIONS.get(tracker.name):
            ids[tracker.name] = way.run_id(tracker.tracker)
    if ids:
        write_atomically(path, json.dumps(ids) + "\n")
    trackers = [Tracker(tracker) for tracker in accelerator.trackers]
    for started in trackers:
        started.store_settings(settings)
    return trackers


def _read_ids(path: Path) -> dict[str, str]:
    try:
        ids = json.loads(path.read_text())
        if not (isinstance(ids, dict) and all(isinstance(value, str) for value in ids.values())):
            raise ValueError("it does not have the ids of runs by the names of trackers")
    except FileNotFoundError:  # the run was started without trackers
        return {}
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"trackers: cannot read {path}: {error}; remove it, so that new runs are started in the trackers"
        ) from error
    return ids
