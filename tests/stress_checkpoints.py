"""Damage checkpoints and saved models at random: ``python -m tests.stress_checkpoints``.

A damaged file must be refused with a CheckpointError, or have the content of the file that was damaged: some bits, such
as those of padding, carry no content. So must a complete checkpoint in which a part is missing or replaced.
"""

from __future__ import annotations

import copy
import random
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from detr_fast import DETR
from detr_fast.checkpoints.state_dict import CheckpointError, read_state_dict
from detr_fast.data import Augmentation
from detr_fast.training import DataConfig, ModelConfig, OptimConfig, TrainConfig
from detr_fast.training.config import as_plain_data
from detr_fast.training.resume import check_resumed
from detr_fast.training.run_checkpoint import load_checkpoint, save_checkpoint
from detr_fast.training.state import RunState
from tests.stress import main

SIZES = {"hidden_dim": 8, "num_heads": 2, "num_encoder_layers": 1, "num_decoder_layers": 1, "dim_feedforward": 8}
CONFIG = TrainConfig(
    data=DataConfig("", "", "", "", augmentation=Augmentation()),
    model=ModelConfig(backbone="resnet_tiny", num_queries=3, **SIZES),
    optim=OptimConfig(ema_decay=0.9),
    device="cpu",
)
JUNK: list[Any] = [None, -5, 0, 2**70, 1.5, float("nan"), "text", [], {}, (), [None], {"a": 1}, torch.zeros(3, 2)]
Load = Callable[[Path], Any]


def run(folder: Path, cases: int, seed: int) -> tuple[Counter[str], list[str]]:
    """Damage files ``cases`` times in each way; returns the number of each outcome, and the failures."""
    rng = random.Random(seed)
    counts: Counter[str] = Counter()
    failures = []
    for name, outcome in [*_damaged_files(folder, cases, rng), *_replaced_parts(folder, cases, rng)]:
        counts[f"{name}: {outcome.split(':')[0]}"] += 1
        if outcome not in ("refused", "the same content", "loaded"):
            failures.append(f"seed {seed}: {name}: {outcome}")
    return counts, failures


def _damaged_files(folder: Path, cases: int, rng: random.Random) -> Iterator[tuple[str, str]]:
    state = _run_state()
    model = state.weights
    save_checkpoint(_complete(state), folder / "last.pt")
    model.save_pretrained(folder / "model")
    torch.save({"model": model.state_dict()}, folder / "weights.pth")
    loaders: dict[str, tuple[Path, Load]] = {
        "run checkpoint": (folder / "last.pt", load_checkpoint),
        "saved model": (folder / "model/model.safetensors", lambda path: DETR.from_pretrained(path.parent)),
        "weights": (folder / "weights.pth", read_state_dict),
    }
    for kind, (path, load) in loaders.items():
        intact, expected = path.read_bytes(), load(path)
        for damage in (_flip_bit, _truncate):
            for _ in range(cases):
                path.write_bytes(damage(intact, rng))
                yield f"{kind}, {damage.__name__[1:]}", _outcome(load, path, expected)
        path.write_bytes(intact)


def _replaced_parts(folder: Path, cases: int, rng: random.Random) -> Iterator[tuple[str, str]]:
    state = _run_state()
    intact, path = _complete(state), folder / "replaced.pt"
    for _ in range(cases):
        damaged = copy.deepcopy(intact)
        _replace_random_part(damaged, rng)
        torch.save(damaged, path)
        yield "run checkpoint, replaced part", _outcome(lambda file: _resume(state, file), path)


def _outcome(load: Load, path: Path, expected: Any = None) -> str:
    try:
        found = load(path)
    except CheckpointError:
        return "refused"
    except Exception as error:
        return f"raw {type(error).__name__}: {error}"
    if expected is None:
        return "loaded"
    return "the same content" if _equal(_plain(found), _plain(expected)) else "OTHER CONTENT"


def _run_state() -> RunState:
    """Return the state of a run after a step, so that its optimizer has moments."""
    torch.manual_seed(0)
    model = DETR(3, backbone="resnet_tiny", num_queries=3, **SIZES)
    state = RunState(model, CONFIG, Accelerator(cpu=True), steps_per_epoch=10)
    output = state.model(torch.randn(1, 3, 32, 32))
    (output.logits.sum() + output.boxes.sum()).backward()
    state.optimizer.step()
    state.advance()
    return state


def _resume(state: RunState, path: Path) -> None:
    found = load_checkpoint(path)
    check_resumed(found, CONFIG, num_ranks=1)
    state.load(found)


def _complete(state: RunState) -> dict[str, Any]:
    return state.state_dict() | {"config": as_plain_data(CONFIG), "data": {"train": "", "val": ""}}


def _flip_bit(content: bytes, rng: random.Random) -> bytes:
    damaged = bytearray(content)
    damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
    return bytes(damaged)


def _truncate(content: bytes, rng: random.Random) -> bytes:
    return content[: rng.randrange(len(content))]


def _replace_random_part(part: Any, rng: random.Random) -> None:
    """Remove or replace a random entry, at a random depth of nested dictionaries and lists."""
    key = rng.choice(list(part)) if isinstance(part, dict) else rng.randrange(len(part))
    if isinstance(part[key], dict | list) and part[key] and rng.random() < 0.8:
        _replace_random_part(part[key], rng)
    elif rng.random() < 0.3:
        del part[key]
    else:
        part[key] = copy.deepcopy(rng.choice(JUNK))


def _plain(content: Any) -> Any:
    return content.state_dict() if isinstance(content, DETR) else content


def _equal(first: Any, second: Any) -> bool:
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        return first.dtype == second.dtype and torch.equal(first, second)
    if isinstance(first, dict) and isinstance(second, dict):
        return first.keys() == second.keys() and all(_equal(first[name], second[name]) for name in first)
    if isinstance(first, list | tuple) and isinstance(second, list | tuple):
        return len(first) == len(second) and all(map(_equal, first, second))
    return bool(first == second)


if __name__ == "__main__":
    main(run, __doc__, cases=400, counted="damaged files of each kind")
