from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.datasets.dataset import open_dataset
from pipeline.utils.errors import InputError
from teacher_cache.build import resolve_detector
from teacher_cache.detectors.pairing import PairingConfig
from teacher_cache.detectors.torchvision import DEFAULT_DETECTOR

OTHER = "ssdlite320_mobilenet_v3_large"


@pytest.mark.parametrize("name", [None, "toy", OTHER])
def test_a_datasets_own_weights_are_its_own_detectors(shared_dataset, build_config, name):
    config = build_config(shared_dataset, detector=name)
    chosen = resolve_detector(open_dataset(shared_dataset), config)
    own = str(shared_dataset / "detector.safetensors")
    assert chosen.name == (name or "toy")
    assert chosen.weights == (None if name == OTHER else own)


def test_weights_by_name_and_by_file(shared_dataset, build_config):
    dataset = replace(open_dataset(shared_dataset), detector=None)
    config = build_config(shared_dataset)
    assert resolve_detector(dataset, config).name == DEFAULT_DETECTOR
    assert resolve_detector(dataset, config).weights is None
    named = replace(config, detector=OTHER, detector_weights="COCO_V1")
    chosen = resolve_detector(dataset, named)
    assert (chosen.name, chosen.weights) == (OTHER, "COCO_V1")
    file = str(shared_dataset / "detector.safetensors")
    chosen = resolve_detector(dataset, replace(config, detector_weights=file))
    assert (chosen.name, chosen.weights) == ("toy", file)


def test_a_detector_gives_what_either_partner_may_score(shared_dataset, build_config):
    config = build_config(shared_dataset)
    pairing = PairingConfig(person_threshold=0.5, object_threshold=0.3)
    config = replace(config, extraction=replace(config.extraction, pairing=pairing))
    lowest = resolve_detector(open_dataset(shared_dataset), config).score_threshold
    assert lowest < 0.3 and lowest == pytest.approx(0.3, abs=1e-5)


def test_a_lost_weights_file_of_the_dataset(shared_dataset, build_config):
    dataset = replace(open_dataset(shared_dataset), detector=Path("gone.safetensors"))
    with pytest.raises(InputError, match=r"gone\.safetensors: no such"):
        resolve_detector(dataset, build_config(shared_dataset))
