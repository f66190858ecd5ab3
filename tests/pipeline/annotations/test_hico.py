import copy

import numpy as np
import pytest

from pipeline.annotations.load import load_annotations
from pipeline.utils.errors import InputError

# The file's own numbering: objects in alphabetical order, verbs in any.
FILE = {
    "filenames": ["a.jpg", "b.jpg", "c.jpg"],
    "size": [[100, 80], [50, 50], [60, 60]],
    "empty": [1],
    "objects": ["bicycle", "bench"],
    "verbs": ["sit_on", "ride", "no_interaction"],
    "correspondence": [[0, 0, 1], [1, 1, 0], [2, 0, 2]],
    "rare": [],
    "non_rare": [0, 1, 2],
    "annotation": [
        {
            "boxes_h": [[1, 2, 30, 40], [1, 2, 30, 40]],
            "boxes_o": [[5, 6, 50, 60], [7, 8, 70, 75]],
            "hoi": [0, 1],
            "object": [0, 1],
            "verb": [1, 0],
        },
        {"boxes_h": [], "boxes_o": [], "hoi": [], "object": [], "verb": []},
        {
            "boxes_h": [[1, 2, 30, 40]],
            "boxes_o": [[5, 6, 50, 60]],
            "hoi": [2],
            "object": [0],
            "verb": [2],
        },
    ],
}


def changed(path, value):
    whole = copy.deepcopy(FILE)
    place = whole
    for key in path[:-1]:
        place = place[key]
    if value is ...:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return whole


def read(save_json, value, vocabulary, strict=False):
    return load_annotations(save_json(value, "instances.json"), vocabulary, "test", strict)


def test_only_images_with_pairs_and_names_not_numbers(save_json, hico):
    file = read(save_json, FILE, hico)
    assert [annotation.image_id for annotation in file.annotations] == ["a.jpg", "c.jpg"]
    first = file.annotations[0]
    assert [hico.objects[label] for label in first.labels] == ["person", "bicycle", "bench"]
    ride, sit_on = hico.verbs.index("ride"), hico.verbs.index("sit_on")
    assert first.hois.tolist() == [[0, 1, ride], [0, 2, sit_on]]
    assert file.format_issues() == ""


def test_no_annotated_image_at_all(save_json, hico):
    empty = {**FILE, "annotation": [FILE["annotation"][1]] * 3}
    with pytest.raises(InputError, match="file: expected"):
        read(save_json, empty, hico)


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        (["filenames"], [], "filenames: expected"),
        (["filenames"], ["a.jpg", "b.jpg"], "annotation: expected 2 entries, as in filenames"),
        (["filenames", 1], "a.jpg", r"filenames\[1\]: expected"),
        (["filenames", 1], None, r"filenames\[1\]: expected"),
        (["size"], [[1, 1]], "size: expected 3 entries"),
        (["size", 0], [100], r"a.jpg: size: expected"),
        (["objects", 0], "bicicle", r"objects\[0\]: expected"),
        (["objects", 0], [1], r"objects\[0\]: expected"),
        (["verbs"], ..., "verbs: expected"),
        (["verbs", 1], 5, r"verbs\[1\]: expected"),
        (["correspondence"], ..., "correspondence: expected"),
        (["correspondence", 1], [1, 2, 0], r"correspondence\[1\]: expected \[hoi, object below 2"),
        (["correspondence", 1], [1, 1], r"correspondence\[1\]: expected \[hoi, object below 2"),
        (["annotation", 0], 3, r"a.jpg: annotation: expected"),
        (["annotation", 0, "hoi"], ..., "a.jpg: hoi: .*the key is missing"),
        (["annotation", 0, "boxes_h"], 4, r"a.jpg: boxes_h: expected"),
        (["annotation", 0, "boxes_h"], [[1, 2, 30, 40]], "boxes_h: expected 2 entries"),
        (["annotation", 0, "boxes_o", 1], [1, 2, 3], r"a.jpg: boxes_o\[1\]: expected"),
        (["annotation", 0, "boxes_h", 0, 2], float("nan"), r"a.jpg: boxes_h\[0\]: expected"),
        (["annotation", 0, "object", 0], 1, r"hoi\[0\]: expected the interaction of object 1 and"),
        (["annotation", 0, "object", 0], 0.0, r"a.jpg: object\[0\]: expected"),
        (["annotation", 0, "verb", 0], "ride", r"a.jpg: verb\[0\]: expected"),
        (["annotation", 0, "hoi", 0], 3, r"a.jpg: hoi\[0\]: expected"),
        (["annotation", 0, "hoi", 0], [3], r"a.jpg: hoi\[0\]: expected"),
    ],
)
def test_structural_errors_name_file_image_and_field(save_json, hico, path, value, says):
    with pytest.raises(InputError, match=says) as error:
        read(save_json, changed(path, value), hico)
    assert "instances.json" in str(error.value) and "\n" not in str(error.value)


def test_sizes_may_be_missing(save_json, hico):
    unsized = changed(["size"], ...)
    unsized["annotation"][0]["boxes_o"][0] = [5, 6, 5000, 60]
    assert read(save_json, unsized, hico).annotations[0].boxes.max() == 5000


@pytest.mark.parametrize(
    ("path", "value", "field"),
    [
        (["annotation", 0, "boxes_o", 1], [7, 8, 170, 75], r"boxes_o\[1\]"),
        (["annotation", 0, "boxes_h", 1], [7, 8, 7, 75], r"boxes_h\[1\]"),
    ],
)
def test_blemishes_are_counted_or_refused(save_json, hico, path, value, field):
    assert sum(read(save_json, changed(path, value), hico).issues.values()) >= 1
    with pytest.raises(InputError, match=f"instances.json: a.jpg: {field}"):
        read(save_json, changed(path, value), hico, strict=True)


def hoi_table(file):
    """(N, 11): image, both boxes, object and verb of every labelled interaction, sorted."""
    rows = []
    for number, annotation in enumerate(file.annotations):
        humans, objects, verbs = annotation.hois.T
        row = (annotation.boxes[humans], annotation.boxes[objects], annotation.labels[objects])
        rows.append(np.column_stack([np.full(len(verbs), number), *row, verbs]))
    table = np.concatenate(rows)
    return table[np.lexsort(table.T)]


def test_both_json_forms_of_the_real_annotations_say_the_same(hico_det_files, hico):
    pairs = load_annotations(hico_det_files / "instances_test2015.json", hico, "test", strict=True)
    boxes = load_annotations(hico_det_files / "test_hico.json", hico, "test", strict=True)
    assert len(pairs.annotations) == len(boxes.annotations) == 9546
    assert pairs.num_labels == boxes.num_labels == 33405
    assert [one.image_id for one in pairs.annotations] == [
        two.image_id for two in boxes.annotations
    ]
    table = hoi_table(boxes)
    np.testing.assert_array_equal(hoi_table(pairs), table)
    labels, verbs = table[:, 9:].astype(int).T
    assert len(np.unique(hico.interaction_ids[verbs, labels])) == hico.num_interactions
