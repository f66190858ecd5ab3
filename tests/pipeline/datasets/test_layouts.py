import pytest

from pipeline.datasets.layouts import find_layout


def make(root, names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_empty_folder_has_no_layout(tmp_path):
    assert find_layout(tmp_path) is None


@pytest.mark.parametrize(
    ("files", "name", "vocabulary", "parts"),
    [
        (["annotations/trainval_hico.json"], "hico-det", "hico-det", {"train"}),
        (["annotations/test_hico.json"], "hico-det", "hico-det", {"test"}),
        (["instances_test2015.json"], "hico-det", "hico-det", {"test"}),
        (["annotations/anno_bbox.mat"], "hico-det", "hico-det", {"train", "test"}),
        (["annotations/trainval_vcoco.json"], "v-coco", "vcoco", {"train"}),
        (["data/vcoco/vcoco_trainval.json"], "v-coco", "vcoco", {"train"}),
        (
            ["data/vcoco/vcoco_test.json", "annotations/instances_val2014.json"],
            "v-coco",
            "vcoco",
            {"test"},
        ),
        (
            ["annotations/swig_trainval_1000.json", "annotations/swig_test_1000.json"],
            "swig-hoi",
            "swig-hoi",
            {"train", "test"},
        ),
        (["annotations/swig_train_1000.json"], "swig-hoi", "swig-hoi", {"train"}),
        (["annotations/instances_val2017.json"], "coco-2017", "hico-det", {"test"}),
        (["annotations/instances_train2014.json"], "coco-2014", "hico-det", {"train"}),
    ],
)
def test_layouts_are_recognised_by_their_annotation_files(tmp_path, files, name, vocabulary, parts):
    make(tmp_path, files)
    layout = find_layout(tmp_path)
    assert (layout.name, layout.vocabulary) == (name, vocabulary)
    assert set(layout.find_parts(tmp_path)) == parts


def test_official_vcoco_files_are_preferred_if_complete(tmp_path):
    make(tmp_path, ["annotations/test_vcoco.json", "data/vcoco/vcoco_test.json"])
    parts = find_layout(tmp_path).find_parts(tmp_path)
    assert parts["test"].annotations == tmp_path / "annotations/test_vcoco.json"
    make(tmp_path, ["data/instances_vcoco_all_2014.json"])
    parts = find_layout(tmp_path).find_parts(tmp_path)
    assert parts["test"].annotations == tmp_path / "data/vcoco/vcoco_test.json"


def test_hoia_files_are_preferred(tmp_path):
    files = [
        "annotations/trainval_hico.json",
        "annotations/instances_train2015.json",
        "annotations/instances_test2015.json",
        "anno_bbox.mat",
    ]
    make(tmp_path, files)
    parts = find_layout(tmp_path).find_parts(tmp_path)
    assert parts["train"].annotations == tmp_path / files[0]
    assert parts["test"].annotations == tmp_path / files[2]


@pytest.mark.parametrize("folder", ["images/test2015", "hico_20160224_det/images/test2015"])
def test_images_folder_is_found_in_known_places(tmp_path, folder):
    make(tmp_path, ["annotations/test_hico.json", f"{folder}/a.jpg"])
    assert find_layout(tmp_path).find_parts(tmp_path)["test"].images == tmp_path / folder
