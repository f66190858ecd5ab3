import logging
from dataclasses import replace

import numpy as np
import pytest

from pipeline.cluster.modes import LocalWorkers
from pipeline.utils.errors import InputError
from pipeline.utils.logging import log_to_stderr
from teacher_cache.build import build_cache
from teacher_cache.reader.cache import open_cache
from teacher_cache.reader.format import MANIFEST, SHARDS


@pytest.mark.slow
def test_two_processes_give_the_same_outputs(dataset, build_config, finished, capsys):
    """And report an image that one of them cannot read, and at debug level every new shard once."""
    config = build_config(dataset, mode=LocalWorkers(2))
    broken = sorted((dataset / "images/train2015").iterdir())[4]
    broken.write_bytes(b"")
    strict = replace(config, extraction=replace(config.extraction, strict=True))
    with pytest.raises(InputError, match=broken.name) as caught:
        build_cache(strict)
    assert "\n" not in str(caught.value)
    assert not (config.out / MANIFEST).exists()
    # The other process may have finished shards before the build ended.
    before = len(list((config.out / SHARDS).glob("*.h5")))
    with log_to_stderr(logging.DEBUG):
        build_cache(config)
    reference, built = open_cache(finished), open_cache(config.out)
    assert reference.fingerprint == built.fingerprint
    assert list(built.failed) == [broken.name]
    assert [name for name in reference.image_ids if name != broken.name] == built.image_ids
    for image_id in built.image_ids:
        np.testing.assert_allclose(
            reference[image_id].probabilities, built[image_id].probabilities, atol=2e-3
        )
    err = capsys.readouterr().err
    assert "7/7 [" in err
    shards = [line for line in err.splitlines() if ".h5: " in line and "failed" in line]
    assert len(shards) == built.num_shards - before
    assert all(line.startswith("DEBUG ") for line in shards)
