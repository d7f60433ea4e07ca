"""The documentation's table of extras, and the platforms of the wheels, are those of pyproject.toml."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PAGE = (ROOT / "docs/installation.md").read_text()


def test_every_extra_is_in_the_table():
    table = PAGE.partition("## Extras\n")[2].partition("\n## ")[0]
    rows = dict(re.findall(r"^\| `(\w+)` \| (.+) \|$", table, re.MULTILINE))
    extras = PROJECT["project"]["optional-dependencies"]
    assert rows.keys() == extras.keys()
    for name, text in rows.items():
        assert ("includes `train`" in text) == ("detr_fast[train]" in extras[name])


def test_versions_of_python_are_those_that_wheels_are_built_for():
    built = re.findall(r"cp3(\d+)-", PROJECT["tool"]["cibuildwheel"]["build"])
    (sentence,) = re.findall(r"They are for CPython ([^.]+(?:\.\d+[^.]*)*)\.", PAGE)
    assert re.findall(r"3\.(\d+)", sentence) == built
