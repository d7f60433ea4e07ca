"""The documentation's table of published weights is that of the code."""

from __future__ import annotations

from pathlib import Path

from detr_fast.checkpoints.published import PUBLISHED

PAGE = Path(__file__).parents[2] / "docs/weights.md"
BEGIN, END = "<!-- published -->\n", "<!-- /published -->\n"


def published_weights() -> str:
    """The table in Markdown: a row for each name."""
    rows = [
        ["name", "backbone", "stride", "AP", "file", "SHA-256", "repository", "license"],
        [*["---"] * 2, *["--:"] * 2, *["---"] * 4],
    ]
    for name, entry in PUBLISHED.items():
        resnet = entry.backbone.removesuffix("_dc5")
        rows.append(
            [
                f"`{name}`",
                resnet.replace("resnet", "ResNet-"),
                "32" if resnet == entry.backbone else "16",
                f"{entry.ap:.1f}",
                f"[{entry.url.rpartition('/')[2]}]({entry.url})",
                f"{entry.checksum}...",
                f"[{entry.publisher}](https://github.com/{entry.publisher})",
                entry.license,
            ]
        )
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def test_the_table_is_the_registry():
    _, _, rest = PAGE.read_text().partition(BEGIN)
    table, end, _ = rest.partition(END)
    assert end, f"{PAGE.name} has no {BEGIN.strip()} ... {END.strip()}"
    assert table.strip() == published_weights().strip(), f"replace the table by\n{published_weights()}"
