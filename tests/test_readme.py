"""What README shows of the ops runs as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

import torch

README = (Path(__file__).parents[1] / "README.md").read_text()


def test_the_examples_of_the_ops_run():
    section = README.partition("## The ops alone\n")[2].partition("\n## ")[0]
    examples = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    assert len(examples) == 4
    torch.manual_seed(0)
    names: dict[str, object] = {}
    shapes = []
    for number, example in enumerate(examples):
        exec(compile(example, f"README, example {number}", "exec"), names)
        shapes.append(list(names["query"].shape))
        assert all(loss.shape == (2,) and loss.isfinite().all() for loss in names["losses"].values())
    assert shapes == [[2, 3], [2, 3], [2, 3, 3], [2, 3, 3]]
    assert names["boxes"].shape == (2, 2, 15, 4)
    assert names["embedding"].shape == (2, 2, 5, 512)
    assert (names["track"].tolist(), names["detection"].tolist()) == ([0, 1], [1, 0])
