"""Both phases on real photographs, at reduced size, with small networks with random weights."""

import json
import re
import shutil
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import run_command, run_script
from PIL import Image
from safetensors.torch import save_file
from torchvision.models import get_model

from benchmarks import pair_recall
from benchmarks.photographs import PHOTOS, write_photographs
from evaluation.cli import main as eval_main
from evaluation.predictions import read_predictions
from evaluation.results import read_results
from pipeline.cli import main as data_main
from pipeline.images import read_image
from student.cli import main as train_main
from student.inference.cli import main as predict_main
from student.inference.detector import Detector
from student.inference.page import read_picture
from student.inference.postprocess import SelectionConfig
from student.weights.checkpoint_file import BEST, load_checkpoint
from student.weights.zoo import find_checkpoint
from teacher_cache.cli import main as cache_main
from teacher_cache.reader.cache import open_cache
from teacher_cache.reader.format import ANNOTATED

MAX_SIDE = 128
ONE_STAGE = "ssdlite320_mobilenet_v3_large"
SMALL_PUBLISHED = (
    *("--backbone", "resnet18", "--set", "augmentation=toy", "--set", "num-queries=12"),
    *("--set", "hidden-dim=32", "--set", "num-heads=4", "--set", "feedforward-dim=48"),
    *("--set", "num-encoder-layers=1", "--set", "num-interaction-layers=2"),
)
PRESETS = {"published": SMALL_PUBLISHED, "toy": ("--preset", "toy", "--verb-head", "text")}
TOY_STUDENT = find_checkpoint("toy")
# Of COCO's categories.
PERSON, MOTORCYCLE = 1, 4
RIDERS, CYCLISTS = "000000000529.jpg", "detectron_33823288584_1d21cf0a26_k.jpg"
# Photographs in which the detector finds no person, and one person without an object.
NO_PERSON, ONE_PERSON = "000000000127.jpg", "000000000436.jpg"

pytestmark = pytest.mark.filterwarnings("ignore:.*lr_scheduler.step")


def run(main, *words):
    """What a command prints; it must succeed."""
    names = {data_main: "data", cache_main: "cache", train_main: "train", eval_main: "eval"}
    done = run_command(main, f"eoid-{names.get(main, 'predict')}", *words)
    assert done.returncode == 0, done.stderr
    return done


def reduce(image):
    image.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
    return image


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """The dataset folder of the photographs, at reduced size, with a teacher of random weights."""
    root = tmp_path_factory.mktemp("photos") / "photos"
    write_photographs(root, lambda width, height: MAX_SIDE / max(width, height))
    (root / "unseen.toml").write_text('unseen_verbs = ["touch"]\n')
    return root


@pytest.fixture(scope="module")
def built(photos):
    """The cache of the training part, with the pairs of the file of detections."""
    out = photos.parent / "cache"
    words = ("--proposals", photos / "detections.json", "--clip-model", photos / "teacher")
    run(cache_main, "build", photos, "--out", out, *words, "--device", "cpu")
    return out


def test_the_dataset_is_valid():
    lines = run(data_main, "check", PHOTOS).stdout.splitlines()
    assert [line.split() for line in lines[-2:]] == [
        ["train", "20", "20", "46"],
        ["test", "6", "6", "3"],
    ]


def test_every_photograph_is_in_the_licences():
    rows = [line.split("|") for line in (PHOTOS / "LICENCES.md").read_text().splitlines()]
    licences = {row[1].strip(): row[2].strip() for row in rows if len(row) == 6}
    names = {path.name for path in (PHOTOS / "images").iterdir()}
    assert len(names) == 26 and licences.keys() - {"photo", "---"} == names
    assert all(licences[name].split()[0] in ("CC", "no", "public") for name in names)


def test_the_cache_and_the_commands_on_it(photos, built, tmp_path):
    cache = open_cache(built)
    assert len(cache) == 20 and not cache.failed
    riders = cache[RIDERS].pairs
    assert (riders.sources == ANNOTATED).sum() == 2
    # A bus in which no person was found, and a crowd of cyclists.
    assert len(cache["000000000471.jpg"].pairs) == 1
    assert len(cache[CYCLISTS].pairs) > 50
    inspected = run(cache_main, "inspect", built, "--figure", tmp_path / "figure.png")
    assert "201" in inspected.stdout and (tmp_path / "figure.png").is_file()
    # The features of random weights are nearly equal for all regions.
    assert "same probabilities" in inspected.stderr
    run(cache_main, "verify", built, "--data", photos)
    words = ("--clip-model", photos / "teacher", "--device", "cpu")
    template = ("--template", "a photo of person {ing} {object}")
    run(cache_main, "rescore", built, "--out", tmp_path / "rescored", *template, *words)
    rescored = open_cache(tmp_path / "rescored")
    assert rescored.image_ids == cache.image_ids
    assert np.abs(rescored[RIDERS].probabilities - cache[RIDERS].probabilities).max() > 0
    words = ("--split", photos / "unseen.toml", "--json", tmp_path / "teacher.json")
    run(cache_main, "evaluate", built, "--data", photos, *words)
    (row,) = pair_recall.measure(photos, photos / "detections.json", thresholds=[0.2])
    results = read_results(tmp_path / "teacher.json")
    assert results.extra["pair_recall"] == pytest.approx(row.recall)


def test_every_photograph_can_be_shown(photos, built, tmp_path):
    for name in (RIDERS, CYCLISTS, "000000000785.jpg"):
        out = tmp_path / f"{name}.png"
        lines = run(cache_main, "show", built, name, "--data", photos, "--out", out).stdout
        assert f"{len(open_cache(built)[name].pairs)} pairs" in lines.splitlines()[0]
        assert max(read_image(out).size) >= 900


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    """Random weights of one of torchvision's detectors."""
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("detector") / "detector.safetensors"
    save_file(get_model(ONE_STAGE, weights=None, weights_backbone=None).state_dict(), file)
    return ("--detector", ONE_STAGE, "--detector-weights", file)


LOW = ("--person-threshold", 0, "--object-threshold", 0, "--max-people", 3, "--max-objects", 3)


def build_with_detector(data, detector, teacher, out, *words):
    models = (*detector, "--clip-model", teacher, "--device", "cpu")
    run(cache_main, "build", data, "--out", out, *models, *LOW, *words)
    return open_cache(out)


def test_a_cache_with_torchvisions_detector(photos, detector, tmp_path):
    out = tmp_path / "cache"
    cache = build_with_detector(photos, detector, photos / "teacher", out, "--limit", 4)
    assert len(cache) == 4 and not cache.failed
    for name in cache.image_ids:
        check_outputs(cache[name], read_image(photos / "images" / name).size)


def check_outputs(outputs, size):
    """Boxes are within the picture, and probabilities are normalised."""
    edge = np.array([*size, *size], np.float32)
    for boxes in (outputs.pairs.human_boxes, outputs.pairs.object_boxes, outputs.region_boxes):
        assert (boxes >= 0).all() and (boxes <= edge + 1e-3).all()
        assert (boxes[:, 2:] > boxes[:, :2]).all()
    assert np.isfinite(outputs.embeddings).all()
    np.testing.assert_allclose(outputs.probabilities.sum(1), 1, atol=5e-3)


@pytest.fixture(scope="module")
def students(photos, built):
    """`students("toy")`: the run folder of a student of a preset after some steps."""

    @cache
    def train(preset):
        out = photos.parent / preset
        data = ("--data", photos, "--cache", built, "--split", photos / "unseen.toml")
        size = ("--epochs", 1, "--batch-size", 4, "--device", "cpu", "--workers", 0)
        run(train_main, "student", *data, "--out", out, *PRESETS[preset], *size)
        return out

    return train


each_preset = pytest.mark.parametrize("preset", PRESETS)


@each_preset
def test_a_student_is_trained_and_evaluated(photos, students, preset, tmp_path):
    out = students(preset)
    steps = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert steps and all(np.isfinite(line["loss"]) for line in steps)
    results = read_results(out / "results.json")
    assert (results.dataset, results.num_images, results.kind) == ("photos", 6, "student")
    assert "data:image" in (out / "report.html").read_text()
    run(eval_main, "report", out, "--out", tmp_path / "report.html", "--data", photos)
    report = (tmp_path / "report.html").read_text()
    assert "data:image" in report and "look at boat" in report
    words = ("--data", photos, "--annotations", photos / "annotations/test.json")
    run(eval_main, "hico", out, *words[:2])


def test_a_student_with_another_vocabulary_is_the_start(photos, built, tmp_path):
    """Classes with equal names keep their rows, and the backbone stays as it was."""
    data = ("--data", photos, "--cache", built, "--split", photos / "unseen.toml")
    start = ("--preset", "toy", "--pretrained", TOY_STUDENT, "--freeze-backbone")
    size = ("--epochs", 4, "--batch-size", 4, "--device", "cpu", "--workers", 0, "--no-report")
    stop = ("--val-size", 4, "--set", "val-every=1", "--set", "patience=1", "--keep", "best")
    run(train_main, "student", *data, "--out", tmp_path / "run", *start, *size, *stop)
    kept = json.loads((tmp_path / "run/pretrained.json").read_text())["partly"]
    # With the row of "no object".
    assert kept["object_head"].startswith("7 of 81 rows")
    assert kept["verb_head"].startswith("5 of 10 rows")
    trained, toy = (
        load_checkpoint(file).weights for file in (tmp_path / "run" / BEST, TOY_STUDENT)
    )
    names = [name for name in toy if name.startswith("backbone.")]
    assert names and all(torch.equal(trained[name], toy[name]) for name in names)
    assert read_results(tmp_path / "run/results.json").num_images == 6


def test_an_action_is_added(photos, built, students, tmp_path):
    model = students("toy")
    words = ("--add", "push=pushing:motorcycle", "--out", tmp_path / "new.h5")
    run(cache_main, "prompts", built, *words, "--clip-model", photos / "teacher")
    detector = Detector.open(model, "cpu", prompts=tmp_path / "new.h5")
    assert "push" in detector.vocabulary.verbs
    words = ("--prompts", tmp_path / "new.h5", "--json", tmp_path / "out.json", "--threshold", 0)
    run(predict_main, model, photos / "images" / RIDERS, *words, "--device", "cpu")
    (entry,) = json.loads((tmp_path / "out.json").read_text())["pictures"]
    assert [one["score"] for one in entry["interactions"]] == pytest.approx(
        detector(photos / "images" / RIDERS, threshold=0.0).scores, abs=1e-5
    )


def saved(convert=lambda image: image, **options):
    def save(image, path):
        image = convert(image)
        image.save(path, **options)
        with Image.open(path) as opened:
            return opened.convert("RGB")

    return save


def turned(image, path):
    exif = Image.Exif()
    exif[0x0112] = 6
    image.transpose(Image.Transpose.ROTATE_90).save(path, exif=exif)
    return image


def sixteen_bits(image, path):
    grey = image.convert("L")
    Image.fromarray(np.asarray(grey).astype(np.uint16) * 257).save(path)
    return grey.convert("RGB")


def transparent(image, path):
    whole = image.copy()
    whole.putalpha(Image.linear_gradient("L").resize(image.size))
    whole.save(path)
    return image


def resized(*size):
    return saved(lambda image: image.resize(size, Image.Resampling.BILINEAR), quality=95)


# How a picture is saved, by its name; gives the upright 8-bit RGB content.


KINDS = {
    "upright.png": saved(),
    "turned.png": turned,
    "grey.jpg": saved(lambda image: image.convert("L")),
    "cmyk.jpg": saved(lambda image: image.convert("CMYK")),
    "palette.png": saved(lambda image: image.quantize(64)),
    "sixteen.png": sixteen_bits,
    "transparent.png": transparent,
    "panorama.jpg": resized(640, 80),
    "narrow.jpg": resized(12, 480),
    "photo.webp": saved(quality=90),
}


def mosaic():
    """40 people, cut from the photographs, and their boxes."""
    picture, boxes = Image.new("RGB", (400, 320)), []
    for entry in json.loads((PHOTOS / "annotations/train.json").read_text()):
        with Image.open(PHOTOS / "images" / entry["file_name"]) as image:
            for row in entry["annotations"]:
                if row["category_id"] == PERSON and len(boxes) < 40:
                    left, top = len(boxes) % 10 * 40, len(boxes) // 10 * 80
                    cut = image.crop(tuple(map(round, row["bbox"]))).resize((38, 78))
                    picture.paste(cut, (left, top))
                    boxes.append([left, top, left + 38, top + 78])
    return picture, boxes


@pytest.fixture(scope="module")
def pictures(photos, tmp_path_factory):
    """A dataset folder whose test part has a picture of each kind, and the upright RGB content of
    each by file name."""
    root = tmp_path_factory.mktemp("pictures") / "pictures"
    (root / "images").mkdir(parents=True)
    contents = {}
    for name, save in KINDS.items():
        image = read_image(photos / "images" / RIDERS)
        contents[name] = save(image, root / "images" / name)
    for name in (NO_PERSON, ONE_PERSON):
        shutil.copy(photos / "images" / name, root / "images")
        contents[name] = read_image(root / "images" / name)
    picture, people = mosaic()
    picture.save(root / "images/mosaic.png")
    contents["mosaic.png"] = picture
    assert len(people) == 40
    by_name = {
        entry["file_name"]: entry
        for part in ("train", "test")
        for entry in json.loads((photos / f"annotations/{part}.json").read_text())
    }
    entries = []
    for name, content in contents.items():
        entry = {"annotations": [], "hoi_annotation": []}
        if name in KINDS and content.size == contents["upright.png"].size:
            entry = by_name[RIDERS]
        width, height = content.size
        entries.append({**entry, "file_name": name, "width": width, "height": height})
    (root / "test.json").write_text(json.dumps(entries))
    found = json.loads((photos / "detections.json").read_text())
    detections = [row for row in found if row["image_id"] in contents]
    detections += [
        {"image_id": "mosaic.png", "category_id": PERSON, "score": 0.9}
        | {"bbox": [x, y, x2 - x, y2 - y]}
        for x, y, x2, y2 in people
    ]
    motorcycle = {"category_id": MOTORCYCLE, "score": 0.9, "bbox": [0, 80, 300, 200]}
    detections.append({"image_id": "mosaic.png", **motorcycle})
    (root / "detections.json").write_text(json.dumps(detections))
    (root / "dataset.toml").write_text(
        f'name = "pictures"\nvocabulary = "{photos / "vocabulary.json"}"\n'
        '[test]\nimages = "images"\nannotations = "test.json"\n'
    )
    return root, contents


def test_pictures_of_all_kinds_have_teacher_outputs(pictures, photos, detector, tmp_path):
    root, contents = pictures
    run(data_main, "check", root)
    teacher = photos / "teacher"
    cache = build_with_detector(root, detector, teacher, tmp_path / "c", "--part", "test")
    assert set(cache.image_ids) == contents.keys() and not cache.failed
    for name, content in contents.items():
        check_outputs(cache[name], content.size)
    upright, turned = (cache[f"{name}.png"] for name in ("upright", "turned"))
    np.testing.assert_array_equal(upright.pairs.human_boxes, turned.pairs.human_boxes)
    np.testing.assert_array_equal(upright.probabilities, turned.probabilities)


def test_pairs_of_few_and_of_many_people(pictures, photos, tmp_path):
    root, contents = pictures
    words = ("--proposals", root / "detections.json", "--clip-model", photos / "teacher")
    out = tmp_path / "cache"
    run(cache_main, "build", root, "--part", "test", "--out", out, *words, "--device", "cpu")
    cache = open_cache(out)
    for name in (NO_PERSON, ONE_PERSON):
        assert len(cache[name].pairs) == 0
        drawn = tmp_path / f"{name}.png"
        run(cache_main, "show", out, name, "--data", root, "--out", drawn)
        assert max(read_image(drawn).size) >= 900
    # The number of people of an image is limited.
    assert len(cache["mosaic.png"].pairs) == 15
    check_outputs(cache["mosaic.png"], contents["mosaic.png"].size)


@each_preset
def test_every_entry_point_gives_the_same_answer(pictures, students, preset, tmp_path):
    root, contents = pictures
    model = students(preset)
    everything = ("--threshold", 0, "--top", 100, "--device", "cpu", "--workers", 0)
    words = ("--out", tmp_path / "drawn", "--json", tmp_path / "all.json", *everything)
    run(predict_main, model, root / "images", *words, "--batch-size", 3)
    words = ("--out", tmp_path / "lines", "--shards", "--images-per-shard", 5, *everything)
    run(predict_main, model, root / "images", *words)
    run(predict_main, model, "--data", root, "--out", tmp_path / "part", *everything)
    evaluated = ("--data", root, "--out", tmp_path / "evaluated", "--device", "cpu")
    run(train_main, "evaluate", model, *evaluated, "--workers", 0)
    entries = json.loads((tmp_path / "all.json").read_text())["pictures"]
    lines = [
        json.loads(line)
        for path in (tmp_path / "lines/shards").iterdir()
        for line in path.read_text().splitlines()
    ]
    answers = {"images": answers_of_entries(entries), "shards": answers_of_entries(lines)}
    detector = Detector.open(model, "cpu")
    for folder in ("part", "evaluated"):
        found = read_predictions(tmp_path / folder / "predictions.json", detector.vocabulary)
        answers[folder] = {
            one.image_id: [
                (
                    detector.vocabulary.interaction_name(
                        detector.vocabulary.interaction_ids[verb, one.labels[target]]
                    ),
                    score,
                    *one.boxes[[human, target]],
                )
                for (human, target, verb), score in zip(one.hois, one.scores, strict=True)
            ]
            for one in found
        }
    selection = SelectionConfig(0.0, 100)
    for name in contents:
        path, content = root / "images" / name, contents[name]
        results = {
            "path": detector(path, threshold=0.0, top=100),
            "content": detector(content, threshold=0.0, top=100),
            "array": detector(np.asarray(content), threshold=0.0, top=100),
            "page": read_picture(detector, path).select(selection),
        }
        for source, result in results.items():
            columns = (result.actions, result.scores, result.human_boxes, result.object_boxes)
            answers.setdefault(source, {})[name] = list(zip(*columns, strict=True))
    reference = answers.pop("content")
    assert reference.keys() == contents.keys()
    for source, found in answers.items():
        assert found.keys() == contents.keys()
        for name, rows in found.items():
            check_answers(rows[:100], reference[name], f"{source}: {name}")
    drawn = {path.stem for path in (tmp_path / "drawn").glob("*.jpg")}
    assert drawn == {Path(name).stem for name in contents}


def answers_of_entries(entries):
    """By image name: action, score, human box and object box of every interaction."""
    return {
        Path(entry["image"]).name: [
            (
                one["action"],
                one["score"],
                *(np.array(entry["boxes"][one[part]]["box"]) for part in ("person", "object")),
            )
            for one in entry["interactions"]
        ]
        for entry in entries
    }


def check_answers(rows, expected, title):
    """Equal but for rounding, which may exchange rows whose scores are nearly equal."""
    actions, scores, people, objects = zip(*expected, strict=True)
    assert [row[1] for row in rows] == pytest.approx(scores, abs=1e-5), title
    boxes = np.hstack([people, objects])
    for action, score, human_box, object_box in rows:
        differences = np.abs(boxes - np.hstack([human_box, object_box])).max(axis=1)
        is_equal = (np.array(actions) == action) & (np.abs(np.array(scores) - score) < 1e-5)
        is_equal &= differences < 0.05
        # Of rows that score as the last one does, others may have been selected.
        assert is_equal.any() or score < scores[-1] + 1e-5, f"{title}: {action} {score}"


LARGE = (5000, 6000)


def test_a_picture_of_30_megapixels(photos, students, detector, tmp_path):
    """In the image folder of a dataset without annotations."""
    (tmp_path / "images").mkdir()
    content = read_image(photos / "images" / RIDERS).resize(LARGE, Image.Resampling.NEAREST)
    content.save(tmp_path / "images/large.jpg", quality=95, subsampling=0)
    (tmp_path / "dataset.toml").write_text(
        f'name = "large"\nvocabulary = "{photos / "vocabulary.json"}"\n[test]\nimages = "images"\n'
    )
    out, teacher = tmp_path / "cache", photos / "teacher"
    cache = build_with_detector(tmp_path, detector, teacher, out, "--part", "test")
    check_outputs(cache["large.jpg"], LARGE)
    words = ("--out", tmp_path / "drawn", "--threshold", 0, "--top", 3, "--device", "cpu")
    model = students("published")
    run(predict_main, model, tmp_path / "images", *words)
    entry = json.loads((tmp_path / "drawn/large.json").read_text())
    assert (entry["width"], entry["height"]) == LARGE
    result = Detector.open(model, "cpu")(tmp_path / "images/large.jpg", threshold=0.0, top=3)
    assert [one["action"] for one in entry["interactions"]] == list(result.actions)
    scores = [one["score"] for one in entry["interactions"]]
    assert len(scores) == 3 and scores == pytest.approx(result.scores, abs=1e-5)


@pytest.mark.slow
def test_the_published_sizes_and_augmentation(photos, detector, tmp_path):
    """Photographs and their detections as they are, with DETR's resizing to 800 pixels."""
    words = ("--proposals", PHOTOS / "detections.json", "--clip-model", photos / "teacher")
    limit = ("--limit", 2, "--device", "cpu")
    run(cache_main, "build", PHOTOS, "--out", tmp_path / "cache", *words, *limit)
    data = ("--data", PHOTOS, "--cache", tmp_path / "cache", "--split", "full")
    size = [word for word in SMALL_PUBLISHED if word != "augmentation=toy"]
    size.remove("--set")
    steps = ("--epochs", 2, "--batch-size", 2, "--workers", 0, "--out", tmp_path / "run")
    run(train_main, "student", *data, *limit, *size, *steps)
    assert read_results(tmp_path / "run/results.json").limit == 2


@pytest.mark.slow
@pytest.mark.parametrize(("form", "ending"), [("onnx", "onnx"), ("torch-export", "pt2")])
def test_an_exported_detector_runs_on_a_photograph(
    photos, students, traced, form, ending, tmp_path
):
    file, student = tmp_path / f"detector.{ending}", students("published")
    run(predict_main, student, "--export", form, file)
    path = photos / "images" / RIDERS
    pixels = np.asarray(read_image(path)).transpose(2, 0, 1)
    height, width = pixels.shape[1:]
    # The rest is padding.
    images = np.zeros((1, 3, height + -height % 8, width + -width % 8), np.float32)
    images[0, :, :height, :width] = pixels / 255
    sizes = np.array([[height, width]])
    if form == "onnx":
        session = pytest.importorskip("onnxruntime").InferenceSession(file)
        names = [output.name for output in session.get_outputs()]
        found = session.run(None, {"images": images, "sizes": sizes})
        scores = dict(zip(names, found, strict=True))["scores"]
    else:
        module = torch.export.load(file).module()
        scores = module(torch.from_numpy(images), torch.from_numpy(sizes))["scores"].numpy()
    expected = Detector.open(student, "cpu")(path, threshold=0.0, top=10).scores
    np.testing.assert_allclose(scores[0, :10], expected, atol=1e-4)


@pytest.mark.slow
def test_the_commands_of_the_tutorial_run(photos, tmp_path):
    """With small networks with random weights instead of published ones, and small images."""
    root = PHOTOS.parents[2]
    text = (root / "docs/tutorials/own-data.md").read_text()
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    codes = [code for language, code in blocks if language == ""]
    script = "\n".join(code for code in codes if "eoid-data convert" not in code)
    small = (
        ("--clip-model RN50x16 --clip-weights openai", f"--clip-model {photos / 'teacher'}"),
        ("--pretrained detr-r50-e632da11.pth --epochs 200", " ".join(SMALL_PUBLISHED)),
        (
            "--pretrained runs/hico --freeze-backbone --epochs 200",
            " ".join(("--pretrained runs/photos --freeze-backbone", *SMALL_PUBLISHED)),
        ),
        ("--batch-size 4", "--batch-size 4 --epochs 1 --workers 0"),
        ("--threshold 0.3", "--threshold 0 --workers 0"),
    )
    for published, changed in small:
        assert published in script
        script = script.replace(published, changed)
    (split,) = [code for language, code in blocks if language == "toml"]
    (tmp_path / "unseen.toml").write_text(split)
    (tmp_path / "tests/data").mkdir(parents=True)
    (tmp_path / "tests/data/photos").symlink_to(photos)
    run_script(script, tmp_path)
    assert (tmp_path / "pairs.png").is_file() and (tmp_path / "runs/photos/report.html").is_file()
    assert len(list((tmp_path / "drawn").glob("*.jpg"))) == 26
