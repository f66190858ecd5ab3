"""Caches of a few images, built with `--limit`."""

import json
import shutil

import pytest

from pipeline.datasets.dataset import open_dataset
from pipeline.utils.errors import InputError
from pipeline.utils.files import read_json
from teacher_cache.analysis.evaluate import evaluate_teacher
from teacher_cache.analysis.inspect import inspect_cache
from teacher_cache.build import build_cache
from teacher_cache.maintenance.rescore import RescoreConfig, rescore_cache
from teacher_cache.maintenance.verify import verify_cache
from teacher_cache.reader.cache import open_cache

IMAGES = [f"toy_train_0000000{number}.jpg" for number in (1, 2, 4, 6)]


@pytest.fixture
def limited(dataset, build_config):
    """A cache of four of seven images, of which only these exist."""
    for path in (dataset / "images/train2015").iterdir():
        if path.name not in IMAGES:
            path.unlink()
    config = build_config(dataset, limit=4)
    build_cache(config)
    return config.out


def test_a_limited_cache_is_no_whole_one(limited, finished, dataset, build_config, messages):
    cache, whole = open_cache(limited), open_cache(finished)
    assert cache.image_ids == IMAGES and not cache.failed and cache.num_shards == 2
    assert (cache.limit, whole.limit) == (4, None)
    assert not any("missing" in line for line in messages)
    digest = whole.manifest["parts"]["annotations"]
    assert cache.manifest["parts"] == {
        **whole.manifest["parts"],
        "annotations": f"limit 4 {digest}",
    }
    assert read_json(limited / "build.json")["images"] == 4
    loaded = open_dataset(dataset).load("train")
    cache.check(annotations_digest=loaded.limited(4).digest)
    with pytest.raises(InputError, match=r"annotations: limit 4 [0-9a-f]{12}, now [0-9a-f]{12}$"):
        cache.check(annotations_digest=loaded.digest)
    for limit in (None, 5):
        with pytest.raises(InputError, match="cache: holds a cache of other settings"):
            build_cache(build_config(dataset, limit=limit))


def test_the_limit_stays_with_a_cache(limited, dataset, tmp_path, capsys):
    shard = limited / "shards/00001.h5"
    before = shard.read_bytes()
    shard.unlink()
    verify_cache(limited, repair=True, dataset=dataset)
    assert shard.read_bytes() == before
    rescore_cache(RescoreConfig(limited, tmp_path / "rescored", temperature=0.5))
    assert open_cache(tmp_path / "rescored").limit == 4
    inspect_cache(limited)
    assert "cache (built with --limit 4)" in capsys.readouterr().out.splitlines()
    results = evaluate_teacher(tmp_path / "rescored", dataset)
    assert (results.limit, results.num_images) == (4, 4)


def test_a_limit_above_the_number_of_images_is_none(
    finished, shared_dataset, build_config, contents
):
    config = build_config(shared_dataset, limit=7)
    build_cache(config)
    assert contents(config.out) == contents(finished)


def test_detections_of_other_images_are_left_out(dataset, build_config, tmp_path, messages):
    """The file's numbers are those of the images' names, of the whole part."""
    shutil.rmtree(dataset / "images/test2015")
    entries = [
        {"image_id": number, "category_id": category, "bbox": [9, 9, 50, 40], "score": 0.5}
        for number in range(1, 8)
        for category in (1, 2)[: 1 + number % 2]
    ]
    (tmp_path / "results.json").write_text(json.dumps(entries))
    config = build_config(dataset, limit=4, proposals=tmp_path / "results.json")
    build_cache(config)
    cache = open_cache(config.out)
    proposed = [int(cache[image].pairs.sources.sum()) for image in cache.image_ids]
    assert cache.image_ids == IMAGES
    assert proposed == [1, 0, 0, 0]
    assert any("11 detections in 7 of 7 images" in line for line in messages)
