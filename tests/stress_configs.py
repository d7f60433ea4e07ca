"""Read random mutants of configurations: ``python -m tests.stress_configs``.

Mutants of the YAML of a training run must be refused with a message, or build the run. Mutants of the config.json of
a saved model, of this library and of transformers, and of the header of its weights must be refused with a
CheckpointError, or be loaded.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import random
import struct
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml
from accelerate.state import AcceleratorState
from huggingface_hub import constants

from detr_fast import DETR, cli
from detr_fast.checkpoints.state_dict import CheckpointError
from detr_fast.data import Augmentation, make_shapes
from detr_fast.training import USER_ERRORS, DataConfig, ModelConfig, TrainConfig, Trainer
from detr_fast.training.config import as_plain_data
from tests.stress import main
from tests.stress_annotations import JUNK as ANY_JUNK
from tests.stress_annotations import mutate

SIZES = {"hidden_dim": 8, "num_heads": 2, "num_encoder_layers": 1, "num_decoder_layers": 1, "dim_feedforward": 8}
TRANSFORMERS = {
    "model_type": "detr",
    "d_model": 8,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_ffn_dim": 8,
    "encoder_attention_heads": 2,
    "num_queries": 3,
    "dropout": 0.1,
    "auxiliary_loss": False,
    "dilation": False,
    "activation_function": "relu",
    "position_embedding_type": "sine",
    "backbone_config": {"model_type": "resnet", "hidden_act": "relu", "downsample_in_bottleneck": False},
    "id2label": {"0": "cat", "1": "dog"},
}
JUNK = [value for value in ANY_JUNK if value != 2**31]  # for which a user's own run may need tens of gigabytes
Case = tuple[str, str, str]  # kind, outcome, content of the mutant


def run(folder: Path, cases: int, seed: int) -> tuple[Counter[str], list[str]]:
    """Read ``cases`` mutants of each kind; returns the number of each outcome, and the failures."""
    rng = random.Random(seed)
    counts: Counter[str] = Counter()
    failures = []
    with contextlib.chdir(folder), _offline(), warnings.catch_warnings():  # names in mutants are relative to the folder
        warnings.simplefilter("ignore")
        for kind, outcome, content in [*_runs(cases, rng), *_models(cases, rng), *_headers(cases, rng)]:
            counts[f"{kind}: {outcome.split(':')[0]}"] += 1
            if outcome not in ("refused", "used"):
                failures.append(f"seed {seed}: {kind}: {outcome}: {content[:2000]}")
    return counts, failures


def _runs(cases: int, rng: random.Random) -> Iterator[Case]:
    make_shapes(Path("shapes"), 3, 2, image_size=32)
    data = ("shapes/train", "shapes/annotations/instances_train.json")
    data += ("shapes/val", "shapes/annotations/instances_val.json")
    augmentation = Augmentation(scales=(32,), max_size=32, crop=0.0)
    config = TrainConfig(
        data=DataConfig(
            *data,
            num_workers=0,
            padded_sizes=[(32, 32), (32, 64)],
            augmentation=augmentation,
            eval_size=32,
            eval_max_size=32,
        ),
        model=ModelConfig(backbone="resnet_tiny", num_queries=3, **SIZES),
        device="cpu",
    )
    for number in range(cases):
        mutant = _mutant(as_plain_data(config), rng)
        text = yaml.safe_dump(mutant)
        Path("mutant.yaml").write_text(_perhaps_cut(text, rng))
        outcome = _outcome(lambda number=number: _build_run(number), (*USER_ERRORS, SystemExit))
        AcceleratorState._reset_state(reset_partial_state=True)
        yield "training configuration", outcome, text


def _build_run(number: int) -> None:
    with contextlib.redirect_stderr(io.StringIO()) as messages, contextlib.redirect_stdout(io.StringIO()):
        try:
            _, options = cli._parse(["train", "--config", "mutant.yaml"])
        except SystemExit:
            assert messages.getvalue().strip(), "no message"
            raise
        config = cli._train_config(options)
        if config.output == "runs/train":
            config.output = f"runs/{number}"
        Trainer(config)


def _models(cases: int, rng: random.Random) -> Iterator[Case]:
    DETR(2, backbone="resnet_tiny", num_queries=3, categories=[{"id": 1, "name": "cat"}], **SIZES).save_pretrained(
        "own"
    )
    DETR(2, backbone="resnet18", num_queries=3, **SIZES).save_pretrained("other")
    Path("other/config.json").write_text(json.dumps(TRANSFORMERS))
    for directory in ("own", "other"):
        file = Path(directory, "config.json")
        intact = json.loads(file.read_text())
        for _ in range(cases):
            text = json.dumps(_mutant(intact, rng))
            file.write_text(_perhaps_cut(text, rng))
            yield f"config.json, {directory}", _load(directory), text
        file.write_text(json.dumps(intact))


def _headers(cases: int, rng: random.Random) -> Iterator[Case]:
    file = Path("own/model.safetensors")
    content = file.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    intact, values = json.loads(content[8 : 8 + length]), content[8 + length :]
    for _ in range(cases):
        header = json.dumps(_mutant(intact, rng)).encode()
        stated = len(header) if rng.random() < 0.9 else rng.randrange(2 ** rng.choice([8, 16, 63]))
        file.write_bytes(struct.pack("<Q", stated) + header + values)
        yield "header of weights", _load("own"), header.decode()


def _load(directory: str) -> str:
    def load() -> None:
        backbone = {} if directory == "own" else {"backbone": "resnet18"}
        str(DETR.from_pretrained(directory, **backbone))

    return _outcome(load, (CheckpointError,))


def _mutant(intact: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    mutant = copy.deepcopy(intact)
    for _ in range(rng.choice([1, 1, 1, 2, 5])):
        mutate(mutant, rng, JUNK)
    return mutant


def _perhaps_cut(text: str, rng: random.Random) -> str:
    return text[: rng.randrange(len(text))] if text and rng.random() < 0.1 else text


def _outcome(action: Callable[[], None], refusals: tuple[type[BaseException], ...]) -> str:
    try:
        action()
    except refusals as error:
        str(error).encode()
        return "refused"
    except Exception as error:
        return f"raw {type(error).__name__}: {error}"
    return "used"


@contextlib.contextmanager
def _offline() -> Iterator[None]:
    """Look for no repository of the name that a mutant contains."""
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


if __name__ == "__main__":
    main(run, __doc__, cases=500, counted="mutants of each kind")
