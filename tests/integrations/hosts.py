"""Tests releases of the host libraries, each in an environment of its own, and writes the tables of the documentation.

Run by ``make test-hosts`` and ``make test-peers`` from the root of the repository, with a Python that has the packages
of ``make test-peers``; the environments add one host library each to them::

    python tests/integrations/hosts.py                # all releases of hosts.txt
    python tests/integrations/hosts.py rfdetr-1.6.0   # some
    python tests/integrations/hosts.py --ends         # the oldest and the newest of each library
    python tests/integrations/hosts.py --write        # all, and their results to hosts.json and docs/integrations
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import venv
from itertools import groupby
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

ROOT = Path(__file__).parents[2]
ENVIRONMENTS = ROOT / ".venv/hosts"
LIST = Path(__file__).with_name("hosts.txt")
RESULTS = Path(__file__).with_name("hosts.json")
PAGE = ROOT / "docs/integrations/releases.md"
START, END = "<!-- releases -->\n", "<!-- /releases -->\n"
TESTS = {
    "transformers": ["test_huggingface.py", "test_huggingface_attention.py"],
    "rfdetr": ["test_rfdetr.py"],
    "mmdet": ["test_mmdet.py"],
    "onedl-mmdetection": ["test_mmdet.py"],
}
TITLES = {"transformers": "transformers", "rfdetr": "RF-DETR", "mmdet": "MMDetection and onedl-mmdetection"}
SURVEY = """
import json, sys
from benchmarks.peers import declare_torchvision
declare_torchvision()
from importlib import import_module
findings = import_module("detr_fast.integrations." + sys.argv[1]).find_all()
json.dump([[finding.part, finding.reason] for finding in findings], open(sys.argv[2], "w"))
"""
MODULES = {
    "transformers": "huggingface.survey",
    "rfdetr": "rfdetr.survey",
    "mmdet": "mmdet.survey",
    "onedl-mmdetection": "mmdet.survey",
}


def read_list() -> dict[str, list[str]]:
    """Return the packages of each environment of hosts.txt by its name."""
    lines = [line.split() for line in LIST.read_text().splitlines() if line and not line.startswith("#")]
    return {name: packages for name, *packages in lines}


def library_of(name: str) -> str:
    """Return the library of an environment, "rfdetr" of "rfdetr-1.6.0"."""
    return name.rpartition("-")[0]


def ends(names: list[str]) -> list[str]:
    """Return the first and the last environment of each library."""
    libraries = [list(group) for _, group in groupby(names, library_of)]
    return [name for group in libraries for name in dict.fromkeys((group[0], group[-1]))]


def build(name: str, packages: list[str]) -> Path:
    """Build an environment if it does not exist or its packages have changed; return its Python."""
    folder = ENVIRONMENTS / name
    python = folder / "bin/python"
    done = folder / "packages.txt"
    if done.exists() and done.read_text().split() == packages:
        return python
    venv.EnvBuilder(clear=True, symlinks=True).create(folder)
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", *packages]
    subprocess.run(install, check=True)
    borrowed = [path for path in sys.path if path.endswith("site-packages")]  # those of the running Python come after
    (site,) = folder.glob("lib/python*/site-packages")
    lines = [f"import site; site.addsitedir({path!r})" for path in borrowed]
    (site / "zz_borrowed.pth").write_text("\n".join(lines) + "\n")
    done.write_text("\n".join(packages))
    return python


def run(name: str, python: Path) -> dict[str, Any]:
    """Run the tests of an environment, and compare all parts; return the numbers of tests and what was found."""
    library = library_of(name)
    report, findings = python.parents[1] / "tests.xml", python.parents[1] / "findings.json"
    tests = [str(Path(__file__).with_name(file)) for file in TESTS[library]]
    options = ["-q", "-W", "ignore", "-m", "not slow", "-p", "no:cacheprovider", f"--junitxml={report}"]
    subprocess.run([python, "-m", "pytest", *options, *tests], cwd=ROOT, check=False)
    subprocess.run([python, "-W", "ignore", "-c", SURVEY, MODULES[library], findings], cwd=ROOT, check=True)
    counts = next(ElementTree.parse(report).getroot().iter("testsuite")).attrib
    skipped, failed = int(counts["skipped"]), int(counts["failures"]) + int(counts["errors"])
    passed = int(counts["tests"]) - skipped - failed
    return {"passed": passed, "skipped": skipped, "failed": failed, "parts": json.loads(findings.read_text())}


def tables(results: dict[str, Any]) -> str:
    """Return the tables of the documentation: how many parts of each release are replaced, and which are not."""
    texts = []
    for library, title in TITLES.items():
        names = [name for name in results if MODULES[library_of(name)] == MODULES[library]]
        kinds = list(dict.fromkeys(_kind(part) for name in names for part, _ in results[name]["parts"]))
        header = ["release", *kinds, "tests passed", "skipped"]
        lines = [f"### {title}", "", _row(header), "|" + "---|" * len(header)]
        reasons: dict[str, list[str]] = {}
        for name in names:
            parts = results[name]["parts"]
            cells = [_cell([reason for part, reason in parts if _kind(part) == kind]) for kind in kinds]
            assert not results[name]["failed"], f"tests of {name} failed"
            lines.append(
                _row(
                    [
                        f"{library_of(name)} {name.rpartition('-')[2]}",
                        *cells,
                        results[name]["passed"],
                        results[name]["skipped"],
                    ]
                )
            )
            for part, reason in parts:
                if reason is not None:
                    reasons.setdefault(f"{part}: {reason}", []).append(name.rpartition("-")[2])
        texts.append("\n".join(lines))
        if reasons:
            left = [f"- {reason} ({', '.join(releases)})" for reason, releases in reasons.items()]
            texts.append("Left to the host library, with the releases:\n\n" + "\n".join(left))
    return "\n\n".join(texts) + "\n"


def _kind(part: str) -> str:
    return part.partition(" of ")[0].removeprefix("the ")


def _cell(reasons: list[str | None]) -> str:
    if len(reasons) == 1:
        return "yes" if reasons == [None] else "no"
    return f"{reasons.count(None)} of {len(reasons)}"


def _row(cells: list[Any]) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*", help="environments of hosts.txt; all if none is given")
    parser.add_argument("--ends", action="store_true", help="the oldest and the newest of each library")
    parser.add_argument("--write", action="store_true", help="write the results, and the tables of the documentation")
    arguments = parser.parse_args()
    listed = read_list()
    if unknown := set(arguments.names) - listed.keys():
        parser.error(f"hosts.txt has no {', '.join(sorted(unknown))}")
    names = arguments.names or (ends(list(listed)) if arguments.ends else list(listed))
    results = {}
    for name in names:
        print(f"== {name}", flush=True)
        results[name] = run(name, build(name, listed[name]))
    if failed := [name for name, result in results.items() if result["failed"]]:
        sys.exit(f"tests failed with {', '.join(failed)}")
    if arguments.write:
        known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        known = {name: (known | results)[name] for name in listed if name in known or name in results}
        RESULTS.write_text(json.dumps(known, indent=1) + "\n")
        head, _, rest = PAGE.read_text().partition(START)
        _, _, tail = rest.partition(END)
        PAGE.write_text(f"{head}{START}\n{tables(known)}\n{END}{tail}")


if __name__ == "__main__":
    main()
