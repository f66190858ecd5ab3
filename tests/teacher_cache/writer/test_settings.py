import json
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.utils.errors import InputError
from pipeline.utils.files import write_json
from teacher_cache.build import BuildConfig
from teacher_cache.detectors.pairing import PairingConfig
from teacher_cache.maintenance.rescore import RescoreConfig
from teacher_cache.reader.format import PLAN
from teacher_cache.teachers.regions import RegionMode
from teacher_cache.writer.settings import MERGED_FROM_KEY, from_settings, read_settings, to_settings

BUILD = BuildConfig(Path("/data"), Path("/cache"), clip_model="RN50", templates=("a", "b"))
EXTRACTION = replace(
    BUILD.extraction, pairing=PairingConfig(0.1), region=RegionMode("context=2", 2.0)
)
RESCORE = RescoreConfig(Path("/cache"), Path("/new"), temperature=0.01)


@pytest.mark.parametrize(
    "config",
    [
        BuildConfig(Path("/data"), Path("/cache")),
        replace(BUILD, extraction=EXTRACTION, threads=3, detector_classes=("dog", "person")),
        RESCORE,
    ],
)
def test_round_trip_through_json(config):
    settings = json.loads(json.dumps(to_settings("build", config)))
    assert settings["command"] == "build"
    assert from_settings({**settings, MERGED_FROM_KEY: []}, type(config), Path("f")) == config


def test_paths_are_stored_as_absolute_ones(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "teacher").mkdir()
    config = BuildConfig(Path("data"), Path("c"), clip_model="teacher", clip_weights="openai")
    settings = to_settings("build", config)
    assert settings["dataset"] == str(tmp_path / "data")
    assert settings["clip_model"] == str(tmp_path / "teacher")
    assert settings["clip_weights"] == "openai" and settings["part"] == "train"
    # A key of format 1.
    assert settings["asking"]["level"] == "region" and "extraction" not in settings


@pytest.mark.parametrize(
    "settings",
    [
        {},
        *(
            {**to_settings("build", BUILD), **change}
            for change in ({"unknown": 2}, {"templates": 7}, {"asking": {"unknown": 2}})
        ),
    ],
)
def test_settings_of_another_version_are_refused(settings):
    with pytest.raises(InputError, match="f: settings: expected those of BuildConfig"):
        from_settings(settings, BuildConfig, Path("f"))


def test_a_removed_field_is_refused_only_if_it_had_an_effect():
    stored = to_settings("rescore", RESCORE)
    assert from_settings({**stored, "fitted_to": None}, RescoreConfig, Path("f")) == RESCORE
    with pytest.raises(InputError, match="expected those of RescoreConfig"):
        from_settings({**stored, "fitted_to": {"split": "ua"}}, RescoreConfig, Path("f"))


def test_settings_are_read_from_the_manifest_or_the_plan(tmp_path):
    assert read_settings(tmp_path, {}) == {}
    write_json(tmp_path / PLAN, {"settings": {"command": "old"}})
    assert read_settings(tmp_path, {}) == {"command": "old"}
    assert read_settings(tmp_path, {"settings": {"command": "new"}}) == {"command": "new"}
