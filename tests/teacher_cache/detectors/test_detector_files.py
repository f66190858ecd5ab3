import pytest
import torch
from torch import nn
from torchvision.models import detection, get_model, get_model_weights, list_models
from torchvision.ops import FrozenBatchNorm2d

from pipeline.utils.errors import InputError
from pipeline.vocabulary import load_vocabulary
from teacher_cache.detectors.torchvision import (
    ZERO_EPSILON_MODELS,
    load_class_names,
    match_batch_norm,
    num_classes,
)

NAMES = list_models(module=detection)


def outline(name, **options):
    """A model without numbers, quick to make at full size."""
    with torch.device("meta"):
        return get_model(name, weights=None, weights_backbone=None, **options)


def norms(model, kind):
    return [module for module in model.modules() if isinstance(module, kind)]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("classes", [2, 7, 91])
def test_every_architecture_tells_its_number_of_classes(name, classes):
    assert num_classes(outline(name, num_classes=classes).state_dict()) == classes


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"conv.weight": torch.zeros(3)},
        {"roi_heads.box_predictor.cls_score.weight": torch.zeros(())},
    ],
)
def test_other_files_get_cocos(state):
    assert num_classes(state) == 91


@pytest.mark.parametrize("name", NAMES)
def test_a_frozen_backbone_is_met_with_a_frozen_one(name):
    """As torchvision publishes weights: without counts of batches."""
    plain = outline(name)
    counted = plain.state_dict()
    assert match_batch_norm(plain, name, counted) is plain and not norms(plain, FrozenBatchNorm2d)
    uncounted = {key: value for key, value in counted.items() if "num_batches" not in key}
    if len(uncounted) == len(counted):
        return
    before = [module.eps for module in norms(plain, nn.BatchNorm2d)]
    frozen = match_batch_norm(outline(name), name, uncounted)
    assert frozen.state_dict().keys() == uncounted.keys()
    found = [module.eps for module in norms(frozen, FrozenBatchNorm2d)]
    assert found == ([0.0] * len(before) if name in ZERO_EPSILON_MODELS else before)


def test_cocos_names_in_both_orders():
    """COCO's order is that of its ids; HICO's is the alphabet's."""
    coco, hico = load_class_names("coco80"), load_class_names("hico80")
    meta = get_model_weights(NAMES[0])["DEFAULT"].meta["categories"]
    plain = [name for name in meta if name not in ("__background__", "N/A")]
    assert [name.replace("_", " ") for name in coco] == plain
    assert hico[:3] == ("airplane", "apple", "backpack") and hico[-1] == "zebra"
    assert set(hico) == set(coco) == set(load_vocabulary("hico-det").objects)


@pytest.mark.parametrize(
    "content",
    [
        b"person\nhot dog\n",
        b"\xef\xbb\xbfperson\r\nhot dog\r\n\r\n",
        b"__background__\nperson\nhot dog",
        b"Background\n person \nhot dog\n",
    ],
)
def test_names_in_a_file(tmp_path, content):
    (tmp_path / "names.txt").write_bytes(content)
    assert load_class_names(str(tmp_path / "names.txt")) == ("person", "hot dog")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"person\n\ndog\n", r"names\.txt: line 2: "),
        (b"person\n\xff\n", r"names\.txt: cannot be read"),
        (None, r"--detector-classes: .*names\.txt"),
    ],
)
def test_files_without_names(tmp_path, content, says):
    if content is not None:
        (tmp_path / "names.txt").write_bytes(content)
    with pytest.raises(InputError, match=says):
        load_class_names(str(tmp_path / "names.txt"))
