"""The documentation's table of ops and backends is that of the registry."""

from __future__ import annotations

from pathlib import Path

import pytest

from detr_fast import ops
from detr_fast.ops.dispatch import BACKENDS, OPS, REFERENCE

ROOT = Path(__file__).parents[2]
BEGIN, END = "<!-- support-matrix -->\n", "<!-- /support-matrix -->\n"


def support_matrix() -> str:
    """The table in Markdown: a row for each public function of an op, a column for each backend."""
    columns = [*BACKENDS, REFERENCE]
    rows = [["op", *columns, "gradients"], ["---", *[":-:"] * (len(columns) + 1)]]
    for op in sorted(OPS.values(), key=lambda op: op.name):
        has = [name in op.backends for name in columns]
        cells = ["✓" if cell else "" for cell in [*has, op.signature.num_differentiable > 0]]
        rows += [[f"`{name}`", *cells] for name in op.public_names]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


@pytest.mark.parametrize("page", ["README.md", "docs/backends.md"])
def test_table_is_the_registry(page):
    _, _, rest = (ROOT / page).read_text().partition(BEGIN)
    table, end, _ = rest.partition(END)
    assert end, f"{page} has no {BEGIN.strip()} ... {END.strip()}"
    expected = support_matrix()
    assert table.strip() == expected.strip(), f"replace the table in {page} by\n{expected}"


def test_every_op_is_public_and_in_the_reference():
    reference = (ROOT / "docs/reference.md").read_text()
    for op in OPS.values():
        for name in op.public_names:
            assert hasattr(ops, name)
            assert f"::: {op.reference.__module__}.{name}\n" in reference, f"docs/reference.md has no {name}"
