"""Who reads help() in place of the documentation finds what each field and each option is."""

from __future__ import annotations

import inspect
import re
from dataclasses import fields

import pytest

from detr_fast import LossWeights, MatchWeights, Targets, cli
from detr_fast.training import DataConfig, ModelConfig, OptimConfig, TrainConfig


@pytest.mark.parametrize(
    "structure", [Targets, MatchWeights, LossWeights, TrainConfig, DataConfig, ModelConfig, OptimConfig]
)
def test_every_field_is_described(structure: type) -> None:
    arguments = inspect.getdoc(structure).split("Args:")[1].split("Raises:")[0]
    described = re.findall(r"^    (\w+): \S", arguments, re.MULTILINE)
    assert sorted(described) == sorted(field.name for field in fields(structure) if field.init)


@pytest.mark.parametrize("command", [name for name in cli.COMMANDS if name != "info"])
def test_every_option_is_described(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main([command, "--help"])
    options = capsys.readouterr().out.split("options:")[1]
    lines = [" ".join(text.split()) for text in re.split(r"\n  (?=--|-h)", options)[1:]]
    assert len(lines) > 2
    for line in lines:  # such as: --epochs EPOCHS number of passes over the training images. (type: int, default: 300)
        description = line.partition(" (type: ")[0].split(maxsplit=1)[1]
        assert re.search(r"[a-z]+ \S+ [a-z]+", description), line
