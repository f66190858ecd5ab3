import json

import numpy as np
import pytest

from pipeline.toy.generate import write_toy
from pipeline.utils.errors import InputError
from teacher_cache.analysis.inspect import (
    MIN_REGIONS,
    TeacherSpread,
    compute_overview,
    format_overview,
    inspect_cache,
    inspect_no_interaction,
    relative_entropy,
)
from teacher_cache.build import BuildConfig, build_cache
from teacher_cache.detectors.torchvision import TOY_IN_CACHES
from teacher_cache.maintenance.rescore import RescoreConfig, rescore_cache
from teacher_cache.reader.cache import open_cache
from teacher_cache.reader.format import ANNOTATED, SHARDS
from teacher_cache.reader.soft_targets import object_actions


def test_counts_are_those_of_the_images(finished, vocabulary):
    cache = open_cache(finished)
    overview = compute_overview(cache)
    outputs = [cache[image] for image in cache.image_ids]
    sources = np.concatenate([each.pairs.sources for each in outputs])
    labels = np.concatenate([each.pairs.object_labels for each in outputs])
    best = np.concatenate([each.probabilities for each in outputs])
    num_pairs = [len(each.pairs) for each in outputs]
    num_regions = sum(len(each.region_boxes) for each in outputs)
    assert overview["counts"] == {
        "images": 7,
        "failed_images": 0,
        "images_without_pairs": num_pairs.count(0),
        "shards": 3,
        "annotated_pairs": (sources == ANNOTATED).sum(),
        "proposed_pairs": (sources != ANNOTATED).sum(),
        "regions": num_regions,
    }
    per_image = overview["pairs_per_image"]
    assert per_image["images_by_pairs"] == np.bincount(num_pairs).tolist()
    assert (per_image["mean"], per_image["max"]) == (np.mean(num_pairs), max(num_pairs))
    assert per_image["median"] == np.median(num_pairs)
    assert overview["repeated_unions"] == pytest.approx(1 - num_regions / len(labels))
    expected = np.zeros((vocabulary.num_objects, vocabulary.num_verbs), dtype=int)
    np.add.at(expected, (labels, best.argmax(1)), 1)
    for label, name in enumerate(vocabulary.objects):
        counts = overview["top_actions"].get(name, {})
        assert list(counts.values()) == sorted(expected[label][expected[label] > 0])[::-1]
        for verb, count in counts.items():
            assert expected[label, vocabulary.verbs.index(verb.replace(" ", "_"))] == count
    for kind, mask in (("annotated", sources == ANNOTATED), ("proposed", sources != ANNOTATED)):
        top, found = best[mask].max(1), overview["confidence"][kind]
        assert found["pairs"] == len(top)
        assert found["histogram"] == np.histogram(top, 20, (0, 1))[0].tolist()
        quantiles = [found[name] for name in ("p10", "p50", "p90")]
        np.testing.assert_allclose(quantiles, np.quantile(top, (0.1, 0.5, 0.9)), atol=1e-3)
        assert found["max"] == top.max()
        entropy = entropies(best[mask], labels[mask], vocabulary)
        found = overview["entropy"][kind]
        assert found["pairs"] == len(entropy)
        assert found["mean"] == pytest.approx(np.mean(entropy), abs=1e-3)
    files = list((finished / SHARDS).iterdir())
    assert overview["file_bytes"] == sum(path.stat().st_size for path in files)
    assert 0 < overview["raw_bytes"] < overview["file_bytes"]


def entropies(probabilities, labels, vocabulary):
    """Relative entropies by their definition, of objects with at least two actions."""
    actions = np.delete(vocabulary.valid, vocabulary.no_interaction, axis=0).sum(axis=0)[labels]
    return [
        -sum(p * np.log(p) for p in row / row.sum() if p > 0) / np.log(count)
        for row, count in zip(probabilities.astype(np.float64), actions, strict=True)
        if count > 1
    ]


def test_relative_entropy(vocabulary):
    verbs = [np.flatnonzero(column) for column in vocabulary.valid.T]
    (label, *_) = np.flatnonzero(vocabulary.valid.sum(axis=0) > 2)
    actions = verbs[label][verbs[label] != vocabulary.no_interaction]
    probabilities = np.zeros((5, vocabulary.num_verbs), dtype=np.float16)
    probabilities[0, actions] = 1 / len(actions)
    probabilities[1, actions[0]] = 1
    probabilities[2, actions[:2]] = 0.5
    # The fourth row is all 0, and a person forms no interaction.
    probabilities[4, 0] = 1
    labels = np.array([label] * 4 + [vocabulary.person])
    found = relative_entropy(probabilities, labels, vocabulary)
    expected = [1, 0, np.log(2) / np.log(len(actions)), np.nan, np.nan]
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_the_entropy_of_independent_probabilities(vocabulary):
    labels = np.flatnonzero(object_actions(vocabulary).sum(axis=1) > 1)[:1].repeat(3)
    actions = object_actions(vocabulary)[labels]
    probabilities = actions * np.array([[0.5], [0.11], [1.0]], np.float16)
    found = relative_entropy(probabilities, labels, vocabulary, "independent")
    np.testing.assert_allclose(found, [1, 0.5, 0], atol=1e-3)
    single = np.flatnonzero(object_actions(vocabulary).sum(axis=1) < 2)[:1]
    assert np.isnan(relative_entropy(probabilities[:1], single, vocabulary, "independent")).all()


@pytest.fixture
def teacher(vocabulary):
    """`teacher(kind, num_regions, num_objects)`: the warnings about a teacher, all of whose regions
    have two pairs."""
    valid = vocabulary.valid.copy()
    valid[vocabulary.no_interaction] = False
    rng = np.random.default_rng(0)

    def make(kind, label):
        actions = np.flatnonzero(valid[:, label])
        logits = rng.normal(size=len(actions))
        if kind == "uniform":
            logits *= 0.05
        elif kind == "constant":
            logits = np.arange(len(actions)) / 3 + rng.normal(size=len(actions)) / 1000
        elif kind == "single":
            logits[0] += 6
        elif kind == "certain":
            logits[0] += 20
        elif kind == "sharp":
            logits *= 100
        row = np.zeros(len(valid))
        row[actions] = np.exp(logits) / np.exp(logits).sum()
        # Independent probabilities: all yes, all no, and two that are always yes.
        if kind in ("yes", "no", "two"):
            row[actions] = 0.002 + 0.003 * rng.random(len(actions))
            certain = {"yes": actions, "no": [], "two": actions[:2]}[kind]
            row[certain] = 1 - row[certain]
        return row

    def warn(kind, num_regions, num_objects, has_prompts=True):
        spread = TeacherSpread(vocabulary)
        labels = np.repeat(np.flatnonzero(valid.sum(axis=0) > 1)[:num_objects], num_regions)
        # A few regions are those of a healthy teacher, but equal distributions are exactly that.
        is_healthy = (np.arange(len(labels)) % 50 == 7) & (kind in ("uniform", "certain"))
        kinds = np.where(is_healthy, "healthy", kind)
        rows = np.array([make(*each) for each in zip(kinds, labels, strict=True)], np.float16)
        for regions in np.array_split(np.arange(len(labels)), 2):
            part = np.repeat(regions, 2)
            form = "independent" if kind in ("yes", "no", "two") else "softmax"
            entropy = relative_entropy(rows[part], labels[part], vocabulary, form)
            spread.add(labels[part], part, rows[part], entropy, rows[part].argmax(axis=1))
        return spread.warnings(has_prompts)

    return warn


@pytest.mark.parametrize(
    ("kind", "num_objects", "word"),
    [
        ("uniform", 1, "uniform"),
        ("uniform", 5, "uniform"),
        ("single", 3, "best action"),
        ("certain", 5, "best action"),
    ],
)
def test_a_degenerate_teacher_is_reported_in_one_line(teacher, kind, num_objects, word):
    (line,) = teacher(kind, 200, num_objects)
    assert word in line and "\n" not in line
    assert ("rescore" in line) == (kind == "uniform")
    # A teacher without prompts cannot be rescored.
    assert "rescore" not in teacher(kind, 200, num_objects, has_prompts=False)[0]
    # Too few regions to tell.
    assert teacher(kind, (MIN_REGIONS - 1) // num_objects, num_objects) == []


@pytest.mark.parametrize("num_objects", [1, 5])
@pytest.mark.parametrize("kind", ["constant", "yes", "no"])
def test_a_constant_teacher_is_reported(teacher, kind, num_objects):
    (line,) = teacher(kind, MIN_REGIONS // num_objects, num_objects)
    assert f"{num_objects} of {num_objects} objects" in line and "same probabilities" in line
    assert teacher(kind, (MIN_REGIONS - 1) // num_objects, num_objects) == []


def test_objects_with_few_regions_are_judged_together(teacher):
    """As on a few photographs, where most objects have fewer regions than a warning needs."""
    assert "best action" in teacher("single", MIN_REGIONS // 3 + 1, 5)[0]
    assert "uniform" in teacher("uniform", MIN_REGIONS // 5, 5)[0]
    # Regions of one photograph each, in which the people do the same.
    assert teacher("single", 4, 5) == []


@pytest.mark.parametrize(
    ("kind", "num_objects"),
    [("healthy", 5), ("sharp", 5), ("healthy", 1), ("single", 2), ("certain", 1), ("two", 2)],
)
def test_no_false_alarm(teacher, kind, num_objects):
    """One or two objects may have one action in all images."""
    for num_regions in (1, MIN_REGIONS, 200):
        assert teacher(kind, num_regions, num_objects) == []


def test_a_cache_without_shards(finished):
    cache = open_cache(finished)
    cache.manifest["shards"].clear()
    overview = compute_overview(cache)
    assert overview["repeated_unions"] is None and overview["top_actions"] == {}
    assert overview["pairs_per_image"]["mean"] is None
    assert overview["confidence"]["annotated"]["p50"] is None
    assert "best action by object" not in format_overview(overview)


def test_pairs_without_a_possible_action(finished):
    cache = open_cache(finished)
    read, name = cache.shard_arrays, "pairs/action_probabilities"
    cache.shard_arrays = lambda shard: {**read(shard), name: np.zeros_like(read(shard)[name])}
    overview = compute_overview(cache)
    assert overview["top_actions"] == {} and overview["counts"]["regions"] > 0
    assert [found["pairs"] for found in overview["confidence"].values()] == [0, 0]


def test_long_names_of_settings(finished):
    overview = compute_overview(open_cache(finished))
    overview["parts"]["teacher.settings.a_long_name_of_a_setting"] = "7"
    (line,) = [one for one in format_overview(overview) if "a_long_name" in one]
    assert line.split() == ["teacher.settings.a_long_name_of_a_setting", "7"]


def test_lines_json_and_figure(finished, tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="the extra report is not installed")
    file, figure = tmp_path / "i.json", tmp_path / "i.png"
    capsys.readouterr()
    inspect_cache(finished, file, figure)
    lines = capsys.readouterr().out.splitlines()
    rows = {line[:26].strip(): line[26:] for line in lines}
    overview = compute_overview(open_cache(finished))
    assert rows["images"] == "7" and rows["detector.model"] == "toy"
    assert rows["repeated unions"] == f"{100 * overview['repeated_unions']:.1f} %"
    for title, found in (
        ("probability of best action, annotated", overview["confidence"]["annotated"]),
        ("entropy / maximum, proposed", overview["entropy"]["proposed"]),
    ):
        (row,) = [line for line in lines if title in line]
        values = [found[column] for column in ("mean", "p10", "p50", "p90", "max")]
        assert row.split()[-5:] == [f"{value:.2f}" for value in values]
    (name, verbs), *_ = overview["top_actions"].items()
    (row,) = [line.split() for line in lines if line.split()[:1] == [name]]
    assert row[1:3] == [str(sum(verbs.values())), f"{overview['object_entropy'][name]:.2f}"]
    value = json.loads(file.read_text())
    assert value["counts"]["images"] == 7
    assert value["parts"]["detector.model"] == TOY_IN_CACHES
    assert figure.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("field", ["json", "figure"])
def test_files_are_kept_without_overwrite(finished, tmp_path, field):
    file = tmp_path / "mine.png"
    file.write_text("mine")
    with pytest.raises(InputError, match="--overwrite"):
        inspect_cache(finished, **{field: file})
    assert file.read_text() == "mine"
    inspect_cache(finished, **{field: file}, overwrite=True)
    assert file.read_bytes() != b"mine"


def test_neither_file_is_written_without_the_other(finished, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="found a file"):
        inspect_cache(finished, tmp_path / "i.json", tmp_path / "file/a.png")
    both = tmp_path / "both.png"
    with pytest.raises(InputError, match="--figure: expected another file than --json, found"):
        inspect_cache(finished, both, both)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_annotated_pairs_without_interaction(finished, shared_dataset, vocabulary, capsys):
    entries = json.loads((shared_dataset / "annotations/trainval_hico.json").read_text())
    labels = {}
    for number, entry in enumerate(entries):
        for hoi in entry["hoi_annotation"]:
            pair = number, hoi["subject_id"], hoi["object_id"]
            labels.setdefault(pair, set()).add(hoi["category_id"] - vocabulary.first_verb_id)
    expected = [vocabulary.no_interaction in verbs for verbs in labels.values()]
    found = inspect_no_interaction(open_cache(finished), shared_dataset)
    assert found["annotated_pairs"] == len(expected)
    assert found["share"] == pytest.approx(np.mean(expected)) and 0 < found["share"] < 1
    assert found["confidence"]["pairs"] == sum(expected)
    inspect_cache(finished, dataset=shared_dataset)
    out = capsys.readouterr().out
    assert f"{100 * np.mean(expected):.1f} % of {len(expected)} annotated pairs" in out


def test_a_dataset_of_other_annotations_is_refused(finished, dataset, change_annotations):
    change_annotations()
    with pytest.raises(InputError, match="annotations"):
        inspect_cache(finished, dataset=dataset)


def test_the_toy_teacher_is_healthy(tmp_path, messages):
    """Its pairs are enough to be judged, in all images and in two."""
    write_toy(tmp_path / "toy", train=16, test=1, seed=2)
    for limit in (None, 2):
        out = tmp_path / f"cache-{limit}"
        models = {"detector": "toy", "clip_model": "toy", "device": "cpu"}
        build_cache(BuildConfig(tmp_path / "toy", out, limit=limit, **models))
        messages.clear()
        inspect_cache(out, tmp_path / f"{limit}.json")
        assert messages == []
    top_actions = json.loads((tmp_path / "None.json").read_text())["top_actions"]
    assert sum(sum(each.values()) >= MIN_REGIONS for each in top_actions.values()) >= 2


def test_a_teacher_of_uniform_probabilities(finished, tmp_path, messages):
    """With a much too high temperature."""
    rescore_cache(RescoreConfig(finished, tmp_path / "flat", temperature=1e3, device="cpu"))
    messages.clear()
    inspect_cache(tmp_path / "flat", tmp_path / "i.json")
    assert [str(tmp_path / "flat") in line and "uniform" in line for line in messages] == [True]
    assert len(json.loads((tmp_path / "i.json").read_text())["warnings"]) == 1
