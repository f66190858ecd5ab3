import json

import numpy as np
import pytest
from click.testing import CliRunner

from evaluation.cli import evaluation
from evaluation.predictions import write_predictions
from evaluation.report.write import write_report
from evaluation.results import read_results
from evaluation.score_swig import score_swig_file
from evaluation.swig.average_precision import evaluate_swig
from pipeline.annotations.load import load_annotations
from pipeline.types import Detections
from pipeline.utils.errors import InputError
from pipeline.vocabulary import load_vocabulary


@pytest.fixture(scope="module")
def swig():
    return load_vocabulary("swig-hoi")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, swig):
    """A dataset folder with three labelled images, and one without boxes."""
    root = tmp_path_factory.mktemp("swig")
    (root / "annotations").mkdir()
    (root / "images_512").mkdir()
    entries = []
    for number, hoi in enumerate((0, 1, swig.splits["swig"]["unseen"][0])):
        verb, label = swig.interactions[hoi]
        boxes = [([10, 20, 30, 60], 0), ([5, 40, 50, 70], label)]
        rows = [{"bbox": b, "category_id": c, "aux_category_id": []} for b, c in boxes]
        labels = [{"subject_id": 0, "object_id": 1, "action_id": verb}]
        entries.append(
            {"file_name": f"{number}.jpg", "img_id": 10 + number, "width": 100, "height": 80}
            | {"box_annotations": rows, "hoi_annotations": labels}
        )
    entries.append({**entries[0], "file_name": "3.jpg", "img_id": 13})
    entries[-1] |= {"box_annotations": [], "hoi_annotations": []}
    (root / "annotations/swig_test_1000.json").write_text(json.dumps(entries))
    return root


@pytest.fixture(scope="module")
def annotations(folder):
    return folder / "annotations/swig_test_1000.json"


@pytest.fixture
def perfect(annotations, swig):
    """Detections that are the annotations of the labelled images."""
    truth = load_annotations(annotations, swig, "test").annotations
    scores = np.array([0.5], dtype=np.float32)
    return [Detections(one.image_id, one.boxes, one.labels, one.hois, scores) for one in truth]


def table(lines):
    return {row.rsplit(maxsplit=1)[0]: row.rsplit(maxsplit=1)[1] for row in lines[1:]}


def test_both_forms_give_the_same_scores(perfect, swig, folder, annotations, tmp_path):
    write_predictions(tmp_path / "run/predictions.json", perfect[1:], swig)
    official, results = tmp_path / "official.json", tmp_path / "scores.json"
    lines = score_swig_file(tmp_path / "run", annotations, official=official, json=results)
    assert lines[0] == "swig-hoi, split swig: 3 images, 5539 interactions"
    assert table(lines) == {
        "mAP": "SWIG-HOI",
        "full": f"{200 / 5539:.2f}",
        "seen": f"{100 / 4148:.2f}",
        "unseen": f"{100 / 1391:.2f}",
        "harmonic mean": "0.04",
        "rare": "0.00",
        "non-rare": f"{100 / 1307:.2f}",
        "max recall": "66.67",
    }
    assert score_swig_file(official, None, data=folder) == lines
    read = read_results(results)
    assert (read.setting, read.split, read.known_object) == ("swig", "swig", None)
    assert len(read.per_class) == 5539 and read.per_class["injecting syringe"] == 0
    assert read.metrics["unseen"] == pytest.approx(1 / 1391, abs=1e-12)
    assert read.predictions is not None and read.annotations is not None
    with pytest.raises(InputError, match="exists"):
        score_swig_file(official, annotations, json=results)


@pytest.mark.parametrize("form", ["hoia", "official"])
def test_a_report_of_all_interactions(form, perfect, swig, annotations, tmp_path):
    """Both forms of predictions have the sections that need single detections."""
    pytest.importorskip("jinja2", reason="the extra report is not installed")
    results, file = tmp_path / "results.json", _write(tmp_path, perfect, swig)
    if form == "official":
        score_swig_file(file, annotations, official=tmp_path / "official.json")
        file = tmp_path / "official.json"
    score_swig_file(file, annotations, json=results)
    write_report([results], tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.count("injecting syringe") and "All 5539 interactions" in page
    assert "SWIG-HOI protocol" in page and "HICO-DET protocol" not in page
    assert 'id="curves"' in page and 'id="confusion"' in page
    assert "5536 scored interactions have no labels in these images" in page


def test_a_report_beside_a_teacher_names_the_largest_differences(
    perfect, swig, annotations, tmp_path
):
    """Student and teacher of 400 actions are not drawn row by row."""
    pytest.importorskip("jinja2", reason="the extra report is not installed")
    files = []
    for kind, found in (("student", perfect), ("teacher", perfect[:1])):
        folder = tmp_path / kind
        folder.mkdir()
        file = folder / "results.json"
        score_swig_file(_write(folder, found, swig), annotations, json=file)
        fields = {"kind": kind, "training_split": "swig", "distillation": kind == "student"}
        file.write_text(json.dumps(json.loads(file.read_text()) | fields))
        files.append(file)
    write_report(files, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "actions, the 40 with the largest differences." in page
    assert "1,388 unseen interactions of seen actions" in page


def test_other_splits_keep_the_groups_by_frequency(perfect, swig, annotations, tmp_path):
    file, split = tmp_path / "p.json", tmp_path / "mine.toml"
    write_predictions(file, perfect, swig)
    split.write_text('unseen_interactions = [["injecting", "syringe"]]')
    rows = table(score_swig_file(file, annotations, split=str(split)))
    assert (rows["unseen"], rows["non-rare"]) == ("100.00", f"{200 / 1307:.2f}")
    assert "unseen" not in table(score_swig_file(file, annotations, split="full"))


def test_what_does_not_fit_is_reported(perfect, swig, annotations, tmp_path, messages):
    entries = json.loads(annotations.read_text())
    entries[0]["hoi_annotations"] *= 2
    entries[1]["box_annotations"][1]["bbox"] = [-5, 40, 50, 70]
    mine, official = tmp_path / "mine.json", tmp_path / "official.json"
    mine.write_text(json.dumps(entries))
    score_swig_file(_write(tmp_path, perfect[:2], swig), annotations, official=official)
    value = json.loads(official.read_text())
    official.write_text(json.dumps({**value, "77": value["10"]}))
    messages.clear()
    rows = table(score_swig_file(official, mine))
    # Two labels of one pair, of which one is found, after a detection on an unknown image.
    assert rows["full"] == f"{(100 * 6 / 11 / 2 + 100) / 5539:.2f}"
    issues, unknown, missing, unlabelled = messages
    assert unlabelled.startswith("5536 scored interactions have no labels in these images")
    assert "1 repeated label" in issues and "1 box over the image's edge" in issues
    assert unknown.startswith(f"1 image not named in {mine}")
    assert missing == "2 of 4 images have no predictions"
    with pytest.raises(InputError, match="found a second one"):
        score_swig_file(official, mine, strict=True)


def _write(folder, detections, vocabulary):
    write_predictions(folder / "p.json", detections, vocabulary)
    return folder / "p.json"


def test_wrong_input_ends_in_one_line(perfect, swig, annotations, folder, tmp_path):
    file = _write(tmp_path, perfect, swig)
    other = tmp_path / "annotations.json"
    other.write_text(json.dumps([{"file_name": "a", "annotations": [], "hoi_annotation": []}]))
    unknown, bad = tmp_path / "unknown.json", tmp_path / "bad.json"
    unknown.write_text('{"77": []}')
    bad.write_text('{"10": [[0, 0.5]]}')
    for words, message in (
        ((file, "--annotations", other), "expected SWIG-HOI's annotations, like swig_test"),
        ((unknown, "--annotations", annotations), "found 1 others, the first being 77"),
        ((bad, "--data", folder), "bad.json: image 10[0]: expected [interaction, score, person"),
        ((file,), "expected --annotations FILE or --data DATASET, found neither"),
    ):
        done = CliRunner().invoke(evaluation, ["swig", *map(str, words)])
        assert isinstance(done.exception, InputError) and message in str(done.exception)
        assert "\n" not in str(done.exception)


def test_the_evaluated_vocabulary_may_be_another(toy, tmp_path):
    """Every interaction of a vocabulary without a list of evaluated ones counts."""
    verb, label = toy.interactions[3]
    rows = [
        {"bbox": box, "category_id": toy.category_ids[one]}
        for box, one in (([10, 20, 30, 60], toy.person), ([5, 40, 50, 70], label))
    ]
    labels = [{"subject_id": 0, "object_id": 1, "action_id": verb}]
    entry = {"file_name": "a.jpg", "img_id": 1, "width": 100, "height": 80}
    file = tmp_path / "mine.json"
    file.write_text(json.dumps([entry | {"box_annotations": rows, "hoi_annotations": labels}]))
    truth = load_annotations(file, toy, "test")
    (one,) = truth.annotations
    found = Detections(one.image_id, one.boxes, one.labels, one.hois, np.ones(1, np.float32))
    scores = evaluate_swig(truth.swig_images, [found], toy)
    assert scores.mean_ap() == pytest.approx(1 / toy.num_interactions)
    rows = table(score_swig_file(_write(tmp_path, [found], toy), file, vocabulary="toy"))
    assert rows["full"] == "2.00" and "unseen" not in rows
