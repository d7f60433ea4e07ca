from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from detr_fast import DETR
from detr_fast.models import CheckpointError
from detr_fast.training import ConfigError, Trainer
from detr_fast.training.files import OutputLock, write_atomically
from detr_fast.training.run_checkpoint import load_checkpoint, load_latest, save_checkpoint


@pytest.fixture
def finished(config):
    """The configuration of a finished run, and the path of its last checkpoint."""
    settings = config(epochs=1, checkpoint_steps=1)
    Trainer(settings).run()
    return settings, Path(settings.output) / "checkpoints" / "last.pt"


def _flip_bit_of_a_weight(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        largest = max(archive.infolist(), key=lambda info: info.file_size)
    content = bytearray(path.read_bytes())
    content[largest.header_offset + 200 + largest.file_size // 2] ^= 1
    path.write_bytes(content)


def test_a_flipped_bit_is_found_and_the_previous_checkpoint_is_used(finished, caplog):
    settings, last = finished
    _flip_bit_of_a_weight(last)
    with caplog.at_level(logging.WARNING):
        Trainer(settings, resume=True)
    assert "last.pt is damaged or not a checkpoint" in caplog.text
    assert "does not have the checksum" in caplog.text
    assert "previous.pt instead" in caplog.text


def test_a_flipped_bit_of_a_saved_model_is_found(finished):
    settings, _ = finished
    weights = Path(settings.output) / "model" / "model.safetensors"
    intact = weights.read_bytes()
    for position in (len(intact) // 2, len(intact) - 1):
        damaged = bytearray(intact)
        damaged[position] ^= 1
        weights.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"model\.safetensors: damaged: .* checksum"):
            DETR.from_pretrained(weights.parent)


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("scheduler", None, "has no scheduler"),
        ("random", None, "has no random"),
        ("random", [], "random is malformed"),
        ("random", [{"python": (3, (1, 2), None)}], "random is malformed"),
        ("progress", {"epoch": -5}, "progress is malformed"),
        ("progress", {"epoch"}, "progress is malformed"),  # without it
        ("progress", {"epoch": "two"}, "progress is malformed"),
        ("progress", {"epoch": 1.5}, "progress is malformed"),
        ("progress", {"best_ap": float("nan")}, "progress is malformed"),
        ("progress", {"pace": 3}, "progress is malformed"),
        ("scheduler", {"last_epoch": -1}, "scheduler is malformed"),
        ("model", [1, 2], "model is malformed"),
        ("optimizer", {"state": 3}, "optimizer is malformed"),
    ],
)
def test_a_complete_file_of_wrong_content_gives_way_to_the_previous_one(finished, caplog, part, change, message):
    settings, last = finished
    state = load_checkpoint(last)
    if change is None:
        del state[part]
    elif isinstance(change, set):
        state[part] = {name: value for name, value in state[part].items() if name not in change}
    elif isinstance(change, dict):
        state[part] = state[part] | change
    else:
        state[part] = change
    torch.save(state, last)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(last)
    with caplog.at_level(logging.WARNING):
        Trainer(settings, resume=True)
    assert "previous.pt instead" in caplog.text


def test_an_optimizer_state_of_another_shape_is_refused(finished):
    settings, last = finished
    state = load_checkpoint(last)
    state["optimizer"]["state"][0]["exp_avg"] = torch.zeros(2, 3)
    torch.save(state, last)
    with pytest.raises(CheckpointError, match=r"exp_avg of parameter 0 is \[2, 3\]"):
        Trainer(settings, resume=True)


@pytest.mark.parametrize("target", ["last.pt", "nowhere.pt"])
def test_links_that_lead_nowhere_give_way_to_the_previous_checkpoint(finished, caplog, target):
    _, last = finished
    last.unlink()
    last.symlink_to(last.with_name(target))  # a loop, or a dangling link
    with caplog.at_level(logging.WARNING):
        assert load_latest(last.parent) is not None
    assert "previous.pt instead" in caplog.text


def test_a_second_run_in_the_same_directory_is_refused(config):
    settings = config()
    program = (
        "import sys, time\nfrom pathlib import Path\nfrom detr_fast.training.files import OutputLock\n"
        f"lock = OutputLock(Path({settings.output!r}))\nprint('locked', flush=True)\ntime.sleep(100)"
    )
    other = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "locked\n"
        with pytest.raises(CheckpointError, match="another process is writing to"):
            Trainer(settings)
    finally:
        other.send_signal(signal.SIGKILL)
        other.wait()
    OutputLock(Path(settings.output)).release()  # the lock of a killed process is released


def test_the_lock_is_released_after_the_run(config):
    settings = config(epochs=1)
    trainer = Trainer(settings)
    program = "from pathlib import Path\nfrom detr_fast.training.files import OutputLock\n"
    program += f"OutputLock(Path({settings.output!r}))"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, check=False).returncode == 1
    trainer.run()
    subprocess.run([sys.executable, "-c", program], check=True)


def test_an_output_that_is_a_file_is_refused_by_name(config, tmp_path):
    (tmp_path / "run").write_text("a file")
    with pytest.raises(ConfigError, match="output: cannot create the directory"):
        Trainer(config())


def test_the_directory_is_synchronized_after_each_rename(finished, monkeypatch, tmp_path):
    """A rename that is only in memory would leave the older file after a power failure."""
    synchronized = []

    def record(descriptor: int) -> None:
        synchronized.append(os.readlink(f"/proc/self/fd/{descriptor}"))

    monkeypatch.setattr(os, "fsync", record)
    save_checkpoint(load_checkpoint(finished[1]), tmp_path / "last.pt")
    write_atomically(tmp_path / "text", "content")
    folder = str(tmp_path)
    assert synchronized == [f"{folder}/last.pt.partial", folder, f"{folder}/text.partial", folder]
