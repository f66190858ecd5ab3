"""Training on caches whose probabilities are independent per verb, as those of `--teacher vlm`."""

from dataclasses import replace

import numpy as np
import pytest
from training import logged

from pipeline.datasets.dataset import open_dataset
from student.config import ProbeConfig
from student.engine.probe import ProbeRun, run_probe
from student.engine.run import run_student
from teacher_cache.reader.cache import open_cache
from teacher_cache.reader.soft_targets import object_actions


@pytest.fixture(scope="module")
def caches(tmp_path_factory, dataset_root, make_teacher_outputs, write_cache, vocabulary):
    """Caches of both parts: 1 for what is done, 0.75 and exactly 0 in turn for other actions."""
    folder, data = tmp_path_factory.mktemp("independent"), open_dataset(dataset_root)
    random = np.random.default_rng(0)
    for part in ("train", "test"):
        file, outputs = data.load(part), {}
        for row, annotation in enumerate(file.annotations):
            own = make_teacher_outputs(annotation, row)
            others = 0.75 * (np.arange(vocabulary.num_verbs) % 2)
            actions = object_actions(vocabulary)[own.pairs.object_labels]
            values = np.where(own.probabilities > 0.5, 1, others) * actions
            embeddings = random.standard_normal((len(own.region_boxes), 8)).astype(np.float32)
            embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
            outputs[annotation.image_id] = replace(
                own, probabilities=values.astype(np.float32), embeddings=embeddings
            )
        further = {"part": part, "probabilities": "independent"}
        write_cache(folder / part, vocabulary, file.digest, outputs, **further)
    return folder


def test_a_student(caches, configure_run, tmp_path):
    config = configure_run(tmp_path / "run", cache=caches / "train")
    cache = open_cache(caches / "train")
    assert cache.probabilities == "independent"
    assert max(cache[name].probabilities.sum(1).max() for name in cache.image_ids) > 1.5
    results = run_student(config)
    losses = [line["losses"]["verb_soft"] for line in logged(tmp_path / "run")]
    assert losses and all(0 < loss < np.inf for loss in losses)
    assert 0 <= results.metrics["unseen"] <= 1


def test_a_probe(caches, dataset_root, tmp_path):
    run = ProbeRun(
        data=dataset_root,
        cache=caches / "train",
        test_cache=caches / "test",
        split="ua",
        out=tmp_path / "probe",
        config=ProbeConfig(epochs=2),
        device="cpu",
    )
    assert 0 <= run_probe(run).metrics["unseen"] <= 1
