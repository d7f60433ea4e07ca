"""The notebook runs from top to bottom, and what its cells print shows that they do what they say."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")

NOTEBOOK = Path(__file__).parents[2] / "examples" / "detr_fast.ipynb"


def read_notebook() -> Any:
    return nbformat.read(NOTEBOOK, as_version=4)


def test_no_outputs_are_stored():
    notebook = read_notebook()
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.id for cell in code if cell.outputs or cell.execution_count is not None] == []


def test_links_to_pages_exist():
    text = "\n".join(cell.source for cell in read_notebook().cells if cell.cell_type == "markdown")
    links = re.findall(r"\]\(([^)#:]+)\)", text)
    assert len(links) > 3
    assert [link for link in links if not (NOTEBOOK.parent / link).exists()] == []


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The executed cells of code by their ids."""
    pytest.importorskip("ipykernel")
    pytest.importorskip("scipy")
    pytest.importorskip("transformers")
    notebook = read_notebook()
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("TRITON_INTERPRET", raising=False)  # a user has not set it
        directory = tmp_path_factory.mktemp("notebook")
        resources = {"metadata": {"path": str(directory)}}
        nbclient.NotebookClient(notebook, timeout=None, resources=resources).execute()  # raises what a cell raises
    return {cell.id: cell for cell in notebook.cells if cell.cell_type == "code"}


def printed(cell: Any, stream: str = "stdout") -> str:
    return "".join(output.text for output in cell.outputs if output.get("name") == stream)


def shown(cell: Any, mime: str) -> list[Any]:
    """The values and figures that a cell shows, in a format."""
    return [output.data[mime] for output in cell.outputs if mime in output.get("data", {})]


@pytest.mark.slow
def test_assignments_are_those_of_scipy(cells):
    assert printed(cells["scipy"]) == "12 of 12 assignments are those of SciPy\n"


@pytest.mark.slow
def test_backends_agree(cells):
    output = printed(cells["backends"])
    differences = re.findall(r"^(?:cpp|triton|reference): largest difference from float64 (\S+)$", output, re.MULTILINE)
    refusals = output.count("cannot run")
    assert len(differences) + refusals == 3
    assert differences
    assert all(float(difference) < 1e-4 for difference in differences)


@pytest.mark.slow
def test_the_model_memorizes_the_images(cells):
    first, last = map(float, re.findall(r"\d+\.\d+", printed(cells["curves"])))
    assert last < 0.2 * first
    (ap50,) = re.findall(r"AP50 (\d\.\d+)", printed(cells["metrics"]))
    assert float(ap50) > 0.7
    assert len(shown(cells["curves"], "image/png")) == 1


@pytest.mark.slow
def test_training_prints_no_progress_bars(cells):
    assert printed(cells["training"], "stderr") == ""
    assert len(re.findall(r"epoch \d+: AP \d", printed(cells["training"]))) == 3


@pytest.mark.slow
def test_detections_and_their_attention_are_drawn(cells):
    assert re.search(r"^(triangle|circle|rectangle) 0\.\d\d, ", printed(cells["predict"]))
    assert shown(cells["draw"], "image/png")
    assert shown(cells["attention"], "image/png")


@pytest.mark.slow
def test_acceleration_keeps_the_loss(cells):
    host, accelerated = map(float, re.findall(r"\d+\.\d+", printed(cells["accelerate"])))
    assert accelerated == pytest.approx(host, rel=1e-5)
