"""The data sets of a run: opened, described, and held to those with which the run was started."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from accelerate import Accelerator

from detr_fast.checkpoints.state_dict import CheckpointError
from detr_fast.data import PaddedBatchSampler, Resize
from detr_fast.training.config import DataConfig
from detr_fast.training.loading import build_eval_data, build_train_data
from detr_fast.training.resume import REMEDY


class RunData:
    """The training and validation data of a run on a rank.

    Args:
        config: The data sets of the run.
        accelerator: Determines the rank and the number of ranks.
        seed: Seed of the order of the images and of the augmentation.

    Attributes:
        train: The batches of the training images.
        val_dataset: The validation images.
        val_loader: Loads the batches of the validation images of this rank.

    Raises:
        DataError: A data set cannot be used.
    """

    def __init__(self, config: DataConfig, accelerator: Accelerator, *, seed: int) -> None:
        self.train = build_train_data(config, accelerator, seed=seed)
        self.val_dataset, self.val_loader = build_eval_data(
            config.val_images,
            config.val_annotations,
            accelerator,
            transform=Resize(config.eval_size, config.eval_max_size),
            categories=self.train.dataset.categories,
            batch_size=config.batch_size,
            num_workers=config.num_workers,
            orientation=config.orientation,
            padded_sizes=config.padded_sizes,
        )
        self._digests = {"train": self.train.dataset.digest(), "val": self.val_dataset.digest()}
        self._described = ""

    def digests(self) -> dict[str, str]:
        """Return the SHA-256 checksums of both data sets, by ``"train"`` and ``"val"``."""
        return dict(self._digests)

    def check_unchanged(self, saved: Mapping[str, Any]) -> None:
        """Raise CheckpointError unless the digests ``saved`` with a run are those of its data sets now."""
        changed = [name for name, digest in self._digests.items() if digest != saved.get(name)]
        if changed:
            raise CheckpointError(
                f"the annotations or the images of the data set {' and '.join(changed)} have changed since the run was "
                f"started; {REMEDY}"
            )

    def describe_changes(self) -> str | None:
        """Summarize the data sets and their faults; None if that is what the last call returned."""
        described = f"{self.train.dataset.describe()}\n{self.val_dataset.describe()}"
        if described == self._described:
            return None
        self._described = described
        return described

    def warnings(self, num_queries: int) -> Iterator[str]:
        """Yield what the user should know about the data for a model with ``num_queries`` queries."""
        for dataset in (self.train.dataset, self.val_dataset):
            if many_objects := dataset.describe_many_objects(num_queries):
                yield f"model.num_queries is too small: {many_objects}"
        sampler = self.train.sampler
        if isinstance(sampler, PaddedBatchSampler) and (exceeding := sampler.describe_exceeding()):
            yield f"data.padded_sizes: {exceeding}"
