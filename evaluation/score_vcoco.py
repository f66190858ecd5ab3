"""Scores V-COCO detections: the official layout, a predictions file of this project's, or a run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from evaluation.pickles import is_pickle
from evaluation.predictions import predictions_name, predictions_path, read_predictions
from evaluation.results import vcoco_alone, write_vcoco
from evaluation.truth_files import find_truth
from evaluation.vcoco import LEFT_OUT_BY_PAPERS, SCENARIOS, VcocoScores, evaluate_vcoco
from evaluation.vcoco_convert import to_vcoco
from evaluation.vcoco_detections import VcocoDetections, read_detections, write_detections
from evaluation.vcoco_results import vcoco_results
from pipeline.annotations.reading import Reading, blemish_line
from pipeline.annotations.vcoco import VcocoTruth, read_vcoco
from pipeline.annotations.vcoco_files import is_actions_file, vcoco_files
from pipeline.box_form import CORNERS, BoxForm
from pipeline.errors import InputError, bad_field
from pipeline.files import iterate_json, refuse_existing
from pipeline.types import Detections
from pipeline.vocabulary import Vocabulary


@dataclass(frozen=True)
class VcocoConfig:
    """What to score, and against what.

    Attributes:
        predictions: detections in the official layout (JSON, NPZ or a pickle), in the HOIA form, or
            a run.
        actions: official actions file; None takes that of `data`.
        instances, ids: the files that belong to it; looked for around it where not named.
        vocabulary: what the numbers of the HOIA form mean, a name or a file; without it the
            dataset's, else V-COCO's.
        strict: refuse annotations with blemishes.
        json: results file to write.
        official: where to write the detections in the official layout.
        overwrite: replace these files.
        data: dataset folder; looked for around the actions where not named.
    """

    predictions: Path
    actions: Path | None
    instances: Path | None = None
    ids: Path | None = None
    vocabulary: str | None = None
    strict: bool = False
    json: Path | None = None
    official: Path | None = None
    overwrite: bool = False
    data: Path | None = None


def score_vcoco(config: VcocoConfig) -> list[str]:
    """Scores the detections and writes what is wanted.

    Returns:
        a table for people.

    Raises:
        InputError: a file is missing or wrong, or there are detections for unknown images.
    """
    for path in (config.json, config.official):
        if path is not None:
            refuse_existing(path, config.overwrite)
    source = find_truth(
        config.actions, config.data, config.vocabulary, usual="vcoco", dataset="v-coco"
    )
    if config.actions is None and not is_actions_file(source.annotations):
        expected = "V-COCO's official actions, like vcoco_test.json"
        raise bad_field(source.annotations, "file", expected, "annotations of another form")
    files = vcoco_files(
        source.annotations, config.instances or source.instances, config.ids or source.ids
    )
    reading = Reading(files.actions, source.vocabulary, config.strict)
    truth = read_vcoco(files, reading)
    path = predictions_path(config.predictions)
    hoia = _is_hoia(path)
    detections = (
        _from_hoia(path, truth, source.vocabulary) if hoia else read_detections(path, truth.actions)
    )
    if not hoia and not len(detections):
        raise bad_field(path, "file", "a list of detections", "an empty list")
    found, outside = _listed(detections, truth, path)
    if config.official is not None:
        write_detections(config.official, found)
    scores = evaluate_vcoco(truth, found)
    if config.json is not None:
        results = vcoco_alone(
            name=predictions_name(path),
            dataset=source.dataset,
            vocabulary=source.vocabulary.name,
            num_images=len(truth.images),
            dataset_path=source.folder,
            # What the report shows of single pictures, it reads in the HOIA form.
            predictions=path if hoia and not outside else None,
            vcoco=vcoco_results(scores),
        )
        write_vcoco(config.json, results)
    return [*vcoco_table(scores, len(truth.images)), *_notes(reading, truth, found, outside)]


def _notes(
    reading: Reading, truth: VcocoTruth, found: VcocoDetections, outside: int
) -> Iterator[str]:
    if blemishes := blemish_line(reading.file, reading.blemishes):
        yield blemishes
    if unread := found.unread:
        yield (
            f"{len(unread)} keys that look like scores but are none of the annotations' actions and"
            f" roles were left out, the first being {unread[0]}"
        )
    if outside:
        yield f"{outside} detections on images outside the part were left out"
    if silent := len(truth.images) - len(np.unique(found.image_ids)):
        yield f"{silent} of {len(truth.images)} images have no detections"


def score_detections(
    detections: Sequence[Detections], truth: VcocoTruth, vocabulary: Vocabulary
) -> VcocoScores:
    """Scores detected interactions of the part's images, which have the truth's file names."""
    number = {image.name: image.id for image in truth.images}
    ids = [number[item.image_id] for item in detections]
    return evaluate_vcoco(truth, to_vcoco(detections, ids, vocabulary, truth.actions))


def vcoco_table(scores: VcocoScores, num_images: int) -> list[str]:
    """Lines for a terminal: agents, then roles, then the averages; AP in percent."""

    def percent(value: float | None) -> str:
        return "-" if value is None or np.isnan(value) else f"{100 * value:.2f}"

    head = ("action", "people", "agent", "role", "scenario 1", "scenario 2")
    lines = [f"v-coco: {num_images} images", "{:<18}{:>7}{:>8}  {:<7}{:>11}{:>11}".format(*head)]
    for row, action in enumerate(scores.actions):
        for place, role in enumerate(action.roles or ("",)):
            roles = [percent(scores.roles[s][row, place]) if role else "" for s in SCENARIOS]
            first = (action.name, scores.num_positives[row], percent(scores.agents[row]))
            cells = (*(("", "", "") if place else first), role, *roles)
            lines.append("{:<18}{:>7}{:>8}  {:<7}{:>11}{:>11}".format(*cells).rstrip())
    agent, *roles = (percent(value) for value in scores.metrics().values())
    for averages in (
        ("average", "", agent, "", *roles[:2]),
        (f"without {LEFT_OUT_BY_PAPERS}", "", "", "", *roles[2:]),
    ):
        lines.append("{:<18}{:>7}{:>8}  {:<7}{:>11}{:>11}".format(*averages))
    every, papers = scores.num_roles()
    return [
        *lines,
        f"role AP: the official mean is over {every} roles; papers print the mean without"
        f" {LEFT_OUT_BY_PAPERS}, over {papers}",
    ]


def _from_hoia(path: Path, truth: VcocoTruth, vocabulary: Vocabulary) -> VcocoDetections:
    sizes = {image.name: image.size for image in truth.images}
    detections = read_predictions(path, vocabulary, sizes)
    number = {**truth.others, **{image.name: image.id for image in truth.images}}
    unknown = [item.image_id for item in detections if item.image_id not in number]
    if unknown:
        raise _unknown_images(path, len(unknown), unknown[0])
    ids = [number[item.image_id] for item in detections]
    return to_vcoco(detections, ids, vocabulary, truth.actions)


def _is_hoia(path: Path) -> bool:
    """Whether a file's first entry is an image of the HOIA form; the readers find what is wrong."""
    if path.suffix.lower() == ".npz" or is_pickle(path):
        return False
    entries = iterate_json(path)
    first = next(entries, None)
    return isinstance(first, dict) and "file_name" in first


def _listed(found: VcocoDetections, truth: VcocoTruth, path: Path) -> tuple[VcocoDetections, int]:
    """The detections on the part's images, and how many others there are.

    Raises:
        InputError: detections on images that COCO's file does not know, or on none of the part's,
            or boxes of another form or scale.
    """
    ids = found.image_ids
    inside = np.isin(ids, [image.id for image in truth.images])
    unknown = ~inside & ~np.isin(ids, list(truth.others.values()))
    if unknown.any():
        raise _unknown_images(path, len(np.unique(ids[unknown])), int(ids[unknown][0]))
    if len(ids) and not inside.any():
        expected = "detections on the images of the id list"
        raise bad_field(path, "image_id", expected, f"none, but {ids[0]} and others")
    kept = found.keep(np.flatnonzero(inside))
    sizes = {image.id: image.size for image in truth.images}
    form = BoxForm(CORNERS)
    form.add(kept.person_boxes, np.array([sizes[number] for number in kept.image_ids.tolist()]))
    form.check(path, "person_box")
    return kept, int((~inside).sum())


def _unknown_images(path: Path, count: int, first: str | int) -> InputError:
    expected = "images that the COCO file names"
    return bad_field(path, "image", expected, f"{count} others, the first being {first}")
