"""Datasets of photographs with EXIF orientations."""

import json

import pytest
from PIL import Image

from pipeline.datasets.dataset import open_dataset

SIZE = (60, 40)
BOXES = [[5.0, 3.0, 25.0, 33.0], [20.0, 10.0, 58.0, 30.0]]


def save_stored(path, size, orientation):
    """Saves an image with an EXIF orientation that is red in the first box, in stored pixels."""
    image = Image.new("RGB", size, (40, 90, 60))
    image.paste((250, 0, 0), tuple(int(side) for side in BOXES[0]))
    exif = Image.Exif()
    if orientation != 1:
        exif[0x0112] = orientation
    image.save(path, "PNG", exif=exif)


@pytest.fixture
def turned(tmp_path):
    """Writes a part of images with EXIF orientations, a person and a bicycle in each, in HOIA form.

    Arguments: the EXIF orientations, `orientation` of dataset.toml, declared and stored sizes, the
    part, and the boxes of an image by its number.
    """
    parts = {}

    def make(
        orientations, key=None, declared=SIZE, size=SIZE, part="test", boxes=lambda number: BOXES
    ):
        root = tmp_path / "set"
        (root / part).mkdir(parents=True, exist_ok=True)
        entries = []
        for number, orientation in enumerate(orientations):
            save_stored(root / part / f"{number:03}.png", size, orientation)
            rows = zip(boxes(number), (1, 2), strict=True)
            entry = {
                "file_name": f"{number:03}.png",
                "annotations": [{"bbox": box, "category_id": label} for box, label in rows],
                "hoi_annotation": [{"subject_id": 0, "object_id": 1, "category_id": 72}],
            }
            sides = declared[number] if isinstance(declared, list) else declared
            entries.append(entry | dict(zip(("width", "height"), sides or (), strict=False)))
        (root / f"{part}.json").write_text(json.dumps(entries))
        parts[part] = f'[{part}]\nimages = "{part}"\nannotations = "{part}.json"\n'
        head = 'vocabulary = "hico-det"\n' + (f'orientation = "{key}"\n' if key else "")
        (root / "dataset.toml").write_text(head + "".join(parts.values()))
        return open_dataset(root)

    return make
