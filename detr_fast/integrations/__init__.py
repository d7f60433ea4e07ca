"""Integrations that run the ops of this package in detectors of other libraries, the host libraries.

``detr_fast.integrations.huggingface`` is the integration of transformers, ``detr_fast.integrations.rfdetr`` that of
RF-DETR, and ``detr_fast.integrations.mmdet`` that of MMDetection 3. Importing one requires its host library.
``detr_fast.integrations.mmdet_api`` has names of MMDetection 2.11 and requires torch only.
"""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from importlib.metadata import packages_distributions

from detr_fast.integrations.evidence import Finding, installed_version

SURVEYS = {"transformers": "huggingface.survey", "rfdetr": "rfdetr.survey", "mmdet": "mmdet.survey"}


def describe_hosts() -> str:
    """List the installed host libraries, and for each what is replaced and what is left to it, and why.

    Every part is compared on small random inputs, with the settings that the host library has for new models.

    Returns:
        Lines of text.
    """
    lines = ["host libraries:"]
    for name, survey in SURVEYS.items():
        if importlib.util.find_spec(name) is None:
            lines.append(f"  {name} not installed")
            continue
        package = packages_distributions().get(name, [name])[0]
        title = f"  {package} {installed_version(package)}"
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # those of the host library
                findings = importlib.import_module(f"detr_fast.integrations.{survey}").find_all()
        except Exception as error:  # of a library that is not in order
            message = (str(error).splitlines() or [""])[0]
            lines.append(f"{title} could not be examined: {type(error).__name__}: {message}")
            continue
        lines.append(title)
        lines += [f"    {line}" for line in _describe_findings(findings)]
    return "\n".join(lines)


def _describe_findings(findings: list[Finding]) -> list[str]:
    groups: dict[str, list[str]] = {}
    left = []
    for finding in findings:
        if finding.reason is not None:
            left.append(f"left to it: {finding.part} ({finding.reason})")
            continue
        kind, separator, owner = finding.part.partition(" of ")
        groups.setdefault(kind + separator, [])
        if owner not in groups[kind + separator]:
            groups[kind + separator].append(owner)
    return [f"replaced: {kind}{', '.join(owners)}" for kind, owners in groups.items()] + left
