"""Short runs of the fuzzers; their commands run more, with seeds that they print."""

from __future__ import annotations

import random

import pytest

from tests import stress_annotations, stress_checkpoints, stress_configs

SEED = random.SystemRandom().randrange(2**32)


def test_damaged_checkpoints(tmp_path):
    _, failures = stress_checkpoints.run(tmp_path, 10, SEED)
    assert not failures, failures


def test_mutants_of_an_annotation_file(tmp_path):
    _, failures = stress_annotations.run(tmp_path, 300, SEED)
    assert not failures, failures


@pytest.mark.slow
def test_mutants_of_configurations(tmp_path):
    _, failures = stress_configs.run(tmp_path, 25, SEED)
    assert not failures, failures
