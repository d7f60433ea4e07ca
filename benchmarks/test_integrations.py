"""Matcher and criterion of other people's detectors, unpatched and patched: ``pytest benchmarks/test_integrations.py``.

RF-DETR is timed in the environment of ``make test-peers``: ``.venv/peers/bin/pytest benchmarks/test_integrations.py``.
"""

from __future__ import annotations

import pytest

from benchmarks.integration_steps import FAMILIES
from benchmarks.integrations import IMAGES, QUERIES, build_steps
from benchmarks.peers import PeerMissing


@pytest.mark.parametrize("who", ["theirs", "ours"])
@pytest.mark.parametrize("images", IMAGES)
@pytest.mark.parametrize("queries", QUERIES)
@pytest.mark.parametrize("family", FAMILIES)
def test_matcher_and_criterion(benchmark, family, queries, images, who):
    benchmark.group = f"{family}, {images} images, {queries} queries"
    try:
        benchmark(build_steps(family, images, queries)[who])
    except PeerMissing as error:
        pytest.skip(str(error))
