"""Matcher and criterion of other people's detectors, unpatched and patched, from predictions to gradients.

``pytest benchmarks/test_integrations.py`` prints the two side by side. RF-DETR is timed where it is installed, as it is
in the environment of ``make test-peers``.
"""

from __future__ import annotations

import pytest
import torch

from benchmarks.integration_steps import FAMILIES, steps
from benchmarks.peers import PeerMissing


@pytest.mark.parametrize("who", ["theirs", "ours"])
@pytest.mark.parametrize("images", [2, 8, 16, 32])
@pytest.mark.parametrize("queries", [100, 300])
@pytest.mark.parametrize("family", FAMILIES)
def test_matcher_and_criterion(benchmark, family, queries, images, who):
    benchmark.group = f"{family}, {images} images, {queries} queries"
    try:
        theirs, ours = steps(family, images, queries, torch.device("cpu"))
    except PeerMissing as error:
        pytest.skip(str(error))
    torch.testing.assert_close(ours(), theirs(), rtol=1e-5, atol=0)
    benchmark(ours if who == "ours" else theirs)
