from __future__ import annotations

from pathlib import Path

import pytest

from tests.first_use.photographs import DataSet


@pytest.fixture
def data(tmp_path: Path) -> DataSet:
    """Five photographs of cups and spoons, without a fault."""
    return DataSet(tmp_path / "data")
