import pytest

from pipeline.annotations.vcoco import find_vcoco_files, read_image_ids
from pipeline.utils.errors import InputError


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


@pytest.mark.parametrize(
    ("actions", "instances", "ids"),
    [
        (
            "data/vcoco/vcoco_test.json",
            "data/instances_vcoco_all_2014.json",
            "data/splits/vcoco_test.ids",
        ),
        ("vcoco_test.json", "instances_vcoco_all_2014.json", "vcoco_test.ids"),
        (
            "data/vcoco_test.json",
            "annotations/instances_val2014.json",
            "data/splits/vcoco_test.ids",
        ),
        (
            "vcoco_trainval.json",
            "annotations/instances_train2014.json",
            "splits/vcoco_trainval.ids",
        ),
        ("vcoco_trainval.json", "instances_vcoco_all_2014.json", None),
    ],
)
def test_the_others_are_found_around_the_actions(tmp_path, actions, instances, ids):
    touch(tmp_path, actions, instances, *([ids] if ids else []))
    files = find_vcoco_files(tmp_path / actions)
    assert files.instances.resolve() == tmp_path / instances
    assert files.ids is None if ids is None else files.ids.resolve() == tmp_path / ids


def test_named_files_win(tmp_path):
    touch(tmp_path, "vcoco_test.json", "instances_vcoco_all_2014.json", "vcoco_test.ids")
    mine, ids = tmp_path / "mine.json", tmp_path / "mine.ids"
    files = find_vcoco_files(tmp_path / "vcoco_test.json", mine, ids)
    assert (files.instances, files.ids) == (mine, ids)


def test_the_other_parts_boxes_are_not_taken(tmp_path):
    touch(tmp_path, "vcoco_test.json", "instances_train2014.json")
    with pytest.raises(InputError, match="instances: expected"):
        find_vcoco_files(tmp_path / "vcoco_test.json")


def test_ids(tmp_path):
    path = tmp_path / "a.ids"
    path.write_text("12\n 7 \n\n000\n")
    assert read_image_ids(path) == [12, 7, 0]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "file: expected"),
        ("1\nx\n", r"line 2: expected.*found x"),
        ("1\n2.5\n", r"line 2: expected.*found 2.5"),
        ("5\n6\n5\n", r"line 3: expected.*found 5 a second time"),
    ],
)
def test_wrong_ids(tmp_path, text, says):
    path = tmp_path / "a.ids"
    path.write_text(text)
    with pytest.raises(InputError, match=f"a.ids: {says}"):
        read_image_ids(path)


def test_missing_ids(tmp_path):
    with pytest.raises(InputError, match=r"a\.ids: no such"):
        read_image_ids(tmp_path / "a.ids")
