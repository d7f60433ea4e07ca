"""Matcher and criterion of other people's detectors, unpatched and patched: ``pytest benchmarks/test_integrations.py``.

RF-DETR is timed in the environment of ``make test-peers``: ``.venv/peers/bin/pytest benchmarks/test_integrations.py``.
"""

from __future__ import annotations

import importlib.util

import pytest

from benchmarks.integrations import FAMILIES, IMAGES, QUERIES, build_steps, library


@pytest.mark.parametrize("who", ["theirs", "ours"])
@pytest.mark.parametrize("images", IMAGES)
@pytest.mark.parametrize("queries", QUERIES)
@pytest.mark.parametrize("family", FAMILIES)
def test_matcher_and_criterion(benchmark, family, queries, images, who):
    if importlib.util.find_spec(library(family)) is None:
        pytest.skip(f"{library(family)} is not installed; make test-peers installs it in .venv/peers")
    benchmark.group = f"{family}, {images} images, {queries} queries"
    benchmark(build_steps(family, images, queries)[who])
