import pytest
from torchvision.models import get_model_weights

from pipeline.utils.errors import InputError
from pipeline.vocabulary import load_vocabulary
from teacher_cache.detectors.class_names import (
    OTHER_SPELLINGS,
    load_class_names,
    match_class_names,
)


def test_names_of_coco_objects_in_both_orders():
    coco, hico = load_class_names("coco80"), load_class_names("hico80")
    categories = get_model_weights("fasterrcnn_resnet50_fpn")["DEFAULT"].meta["categories"]
    expected = [name for name in categories if name not in ("__background__", "N/A")]
    assert [name.replace("_", " ") for name in coco] == expected
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
def test_names_from_a_file(tmp_path, content):
    (tmp_path / "names.txt").write_bytes(content)
    assert load_class_names(str(tmp_path / "names.txt")) == ("person", "hot dog")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"person\n\ndog\n", r"names\.txt: line 2: "),
        (b"person\n\xff\n", r"names\.txt: cannot be read"),
        (None, r"--detector-classes: .*names\.txt"),
    ],
)
def test_wrong_files_of_names(tmp_path, content, message):
    if content is not None:
        (tmp_path / "names.txt").write_bytes(content)
    with pytest.raises(InputError, match=message):
        load_class_names(str(tmp_path / "names.txt"))


def test_other_spellings_of_objects():
    coco = load_vocabulary("hico-det")
    names = ["person", "Motorbike", "tvmonitor", "tv", "hair_dryer", "wizard"]
    labels, spellings = match_class_names(names, coco)
    assert spellings == {"Motorbike": "motorcycle", "hair_dryer": "hair_drier"}
    found = ["" if label < 0 else coco.objects[label] for label in labels]
    assert found == ["person", "motorcycle", "", "tv", "hair_drier", ""]
    # Every spelling means one of COCO's objects, and none of them is the name of another.
    labels, spellings = match_class_names(list(OTHER_SPELLINGS), coco)
    assert (labels >= 0).all() and len(spellings) == len(OTHER_SPELLINGS)
    assert match_class_names(["motorbike"], load_vocabulary("toy"))[1] == {}


def test_names_that_differ_in_case_only():
    swig = load_vocabulary("swig-hoi")
    labels, _ = match_class_names(["Crown", "crown", "CROWN", "Ball n02778669"], swig)
    assert [swig.objects[label] for label in labels[:2]] == ["Crown", "crown"]
    assert labels[2] in labels[:2] and swig.objects[labels[3]] == "ball_n02778669"
