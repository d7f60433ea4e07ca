"""The files of weights and of saved models: on this machine, published ones, and those of the Hugging Face Hub."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from huggingface_hub.utils import logging as hub_logging

from detr_fast.checkpoints.build import Source, read_config
from detr_fast.checkpoints.published import PUBLISHED, download, find_published, is_url, recognize_published
from detr_fast.checkpoints.state_dict import CheckpointError

logger = logging.getLogger(__name__)

CONFIG = "config.json"
WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # the first of them that exists is read
HUB_ARGUMENTS = (
    "revision",
    "cache_dir",
    "force_download",
    "proxies",
    "resume_download",
    "local_files_only",
    "token",
)  # the arguments of hf_hub_download in the supported versions of huggingface_hub

_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")  # owner and name


class SavedFiles(NamedTuple):
    """The files of a saved model."""

    config: Path
    weights: Path


def find_weights(source: str | Path, hub_arguments: Mapping[str, Any] | None = None) -> Source:
    """Find the weights of a model, or download them.

    Args:
        source: A file of weights; a directory as for :func:`find_files`; a name in
            :data:`~detr_fast.checkpoints.published.PUBLISHED`; a URL as for
            :func:`~detr_fast.checkpoints.published.download`; or the id of a repository on the Hugging Face Hub. The
            first of these that exists is taken.
        hub_arguments: As for :func:`find_files`.

    Raises:
        FileNotFoundError: There are no weights of that name, or they cannot be reached.
        CheckpointError: The directory contains no model, config.json cannot be read, or a download has another
            checksum.
    """
    path, name = Path(source), str(source)
    if os.path.isfile(path):  # unlike Path.is_file, not an error for a name that is too long, as a URL may be
        published = recognize_published(path)
        return Source(path, None if published is None else published.config)
    published = find_published(name)
    if not os.path.isdir(path) and (published is not None or is_url(name)):
        config = None if published is None else published.config
        return Source(download(name if published is None or is_url(name) else published.url), config)
    files = find_files(name, hub_arguments or {})
    return Source(files.weights, read_config(files.config))


def find_files(name: str, hub_arguments: Mapping[str, Any]) -> SavedFiles:
    """Find the files of a saved model, or download them.

    Args:
        name: A directory written by ``save_pretrained``, the output directory of a run, or the id of a repository on
            the Hugging Face Hub.
        hub_arguments: Arguments of :func:`huggingface_hub.hf_hub_download`.

    Raises:
        FileNotFoundError: There is neither such a directory nor a reachable repository of that name.
        CheckpointError: The directory contains no model.
    """
    path = Path(name)
    if os.path.isdir(path):
        return _local_files(path)
    if not _REPOSITORY.fullmatch(name):
        raise FileNotFoundError(f"{name}: there is no such file or directory{_suggestion(path)}")
    return _hub_files(name, hub_arguments)


def describe_run(checkpoint: Path) -> str:
    """Say where the run that wrote a checkpoint has its saved model; an empty text for a file of no run."""
    model = checkpoint.parent.parent / "model"
    if not (model / CONFIG).exists():
        return ""
    return f"; {model} is the saved model of this run, which has its architecture, too"


def _suggestion(path: Path) -> str:
    names = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    similar = [path.with_name(name) for name in get_close_matches(path.name, names, n=1)]
    similar += [Path(name) for name in get_close_matches(str(path), PUBLISHED, n=1)]
    return f"; did you mean {' or '.join(map(str, similar))}?" if similar else ""


def _local_files(directory: Path) -> SavedFiles:
    if not (directory / CONFIG).exists() and (directory / "model" / CONFIG).exists():
        directory = directory / "model"  # of the output directory of a run
    if not (directory / CONFIG).exists():
        raise CheckpointError(f"{directory}: there is no config.json, which describes the model")
    weights = [directory / name for name in WEIGHTS]
    return SavedFiles(directory / CONFIG, next((path for path in weights if path.exists()), weights[0]))


def _hub_files(repository: str, arguments: Mapping[str, Any]) -> SavedFiles:
    """Download the files of a repository of the Hugging Face Hub, or find them in the cache."""
    logger.info("%s is no file or directory; looking for it on the Hugging Face Hub, for up to a minute", repository)
    with _without_retries_logged():
        try:
            config = hf_hub_download(repository, CONFIG, **arguments)
        except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError) as error:
            raise FileNotFoundError(
                f"{repository}: there is no such file or directory, and no repository of that name with a config.json "
                f"can be reached on the Hugging Face Hub{_suggestion(Path(repository))}"
            ) from error
        for name in WEIGHTS:
            try:
                return SavedFiles(Path(config), Path(hf_hub_download(repository, name, **arguments)))
            except EntryNotFoundError:
                continue
    raise FileNotFoundError(f"{repository}: the repository has no {' and no '.join(WEIGHTS)}, or it cannot be reached")


@contextmanager
def _without_retries_logged() -> Iterator[None]:
    """Keep huggingface_hub from logging each attempt to reach the Hub; the error of the last one says it all."""
    verbosity = hub_logging.get_verbosity()
    hub_logging.set_verbosity(max(verbosity, logging.ERROR))
    try:
        yield
    finally:
        hub_logging.set_verbosity(verbosity)
