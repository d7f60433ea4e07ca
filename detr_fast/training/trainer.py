"""The training loop, on one or several ranks, which can be stopped and resumed at any step."""

from __future__ import annotations

import json
import logging
import math
import time
from dataclasses import replace
from pathlib import Path
from signal import SIGTERM
from typing import Any

import torch
import yaml
from accelerate.utils import set_seed
from safetensors import SafetensorError
from tqdm import tqdm

from detr_fast.checkpoints.state_dict import CheckpointError
from detr_fast.criterion import SetCriterion
from detr_fast.data import Batch
from detr_fast.text import format_metric
from detr_fast.training.captured import check_capture
from detr_fast.training.coco import CocoEvaluation
from detr_fast.training.config import TrainConfig, as_flat_data, as_plain_data
from detr_fast.training.device import set_tf32, tune_convolutions
from detr_fast.training.evaluation import EvaluationStopped, evaluate
from detr_fast.training.files import OutputLock, write_atomically
from detr_fast.training.model import build_model, check_model, describe_start, save_model
from detr_fast.training.monitor import LossMonitor, MetricsLog
from detr_fast.training.optim import describe_schedule
from detr_fast.training.prefetch import DeviceBatches, Waits
from detr_fast.training.ranks import build_accelerator, call_on_main, check_agreement
from detr_fast.training.resume import check_resumed
from detr_fast.training.run_checkpoint import BEST, LAST, load_latest, save_checkpoint
from detr_fast.training.run_data import RunData
from detr_fast.training.signals import Stopped, StopSignal
from detr_fast.training.state import RunState
from detr_fast.training.step import TrainingStep
from detr_fast.training.trackers import RUNS_FILE, start_trackers

logger = logging.getLogger(__name__)

PATIENCE = 60.0  # seconds that a rank waits for the others after a signal


class Trainer:
    """Trains a model according to a :class:`TrainConfig`.

    Args:
        config: The configuration, which is written to the output directory as config.yaml.
        resume: Whether to continue from the latest readable checkpoint in the output directory, if there is one.

    Raises:
        DataError: The data sets cannot be used.
        CheckpointError: The output directory contains a run and ``resume`` is False, or none of its checkpoints can be
            read, or another process is writing to it, or the weights to start from cannot be loaded.
        ConfigError: An option of the model is out of range, the output directory cannot be written to, or the ranks of
            the launch differ in their data or settings.
        FileNotFoundError: The weights to start from do not exist.
    """

    def __init__(self, config: TrainConfig, *, resume: bool = False) -> None:
        self.config = config
        self.output = Path(config.output)
        check_model(config.model)
        self.accelerator = build_accelerator(
            mixed_precision=config.mixed_precision,
            device=config.device,
            trackers=config.trackers,
            directory=self.output,
        )
        if config.capture:
            check_capture(self.accelerator.device, self.accelerator)
        if self.accelerator.mixed_precision == "no":
            set_tf32(config.allow_tf32)
        if config.data.padded_sizes:
            tune_convolutions()
        self._lock = call_on_main(self.accelerator, lambda: OutputLock(self.output))
        saved = self._saved_state(resume)
        self.data = RunData(config.data, self.accelerator, seed=config.seed)
        check_agreement(self.accelerator, self._facts())
        if self.accelerator.is_main_process and (warning := describe_schedule(config.optim, config.epochs)):
            logger.warning(warning)
        self._describe_data()
        for warning in self.data.warnings(config.model.num_queries):
            self._say(warning)

        set_seed(config.seed)
        architecture = config.model
        if saved is not None:  # the weights to start from are not needed again
            architecture = replace(architecture, weights=None, backbone_weights=None)
        elif warning := describe_start(config.model):
            self._say(warning)
        model = build_model(architecture, config.data, self.data.train.dataset.categories)
        self.criterion = SetCriterion(config.match, config.loss)
        steps_per_epoch = math.ceil(len(self.data.train) / config.optim.accumulate)
        self.state = RunState(model, config, self.accelerator, steps_per_epoch=steps_per_epoch)
        self.monitor = LossMonitor()
        self._padding_shares: list[float] = []
        self.step = TrainingStep(self.state, self.criterion, self.monitor, config)
        self.stop = StopSignal(patience=PATIENCE if self.accelerator.num_processes > 1 else None)
        if saved is not None:
            self.data.check_unchanged(saved["data"])
            self.state.load(saved)
            self._say(f"resuming in epoch {self.state.progress.epoch + 1}, after step {self.state.progress.step}")

    def run(self) -> dict[str, Any]:
        """Train until the last epoch is finished.

        Returns:
            The metrics of the last evaluation.

        Raises:
            Stopped: SIGTERM or Ctrl-C was received; the checkpoint is written.
            TrainingError: A loss is not finite.
            CheckpointError: The last checkpoint could not be written.
            ConfigError: An experiment tracker could not be started.
        """
        if self._lock is None:
            return self._run()
        self._lock.acquire()
        try:
            return self._run()
        finally:
            self._lock.release()

    def _run(self) -> dict[str, Any]:
        progress, config = self.state.progress, self.config
        if self.accelerator.is_main_process:
            write_atomically(self.output / "config.yaml", yaml.safe_dump(as_plain_data(config), sort_keys=False))
            if not progress.step:
                (self.output / RUNS_FILE).unlink(missing_ok=True)  # of a run whose checkpoints have been removed
                self._draw_training_images()
        metrics: dict[str, Any] = {}
        with self.stop, self._start_log() as log:
            if progress.epoch >= config.epochs or self._is_patience_over():
                return self._evaluate(log)
            first = progress.epoch
            for epoch in range(first, config.epochs):
                waits = self._train_epoch(epoch, log)
                if epoch == first and (bound := waits.describe()):
                    self._say(f"epoch {epoch + 1}: {bound}")
                last = epoch + 1 == config.epochs
                if last or (epoch + 1) % config.eval_every == 0:
                    metrics = self._evaluate(log)
                progress.epoch, progress.samples = epoch + 1, 0
                if config.checkpoint_every and (epoch + 1) % config.checkpoint_every == 0:
                    self._save(f"epoch-{epoch + 1:04d}.pt")
                ends_early = not last and self._is_patience_over()
                self._save(LAST, must=last or ends_early)
                self._describe_data()
                if ends_early:
                    self._say(f"AP has not risen for {progress.evaluations_since_best} evaluations; the run ends early")
                    break
        return metrics

    def _start_log(self) -> MetricsLog:
        """Start the log of the records and the experiment trackers of the configuration."""
        step = self.state.progress.step
        trackers = None
        if self.config.trackers:
            settings = as_flat_data(self.config)
            trackers = call_on_main(
                self.accelerator,
                lambda: start_trackers(self.accelerator, self.output, settings, resumed=step > 0),
            )
        enabled = self.accelerator.is_main_process
        return MetricsLog(self.output, step=step, enabled=enabled, trackers=trackers or ())

    def _is_patience_over(self) -> bool:
        return 0 < self.config.patience <= self.state.progress.evaluations_since_best

    def _draw_training_images(self) -> None:
        from detr_fast.training.report import write_training_images  # imports matplotlib

        try:
            write_training_images(self.output, self.data.train.dataset)
        except OSError as error:
            logger.warning("could not draw training images in %s: %s; training continues", self.output, error)

    def _train_epoch(self, epoch: int, log: MetricsLog) -> Waits:
        progress, config = self.state.progress, self.config
        per_batch = config.data.batch_size * self.accelerator.num_processes
        start = progress.samples // per_batch
        # On the main process nothing is passed, so that TQDM_DISABLE decides.
        hidden: dict[str, Any] = {} if self.accelerator.is_main_process else {"disable": True}
        bar = tqdm(
            total=len(self.data.train),
            initial=start,
            desc=f"epoch {epoch + 1}/{config.epochs}",
            unit="batch",
            **hidden,
        )
        self.state.model.train()
        batches = DeviceBatches(
            self.data.train.epoch(epoch, start=start), self.accelerator.device, memory_format=self.state.memory_format
        )
        clock = _Clock()
        with bar:
            for index, batch in enumerate(batches, start):
                ends_epoch = index + 1 == len(self.data.train)
                ends_step = ends_epoch or (index + 1) % config.optim.accumulate == 0
                self._train_batch(batch, ends_step=ends_step)
                self.stop.beat()
                progress.samples += per_batch
                progress.seconds += clock.count(per_batch)
                bar.update()
                if not ends_step:
                    continue
                progress.step += 1
                logs = ends_epoch or progress.step % config.log_every == 0
                if logs:
                    self._log_losses(log, bar, clock.rate())
                if config.checkpoint_steps and progress.step % config.checkpoint_steps == 0:
                    self._save(LAST)
                self._stop_if_asked(synchronized=logs)
        return batches.waits

    def _train_batch(self, batch: Batch, *, ends_step: bool) -> None:
        self._padding_shares.append(batch.padding_share)
        self.step(batch, last=ends_step)
        if self.accelerator.device.type == "cpu":
            self.monitor.check()  # on a CPU this synchronizes nothing

    def _log_losses(self, log: MetricsLog, bar: tqdm, images_per_second: float) -> None:
        shares, self._padding_shares = self._padding_shares, []
        means = {**self.monitor.means(), "padding": sum(shares) / len(shares)}
        values = torch.tensor(list(means.values()), device=self.accelerator.device)
        record = dict(zip(means, self.accelerator.reduce(values, reduction="mean").tolist(), strict=True))
        rate = self.state.learning_rate
        progress = self.state.progress
        log.write(
            "train",
            progress.step,
            {"epoch": progress.epoch, "lr": rate, "images_per_second": images_per_second, **record},
        )
        best = f", best AP {progress.best_ap:.3f}" if progress.best_ap >= 0 else ""
        bar.set_postfix_str(f"loss {record['loss']:.3f}{best}, lr {rate:.1e}, {images_per_second:.0f} images/s")

    def _evaluate(self, log: MetricsLog) -> dict[str, Any]:
        """Save a checkpoint and evaluate the weights; the best weights so far are saved as the model."""
        progress = self.state.progress
        self._save(LAST)
        try:
            metrics, coco = evaluate(
                self.state.weights,
                self.data.val_loader,
                self.data.val_dataset,
                self.accelerator,
                criterion=self.criterion,
                should_stop=self._stops_evaluation,
            )
        except EvaluationStopped:
            raise self._stopped() from None
        best = metrics["AP"] > progress.best_ap
        progress.evaluations_since_best = 0 if best else progress.evaluations_since_best + 1
        if best:
            progress.best_ap = metrics["AP"]
            self._save(BEST)
        if coco is not None:
            scores = ", ".join(f"{name} {format_metric(metrics[name])}" for name in ("AP", "AP50"))
            self._say(f"epoch {progress.epoch + 1}: {scores}")
            log.write("eval", progress.step, {"epoch": progress.epoch, "seconds": progress.seconds, **metrics})
            try:
                self._write_results(coco, metrics, best=best)
            except (OSError, SafetensorError) as error:
                logger.warning("could not write the results to %s: %s; training continues", self.output, error)
        return metrics

    def _stops_evaluation(self) -> bool:
        self.stop.beat()
        return self.accelerator.num_processes == 1 and self.stop.received is not None

    def _write_results(self, coco: CocoEvaluation, metrics: dict[str, Any], *, best: bool) -> None:
        from detr_fast.training.report import write_curves, write_evaluation  # imports matplotlib

        progress = self.state.progress
        if best:
            save_model(self.state.weights, self.output / "model")
        summary = {**metrics, "best_AP": progress.best_ap, "step": progress.step, "seconds": progress.seconds}
        write_atomically(self.output / "metrics.json", json.dumps(summary, indent=2) + "\n")
        write_curves(self.output)
        write_evaluation(self.output, self.state.weights, self.data.val_dataset, coco)

    def _save(self, name: str, *, must: bool = False) -> None:
        """Write a checkpoint; a failure raises CheckpointError if ``must``, and else is logged only."""
        self.monitor.check()  # weights after a loss that is not finite are never saved
        state = self.state.state_dict() | {"config": as_plain_data(self.config), "data": self.data.digests()}
        if not self.accelerator.is_main_process:
            return
        try:
            save_checkpoint(state, self.output / "checkpoints" / name)
        except CheckpointError as error:
            if must:
                raise
            logger.warning("%s; training continues, and a checkpoint is written again later", error)

    def _saved_state(self, resume: bool) -> dict[str, Any] | None:
        directory = self.output / "checkpoints"
        if resume:
            saved = load_latest(directory)
            if saved is None:
                self._say(f"{directory} contains no checkpoint yet; starting from the beginning")
                return None
            changes = check_resumed(saved, self.config, num_ranks=self.accelerator.num_processes)
            if changes:
                self._say(f"resuming with other settings: {', '.join(changes)}")
            return saved
        if any(directory.glob("*.pt")):
            raise CheckpointError(
                f"{self.output} already contains a run; continue it with --resume (in Python, resume=True), or choose "
                "another --output"
            )
        return None

    def _facts(self) -> dict[str, Any]:
        """Return what all ranks have to agree on, in order to do the same number of steps and evaluations."""
        config = self.config
        names = ("epochs", "eval_every", "log_every", "checkpoint_every", "patience")
        settings = {name: getattr(config, name) for name in names}
        batches: dict[str, Any] = {"the number of training batches": len(self.data.train)}
        batches |= {"optim.accumulate": config.optim.accumulate, "data.padded_sizes": config.data.padded_sizes}
        digests = {f"the {name} data (SHA-256)": digest for name, digest in self.data.digests().items()}
        return batches | settings | {"checkpoint_steps": config.checkpoint_steps, "model": config.model} | digests

    def _stop_if_asked(self, *, synchronized: bool) -> None:
        asked = self.stop.received is not None
        if self.accelerator.num_processes > 1:
            # All ranks have to stop at the same step; they agree on it when they reduce the losses.
            if not synchronized:
                return
            flag = torch.tensor(float(asked), device=self.accelerator.device)
            asked = bool(self.accelerator.reduce(flag, reduction="sum") > 0)
        if asked:
            self._save(LAST, must=True)
            raise self._stopped()

    def _stopped(self) -> Stopped:
        signal = self.stop.received or SIGTERM  # None if another rank received it
        return Stopped(signal, self.state.progress.step, self.output / "checkpoints" / LAST)

    def _describe_data(self) -> None:
        if described := self.data.describe_changes():
            self._say(described)

    def _say(self, text: str) -> None:
        if self.accelerator.is_main_process:
            tqdm.write(text)


class _Clock:
    """Measures the time between counts, and the images per second between rates."""

    def __init__(self) -> None:
        self._last = self._since = time.perf_counter()
        self._images = 0

    def count(self, images: int) -> float:
        now = time.perf_counter()
        passed, self._last = now - self._last, now
        self._images += images
        return passed

    def rate(self) -> float:
        rate = self._images / max(self._last - self._since, 1e-9)
        self._since, self._images = self._last, 0
        return rate
