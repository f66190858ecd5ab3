import json

import pytest

from pipeline.annotations.base import ParseContext
from pipeline.annotations.load import load_annotations
from pipeline.annotations.vcoco import (
    VcocoAction,
    find_vcoco_files,
    read_actions,
    read_image_ids,
    read_vcoco,
    vcoco_annotations,
)
from pipeline.utils.errors import InputError

PERSON, BALL, RACKET = 1, 37, 43
IMAGES = [
    {
        "boxes": [
            (PERSON, [10, 20, 31, 61]),
            (RACKET, [40.5, 30, 21, 11]),
            (PERSON, [100, 20, 40, 60]),
            (BALL, [150, 100, 80, 80]),
            (PERSON, [0, 0, 9, 9]),
        ],
        "does": {
            (0, "hit"): (1, None),
            (0, "stand"): (),
            (2, "kick"): (3,),
            (2, "hold"): (None,),
        },
        "unlabelled": {4},
    },
    {"boxes": [(PERSON, [5, 5, 50, 50])]},
]


@pytest.fixture
def read(tmp_path, vcoco, write_vcoco):
    """Writes images and reads them back: (ground truth, annotations, context)."""

    def run(images, strict=False):
        files = find_vcoco_files(write_vcoco(tmp_path / str(strict), images))
        context = ParseContext(files.actions, vcoco, strict)
        truth = read_vcoco(files, context)
        return truth, vcoco_annotations(truth, context), context

    return run


def test_boxes_labels_and_roles(read, vcoco):
    """Boxes end at their last pixel and are clipped; every role is a verb."""
    truth, (annotation, alone), context = read(IMAGES)
    image = truth.images[0]
    expected = [[10, 20, 40, 80], [40.5, 30, 60.5, 40], [100, 20, 139, 79], [150, 100, 199, 149]]
    assert image.boxes[:4].tolist() == expected
    names = [action.name for action in truth.actions]
    hit, kick = names.index("hit"), names.index("kick")
    assert (image.action_labels[4] == -1).all() and (image.action_labels[1] == -1).all()
    assert image.action_labels[0].sum() == 2 and image.action_labels[2].sum() == 2
    assert image.role_boxes[0, hit].tolist() == [1, -1] and image.role_boxes[2, kick, 0] == 3
    assert (image.id, image.name) == (10, "COCO_val2014_000000000010.jpg")
    found = {(h, o, vcoco.verbs[v]) for h, o, v in annotation.hois.tolist()}
    assert found == {
        (0, 1, "hit_instr"),
        (0, -1, "hit_obj"),
        (0, -1, "stand"),
        (2, 3, "kick_obj"),
        (2, -1, "hold_obj"),
    }
    assert annotation.labels.tolist() == [0, vcoco.label_by_category_id[RACKET], 0, 32, 0]
    # The second image's person does nothing.
    assert alone.hois.shape == (0, 3) and len(alone.boxes) == 1
    assert not truth.images[1].action_labels.any() and not context.issues


def test_roles_are_matched_by_name(tmp_path, vcoco, write_vcoco):
    """Releases differ in the order of the roles of "eat"."""
    image = {
        "boxes": [(PERSON, [0, 0, 50, 50]), (59, [5, 5, 20, 20]), (48, [9, 9, 20, 20])],
        "does": {(0, "eat"): (1, 2)},
    }
    actions = write_vcoco(tmp_path, [image])
    before = load_annotations(actions, vcoco, "test").annotations[0].hois
    value = json.loads(actions.read_text())
    (eat,) = [entry for entry in value if entry["action_name"] == "eat"]
    person, food, fork = eat["role_object_id"]
    eat |= {"role_name": ["agent", "instr", "obj"], "role_object_id": [person, fork, food]}
    actions.write_text(json.dumps(value))
    after = load_annotations(actions, vcoco, "test").annotations[0].hois
    assert sorted(before.tolist()) == sorted(after.tolist())
    assert (0, 1, vcoco.verbs.index("eat_obj")) in set(map(tuple, after.tolist()))


def test_id_list_selects_and_orders_images(tmp_path, vcoco, write_vcoco):
    actions = write_vcoco(tmp_path, IMAGES)
    ids = tmp_path / "mine.ids"
    ids.write_text("20\n\n10\n")
    names = [
        item.image_id for item in load_annotations(actions, vcoco, "test", ids=ids).annotations
    ]
    assert names == ["COCO_val2014_000000000020.jpg", "COCO_val2014_000000000010.jpg"]
    ids.write_text("20\n")
    context = ParseContext(actions, vcoco)
    truth = read_vcoco(find_vcoco_files(actions, ids=ids), context)
    assert truth.other_image_ids == {"COCO_val2014_000000000010.jpg": 10}


def test_crowds_are_kept_only_as_role_objects(read):
    crowd = {"iscrowd": 1}
    boxes = [STANDING, (PERSON, [50, 0, 50, 50], crowd), (BALL, [0, 60, 20, 20], crowd)]
    image = {"boxes": boxes, "unlabelled": {1}, "does": {(0, "kick"): (2,)}}
    truth, (annotation,), _ = read([image])
    assert truth.images[0].is_crowd.tolist() == [False, True, True]
    assert len(annotation.boxes) == 2 and annotation.hois[0, :2].tolist() == [0, 1]


FLAT = (BALL, [60, 60, 0.5, 30])
STANDING = (PERSON, [0, 0, 50, 50])
KICK = {(0, "kick"): (1,)}
AREA, OBJECTS, OTHERS = "boxes without area", "role objects", "of no interaction"


@pytest.mark.parametrize(
    ("second", "does", "kinds"),
    [
        (FLAT, KICK, (AREA, OBJECTS)),
        ((BALL, [0, 0, 9, 9], {"area": 0}), KICK, (AREA, OBJECTS)),
        ((PERSON, [0, 0, 1, 9]), {(1, "stand"): ()}, (AREA,)),
        ((59, [0, 0, 9, 9]), KICK, (OTHERS,)),
    ],
)
def test_issues_are_counted_or_refused(read, second, does, kinds):
    image = {"boxes": [STANDING, second], "does": does}
    _, _, context = read([image])
    assert all(kind in " ".join(context.issues) for kind in kinds)
    with pytest.raises(InputError, match="COCO_val2014_000000000010"):
        read([image], strict=True)


def test_boxes_that_do_not_count(read, vcoco):
    """A role's object without area is missing, and ignored boxes are left out."""
    ignored = (BALL, [5, 5, 9, 9], {"ignore": 1})
    image = {"boxes": [STANDING, FLAT, ignored], "does": KICK}
    truth, (annotation,), context = read([image])
    assert annotation.hois.tolist() == [[0, -1, vcoco.verbs.index("kick_obj")]]
    assert len(truth.images[0].boxes) == 1 and context.issues.total() == 2


def test_vocabulary_without_roles_is_refused(tmp_path, hico, write_vcoco):
    with pytest.raises(
        InputError, match=r"actions and roles of vocabulary hico-det .*, found hold"
    ):
        load_annotations(write_vcoco(tmp_path, IMAGES), hico, "test")


def test_digest_covers_all_files(tmp_path, vcoco, write_vcoco):
    actions = write_vcoco(tmp_path, IMAGES)
    digests = {load_annotations(actions, vcoco, "test").digest}
    for path in (tmp_path / "data/instances_vcoco_all_2014.json", actions):
        path.write_text(path.read_text() + " ")
        digests.add(load_annotations(actions, vcoco, "test").digest)
    assert len(digests) == 3


def coco(change):
    def damage(folder):
        path = folder / "data/instances_vcoco_all_2014.json"
        value = json.loads(path.read_text())
        change(value)
        path.write_text(json.dumps(value))

    return damage


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            coco(lambda v: v["images"].pop()),
            "instances_vcoco_all_2014.json: images: expected image 20",
        ),
        (coco(lambda v: v["annotations"][1].update(image_id=[10])), r"annotations\[1\].image_id"),
        (coco(lambda v: v["images"][0].update(width=0)), r"images\[0\].width: expected"),
        (coco(lambda v: v["annotations"][1].update(category_id=12)), "an object id of vcoco"),
        (coco(lambda v: v["images"].append(v["images"][0])), "every image once"),
        (
            lambda folder: (folder / "data/splits/vcoco_test.ids").write_text("10\n30\n"),
            r"file: expected.*found image 30",
        ),
    ],
)
def test_inconsistent_files_are_refused(tmp_path, vcoco, write_vcoco, damage, message):
    actions = write_vcoco(tmp_path, IMAGES)
    damage(tmp_path)
    with pytest.raises(InputError, match=message):
        load_annotations(actions, vcoco, "test")


HOLD = {
    "action_name": "hold",
    "role_name": ["agent", "obj"],
    "image_id": [7, 7, 9],
    "ann_id": [1, 2, 3],
    "label": [1, 0, 1],
    "role_object_id": [1, 2, 3, 55, 0, 0],
}
STAND = {**HOLD, "action_name": "stand", "role_name": ["agent"], "role_object_id": [1, 2, 3]}


def test_read_actions(save_json):
    table = read_actions(save_json([HOLD, {**STAND, "label": [0, 1, 0]}]))
    assert table.actions == (VcocoAction("hold", ("obj",)), VcocoAction("stand", ()))
    assert table.images.tolist() == [7, 7, 9] and table.people.tolist() == [1, 2, 3]
    assert table.labels.tolist() == [[1, 0, 1], [0, 1, 0]]
    assert table.role_objects.tolist() == [[[55], [0], [0]], [[0], [0], [0]]]
    nested = {key: [[number] for number in HOLD[key]] for key in ("image_id", "ann_id", "label")}
    assert read_actions(save_json([{**HOLD, **nested}])).labels.tolist() == [[1, 0, 1]]
    order = {"image_id": [9, 7, 7], "ann_id": [3, 1, 2], "label": [0, 0, 1]}
    again = read_actions(save_json([HOLD, {**STAND, **order, "role_object_id": [3, 1, 2]}]))
    assert again.labels.tolist() == table.labels.tolist()
    again = read_actions(save_json([{**STAND, **order, "role_object_id": [3, 1, 2]}, HOLD]))
    assert again.people.tolist() == [3, 1, 2]
    assert again.labels.tolist() == [[0, 0, 1], [1, 1, 0]]
    # An object of a person who does not do the action means nothing.
    objects = [1, 2, 3, 55, 66, 0]
    again = read_actions(save_json([{**HOLD, "role_object_id": objects}]))
    assert again.role_objects.tolist() == [[[55], [0], [0]]]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "file: expected"),
        ([{**HOLD, "action_name": ""}], "entry 0: action_name: expected"),
        ([{**HOLD, "role_name": ["obj"]}], "hold: role_name: expected"),
        ([{**HOLD, "role_name": ["agent", "obj", "obj"]}], "hold: role_name: expected"),
        ([{**HOLD, "image_id": [7, 9]}], "hold: ann_id: expected 2 entries"),
        ([{**HOLD, "label": [1, 0, 2]}], "hold: label: expected 0 or 1, found 2"),
        ([{**HOLD, "ann_id": [1, 2, 1]}], "hold: ann_id: expected"),
        ([{**HOLD, "ann_id": [1, 2, 2**63]}], "hold: ann_id: expected"),
        ([{**HOLD, "role_object_id": [1, 2, 3]}], "hold: role_object_id: expected 6 entries"),
        ([HOLD, {**STAND, "ann_id": [1, 2, 4]}], "stand: ann_id: expected"),
    ],
)
def test_wrong_actions_name_the_field(save_json, value, message):
    with pytest.raises(InputError, match=f"annotations.json: {message}"):
        read_actions(save_json(value))


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


ALL = "instances_vcoco_all_2014.json"


@pytest.mark.parametrize(
    ("actions", "instances", "ids"),
    [
        ("data/vcoco/vcoco_test.json", f"data/{ALL}", "data/splits/vcoco_test.ids"),
        ("vcoco_test.json", ALL, "vcoco_test.ids"),
        ("vcoco_trainval.json", "annotations/instances_train2014.json", "vcoco_trainval.ids"),
        ("vcoco_trainval.json", ALL, None),
    ],
)
def test_other_files_are_found_near_the_actions_file(tmp_path, actions, instances, ids):
    touch(tmp_path, actions, instances, *([ids] if ids else []))
    files = find_vcoco_files(tmp_path / actions)
    assert files.instances.resolve() == tmp_path / instances
    assert files.ids is None if ids is None else files.ids.resolve() == tmp_path / ids


def test_given_paths_are_preferred_and_boxes_of_the_other_part_not_used(tmp_path):
    touch(tmp_path, "vcoco_test.json", "instances_train2014.json", "vcoco_test.ids")
    mine, ids = tmp_path / "mine.json", tmp_path / "mine.ids"
    files = find_vcoco_files(tmp_path / "vcoco_test.json", mine, ids)
    assert (files.instances, files.ids) == (mine, ids)
    with pytest.raises(InputError, match="instances: expected"):
        find_vcoco_files(tmp_path / "vcoco_test.json")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no such"),
        ("", "file: expected"),
        ("1\nx\n", r"line 2: expected.*found x"),
        ("1\n" + "9" * 5000, "line 2: expected"),
        ("5\n6\n5\n", r"line 3: expected.*found 5 a second time"),
    ],
)
def test_image_ids(tmp_path, text, message):
    path = tmp_path / "a.ids"
    path.write_text("12\n 7 \n\n000\n")
    assert read_image_ids(path) == [12, 7, 0]
    path.unlink() if text is None else path.write_text(text)
    with pytest.raises(InputError, match=f"a.ids: {message}"):
        read_image_ids(path)
