"""The bounding box metrics of COCO, and what explains them: curves, confusions and scores of single images."""

from __future__ import annotations

import contextlib
import io
from collections import Counter
from functools import cached_property
from typing import Any

import numpy as np
from hotcoco import COCO, COCOeval

from detr_fast.data import CocoDetection

METRICS = (
    *("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large"),
    *("AR1", "AR10", "AR100", "AR_small", "AR_medium", "AR_large"),
)


class CocoEvaluation:
    """The evaluation of detections on a data set.

    Evaluators handle ids in float64, and some take the id 0 for a box without a match, so that they get numbers from 1.
    Those of images are in the order of their ids, which decides between detections of equal score.

    Args:
        ground_truth: A COCO data set with ``images``, ``annotations`` (crowd regions included) and ``categories``.
        detections: The K detections of all images, float64 [K,7]: index of the image in ``images``, x, y, width, height
            in pixels, score, index of the category in ``categories``. Those of category -1 are ignored.

    Attributes:
        classes: The names of the categories; one that occurs twice is followed by the id.
    """

    def __init__(self, ground_truth: dict[str, Any], detections: np.ndarray) -> None:
        images, categories = ground_truth["images"], ground_truth["categories"]
        self._image_ids = sorted(image["id"] for image in images)
        image_numbers = {image: number for number, image in enumerate(self._image_ids, 1)}
        category_numbers = {category["id"]: number for number, category in enumerate(categories, 1)}
        annotations = [
            {
                **annotation,
                "id": number,
                "image_id": image_numbers[annotation["image_id"]],
                "category_id": category_numbers[annotation["category_id"]],
            }
            for number, annotation in enumerate(ground_truth["annotations"], 1)
            if annotation["image_id"] in image_numbers and annotation["category_id"] in category_numbers
        ]
        numbered = {
            "images": [{"id": number} for number in image_numbers.values()],
            "annotations": annotations,
            "categories": [{"id": number, "name": str(number)} for number in category_numbers.values()],
        }
        listed = detections[detections[:, 6] >= 0]
        listed[:, 0] = np.array([image_numbers[image["id"]] for image in images])[listed[:, 0].astype(np.int64)]
        listed[:, 6] += 1
        self._truth, self._detections = COCO(numbered), listed
        self._evaluator = self._evaluator_of(listed)
        with contextlib.redirect_stdout(io.StringIO()):  # the evaluator prints the metrics
            self._evaluator.run()
        assert self._evaluator.eval is not None
        self._precision = self._evaluator.eval["precision"][:, :, :, 0, -1]  # [IoU, recall, class], all sizes
        names = Counter(category["name"] for category in categories)
        self.classes: list[str] = [
            c["name"] if names[c["name"]] == 1 else f"{c['name']} ({c['id']})" for c in categories
        ]

    @classmethod
    def of_dataset(cls, dataset: CocoDetection, detections: np.ndarray) -> CocoEvaluation:
        """Evaluate detections of a data set.

        Args:
            dataset: The data set.
            detections: The K detections, float64 [K,7], with the index of the image in the data set and the label in
                place of the indices in the ground truth. Those of a label without a category are ignored.
        """
        # The ground truth also lists images without a file, and perhaps other categories than the model has.
        truth = dataset.ground_truth()
        image_index = {image["id"]: index for index, image in enumerate(truth["images"])}
        category_index = {category["id"]: index for index, category in enumerate(truth["categories"])}
        images = np.array([image_index[image_id] for image_id in dataset.image_ids])
        categories = np.array([category_index.get(category.id, -1) for category in dataset.categories])
        indexed = detections.copy()
        indexed[:, 0] = images[detections[:, 0].astype(np.int64)]
        labels = detections[:, 6].astype(np.int64)
        named = labels < len(categories)  # not so the stuff of a model of panoptic segmentation
        indexed[named, 6], indexed[~named, 6] = categories[labels[named]], -1
        return cls(truth, indexed)

    @cached_property
    def metrics(self) -> dict[str, Any]:
        """The twelve metrics by the names in :data:`METRICS`, and ``"classes"``: AP by the name of the category.

        As in pycocotools, a metric without any ground truth is -1.
        """
        metrics: dict[str, Any] = {
            name: float(value) for name, value in zip(METRICS, self._evaluator.stats, strict=True)
        }
        metrics["classes"] = {name: _mean(self._precision[:, :, k]) for k, name in enumerate(self.classes)}
        return metrics

    def precision(self) -> np.ndarray:
        """Return the precision at IoU 0.5, float64 [101,C], for recalls from 0 to 1; -1 without ground truth."""
        return np.asarray(self._precision[0])

    def confusion_matrix(self, *, threshold: float) -> np.ndarray:
        """Count which class the detections of each class are.

        Args:
            threshold: Minimum score of the detections.

        Returns:
            Counts int64 [C+1,C+1], ground truth by detection, of boxes whose IoU is at least 0.5. The last row has the
            detections without a ground truth, the last column the ground truth that was not detected. Detections of
            crowd regions are left out, as they are from AP.
        """
        evaluator = self._evaluator_of(self._detections[~self._detects_crowd()])
        return evaluator.confusion_matrix(iou_thr=0.5, min_score=threshold)["matrix"].astype(np.int64)

    def _detects_crowd(self) -> np.ndarray:
        """Return which detections AP at IoU 0.5 ignores, bool [K]; the evaluator's confusion matrix counts them."""
        found = np.zeros(len(self._detections), dtype=bool)
        crowded = {entry["image_id"] for entry in self._truth.dataset["annotations"] if entry.get("iscrowd")}
        if crowded:
            evaluator = self._evaluator_of(self._detections)
            evaluator.params.img_ids = sorted(crowded)
            evaluator.params.area_rng, evaluator.params.area_rng_lbl = [[0.0, 1e10]], ["all"]
            evaluator.params.max_dets = [len(self._detections)]  # also those beyond the 100 that count for AP
            evaluator.evaluate()
            for image in filter(None, evaluator.eval_imgs):
                detected = np.array(image["dtIds"], dtype=np.int64)[np.array(image["dtIgnore"][0], dtype=bool)]
                found[detected - 1] = True  # the evaluator numbers detections from 1
        return found

    def _evaluator_of(self, detections: np.ndarray) -> COCOeval:
        return COCOeval(self._truth, self._truth.load_res(detections), "bbox")

    def image_ap50(self) -> dict[int, float]:
        """Return AP at IoU 0.5 of each image that has ground truth, by its id; its classes are not told apart."""
        found = self._evaluator.image_diagnostics(iou_thr=0.5)["img_summary"]
        with_truth = (number for number, summary in found.items() if summary["tp"] + summary["fn"])
        return {self._image_ids[number - 1]: found[number]["ap"] for number in sorted(with_truth)}


def coco_metrics(ground_truth: dict[str, Any], detections: np.ndarray) -> dict[str, Any]:
    """Compute the bounding box metrics of COCO.

    Args:
        ground_truth: A COCO data set with ``images``, ``annotations`` (crowd regions included) and ``categories``. Its
            ids may be any integers that differ as float64.
        detections: The K detections of all images, [K,7]: image id, x, y, width, height in pixels, score, category id.
            Detections of categories that the data set does not list are ignored.

    Returns:
        The twelve metrics by the names in :data:`METRICS`, and ``"classes"``: AP by category name. As in pycocotools,
        a metric without any ground truth is -1.

    Raises:
        ValueError: A detection is of an image that the data set does not list, or ids do not differ as float64.
    """
    detections = np.asarray(detections, dtype=np.float64).reshape(-1, 7)
    numbers = []
    for section, column in (("images", 0), ("categories", 6)):
        ids = [float(entry["id"]) for entry in ground_truth[section]]
        if len(set(ids)) < len(ids):
            raise ValueError(f"the ids of {section} must differ as float64")
        lookup = {identifier: number for number, identifier in enumerate(ids)}
        numbers.append(np.array([lookup.get(value, -1) for value in detections[:, column].tolist()], dtype=np.float64))
    images, categories = numbers
    if (images < 0).any():
        raise ValueError(f"the data set lists no image {detections[images < 0][0, 0]:.0f}, which has a detection")
    return CocoEvaluation(ground_truth, np.column_stack((images, detections[:, 1:6], categories))).metrics


def _mean(precision: np.ndarray) -> float:
    """Return the mean of the precisions that are defined, or -1 if none is."""
    defined = precision[precision > -1]
    return float(defined.mean()) if defined.size else -1.0
