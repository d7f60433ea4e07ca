"""Read random mutants of an annotation file: ``python -m tests.stress_annotations``.

Each mutant must be refused with a DataError, or be read, checked, loaded, batched and evaluated. The data set and
``check_dataset`` must find the same faults.
"""

from __future__ import annotations

import copy
import json
import random
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from detr_fast.data import CocoDetection, DataError, Resize, check_dataset, collate, count_faults
from detr_fast.training.coco import CocoEvaluation
from tests.stress import main

JUNK: list[Any] = [
    *(
        None,
        True,
        False,
        0,
        -1,
        -5,
        1,
        2,
        2**31,
        2**53 + 1,
        2**62,
        2**63,
        10**400,
        -(10**400),
        0.5,
        -0.0,
        1e-300,
        1e300,
    ),
    *(float("nan"), float("inf"), -float("inf"), "", "text", "\ud800", "a\x00b", "../1.png", "/etc/passwd", "1.png"),
    *([], {}, [1], [0, 0, 5, 5], [0, 0, 1e308, 1e308], [-1e308, 0, 1e308, 5], [10**300] * 4, ["1", 2, 3, 4], [[1]]),
    *({"id": 1}, {"a": {"b": []}}),
]


def run(folder: Path, cases: int, seed: int) -> tuple[Counter[str], list[str]]:
    """Read ``cases`` mutants; returns the number of each outcome, and the failures."""
    rng = random.Random(seed)
    intact = _data_set(folder)
    counts: Counter[str] = Counter()
    failures = []
    for _ in range(cases):
        mutant = copy.deepcopy(intact)
        for _ in range(rng.choice([1, 1, 1, 2, 5])):
            mutate(mutant, rng)
        text = json.dumps(mutant)
        if rng.random() < 0.1:
            text = text[: rng.randrange(len(text))]
        (folder / "mutant.json").write_text(text)
        outcome = _outcome(folder)
        counts[outcome.split(":")[0]] += 1
        if outcome not in ("refused", "used"):
            failures.append(f"seed {seed}: {outcome}: {text}")
    return counts, failures


def mutate(content: Any, rng: random.Random, junk: list[Any] = JUNK) -> None:
    """Remove, replace, or repeat a random entry, at a random depth of nested dictionaries and lists."""
    if not content:
        return
    key = rng.choice(list(content)) if isinstance(content, dict) else rng.randrange(len(content))
    if isinstance(content[key], dict | list) and content[key] and rng.random() < 0.9:
        mutate(content[key], rng, junk)
    elif rng.random() < 0.2:
        del content[key]
    elif isinstance(content, list) and rng.random() < 0.2:
        content.insert(key, copy.deepcopy(content[key]))
    else:
        content[key] = copy.deepcopy(rng.choice(junk))


def _outcome(folder: Path) -> str:
    file = folder / "mutant.json"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            dataset = CocoDetection(folder, file, Resize(16, 32), on_unreadable="skip")
            batch = collate([dataset[index] for index in range(len(dataset))])
            if not batch.targets.boxes.isfinite().all():
                return "boxes that are not finite"
            centers = batch.targets.boxes.double().numpy()[:1]
            CocoEvaluation.of_dataset(dataset, np.array([[0, *box, 0.5, 0] for box in centers]).reshape(-1, 7))
            str(dataset.describe()).encode()
            faults = check_dataset(folder, file, num_workers=1)
            "\n".join(map(str, faults)).encode()
        except DataError:
            return "refused"
        except Exception as error:
            return f"raw {type(error).__name__}: {error}"
    return "used" if count_faults(faults) == dataset.report else "check_dataset finds other faults"


def _data_set(folder: Path) -> dict[str, Any]:
    for number in range(1, 4):
        Image.new("RGB", (40, 30), (number, 0, 0)).save(folder / f"{number}.png")
    return {
        "info": {"year": 2020},
        "images": [{"id": n, "file_name": f"{n}.png", "width": 40, "height": 30} for n in range(1, 4)],
        "annotations": [
            {
                "id": n,
                "image_id": 1 + n % 3,
                "category_id": 1 + n % 2,
                "bbox": [n, 2.5, 10, 8],
                "area": 80,
                "iscrowd": int(n == 5),
            }
            for n in range(1, 6)
        ],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
    }


if __name__ == "__main__":
    main(run, __doc__, cases=5000, counted="mutants")
