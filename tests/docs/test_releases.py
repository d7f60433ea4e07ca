"""The documentation's tables of releases are those of the last run of `make test-hosts`."""

from __future__ import annotations

import json

from tests.integrations import hosts


def test_tables_are_those_of_the_results():
    _, _, rest = hosts.PAGE.read_text().partition(hosts.START)
    found, end, _ = rest.partition(hosts.END)
    assert end, f"{hosts.PAGE.name} has no {hosts.START.strip()} ... {hosts.END.strip()}"
    results = json.loads(hosts.RESULTS.read_text())
    assert found.strip() == hosts.tables(results).strip()
    assert list(results) == list(hosts.read_list())  # in the same order


def test_the_oldest_and_the_newest():
    names = ["a-b-1.0", "a-b-1.2", "a-b-2.0", "c-3.1"]
    assert hosts.ends(names) == ["a-b-1.0", "a-b-2.0", "c-3.1"]
    assert hosts.library_of("a-b-1.0") == "a-b"


def test_what_differs_is_listed():
    parts = [["the losses of A", None], ["the losses of B", "loss_bbox differs"], ["the attention", None]]
    result = {"passed": 3, "skipped": 1, "failed": 0, "parts": parts}
    table = hosts.tables({"rfdetr-1.0": result, "rfdetr-2.0": result | {"parts": parts[:1] + parts[2:]}})
    assert "| release | losses | attention | tests passed | skipped |" in table
    assert "| rfdetr 1.0 | 1 of 2 | yes | 3 | 1 |" in table
    assert "| rfdetr 2.0 | yes | yes | 3 | 1 |" in table
    assert "- the losses of B: loss_bbox differs (1.0)" in table
