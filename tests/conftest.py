"""Fixtures shared by all packages' tests."""

import json
import os
import signal
from pathlib import Path

import pytest

from pipeline.vocabulary import load_vocabulary

# Waiting threads of torch's OpenMP spin by default, which costs most of the time where other
# programs want the cores too. Read when torch is loaded, here and in the tests' subprocesses.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Caches and runs are compared bit by bit, which holds for equal numbers of threads.
for library in ("OMP", "MKL"):
    os.environ.setdefault(f"{library}_NUM_THREADS", "1")
# Shells have their background jobs ignore Ctrl-C, and programs pass that on to those they start.
signal.signal(signal.SIGINT, signal.default_int_handler)

GOLDEN = Path(os.environ.get("EOID_GOLDEN_DIR") or Path(__file__).parents[2] / "shared" / "golden")


def pytest_configure(config):
    config.addinivalue_line("markers", "golden(pattern): run with every matching golden file")


def pytest_generate_tests(metafunc):
    """`@pytest.mark.golden("kind_*.npz")` runs a test with `golden_file`, once for every file."""
    marker = metafunc.definition.get_closest_marker("golden")
    if marker is not None:
        files = sorted(GOLDEN.glob(marker.args[0])) or [marker.args[0]]
        names = [getattr(file, "stem", "none") for file in files]
        metafunc.parametrize("golden_file", files, ids=names, indirect=True)


@pytest.fixture
def golden_file(request):
    """Path of one golden file; skips without the folder, fails when it holds none of the kind."""
    if not GOLDEN.is_dir():
        pytest.skip(f"golden folder {GOLDEN} is not there (EOID_GOLDEN_DIR)")
    if isinstance(request.param, str):
        pytest.fail(f"golden folder {GOLDEN} holds no {request.param}")
    return request.param


@pytest.fixture(scope="session")
def write_vcoco():
    """`write_vcoco(folder, [{"boxes": [(category, [x, y, w, h]), ...], "does": {...}}, ...])`
    writes V-COCO's official files below `folder/data` and returns the actions file.

    `does` has the objects of an action's roles (a box's number or None) by (person, action);
    `silent` names people nobody annotated, `size` the image's width and height, `name` its file.
    Image i, counted from `start`, gets the id 10 * (i + 1), its box j the id 100 * (i + 1) + j + 1.
    A second part joins the first one's COCO file.
    """

    def write(folder, images, part="test", start=0):
        roles = {entry["action"]: entry["roles"] for entry in load_vocabulary("vcoco").roles}
        coco_file = folder / "data" / "instances_vcoco_all_2014.json"
        coco = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "person"}]}
        if coco_file.exists():
            coco = json.loads(coco_file.read_text())
        people, does = [], {}
        for index, image in enumerate(images, start):
            number, (width, height) = 10 * (index + 1), image.get("size", (200, 150))
            name = image.get("name", f"COCO_val2014_{number:012}.jpg")
            coco["images"].append(
                {"id": number, "file_name": name, "width": width, "height": height}
            )
            for row, (category, box, *more) in enumerate(image["boxes"]):
                entry = {"id": 100 * (index + 1) + row + 1, "image_id": number, "bbox": box}
                entry |= {"category_id": category, "iscrowd": 0, "area": box[2] * box[3]}
                coco["annotations"].append(entry | dict(*more))
                if category == 1 and row not in image.get("silent", ()):
                    people.append((number, entry["id"]))
            for (row, action), objects in image.get("does", {}).items():
                base = 100 * (index + 1) + 1
                ids = [0 if one is None else base + one for one in objects]
                does[base + row, action] = ids
        entries = [
            {
                "action_name": action,
                "role_name": ["agent", *names],
                "image_id": [number for number, _ in people],
                "ann_id": [person for _, person in people],
                "label": [int((person, action) in does) for _, person in people],
                "role_object_id": [person for _, person in people]
                + [
                    does.get((person, action), [0] * len(names))[place]
                    for place in range(len(names))
                    for _, person in people
                ],
            }
            for action, names in roles.items()
        ]
        actions = folder / "data" / "vcoco" / f"vcoco_{part}.json"
        ids = folder / "data" / "splits" / f"vcoco_{part}.ids"
        for path in (actions, ids):
            path.parent.mkdir(parents=True, exist_ok=True)
        actions.write_text(json.dumps(entries))
        ids.write_text("".join(f"{number}\n" for number in dict.fromkeys(n for n, _ in people)))
        coco_file.write_text(json.dumps(coco))
        return actions

    return write
