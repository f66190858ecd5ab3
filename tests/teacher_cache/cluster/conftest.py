"""Fixtures of builds that are distributed."""

import pytest

from teacher_cache.build import BuildConfig, build_cache


@pytest.fixture(scope="session")
def reference_cache(shared_dataset, extraction, tmp_path_factory):
    """A cache with one image per shard, built in one process without interruption."""
    out = tmp_path_factory.mktemp("reference_cache") / "cache"
    build_cache(
        BuildConfig(shared_dataset, out, extraction=extraction, images_per_shard=1, device="cpu")
    )
    return out
