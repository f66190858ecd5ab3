import os
from pathlib import Path

import pytest

from pipeline.utils.errors import InputError
from student.inference.input_files import find_images, refuse_missing


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """A folder of empty image files; its parent is the working folder."""
    for name in (
        "photos/b.JPG",
        "photos/a.png",
        "photos/notes.txt",
        "photos/.hidden.jpg",
        "photos/trip/a.png",
        "photos/trip/more/c.webp",
        "photos/.cache/d.jpg",
        "photos/a[1].jpg",
        "photos/folder.jpg/notes.txt",
        "empty/notes.txt",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    # Links to folders are not followed.
    os.symlink(tmp_path / "photos", tmp_path / "photos" / "again")
    monkeypatch.chdir(tmp_path)
    return tmp_path


ALL_PHOTOS = [
    *("photos/a.png", "photos/a[1].jpg", "photos/b.JPG", "photos/trip/a.png"),
    "photos/trip/more/c.webp",
]


@pytest.mark.parametrize(
    ("patterns", "paths", "problems"),
    [
        (["photos/b.JPG"], ["photos/b.JPG"], []),
        # A named file is taken whatever its extension.
        (["photos/notes.txt"], ["photos/notes.txt"], []),
        (["photos"], ALL_PHOTOS, []),
        (["photos/*.png"], ["photos/a.png"], []),
        (["photos/tri*"], ["photos/trip/a.png", "photos/trip/more/c.webp"], []),
        (["photos/a[1].jpg"], ["photos/a[1].jpg"], []),
        (["photos/b.JPG", "./photos/b.JPG", "photos/b*"], ["photos/b.JPG"], []),
        (["empty", "photos/a.*"], ALL_PHOTOS[:1], ["empty: no images in this folder"]),
        (
            ["x/*.jpg", "photos/a.png"],
            ["photos/a.png"],
            ["x/*.jpg: no file matches this pattern"],
        ),
    ],
)
def test_find_images(photos, patterns, paths, problems, messages):
    found = find_images(patterns)
    assert [os.path.relpath(path) for path in found.images] == paths
    assert (messages, found.num_unused, found.videos) == (problems, len(problems), {})


def test_links_that_lead_nowhere_and_in_circles_are_files(photos):
    for name, target in (("circle.jpg", "circle.jpg"), ("nowhere.jpg", "nothing.jpg")):
        os.symlink(target, photos / "empty" / name)
    found = find_images(["empty"])
    assert [path.name for path in found.images] == ["circle.jpg", "nowhere.jpg"]


def test_the_output_folder_is_not_searched(photos):
    found = find_images(["photos"], Path("photos/trip")).images
    assert found and not any("trip" in path.parts for path in found)
    with pytest.raises(InputError, match="no file matches this pattern"):
        find_images(["photos/trip/**/*.*"], Path("photos/trip"))
    with pytest.raises(InputError, match=r"photos/trip: no images in this folder, .* not searched"):
        find_images(["photos/trip"], Path("photos"))


def test_photographs_of_unsupported_formats_are_counted(photos, messages):
    """One line for each argument; hidden files, other files and the output folder do not count."""
    names = ("b.HEIC", "trip/c.heic", "d.jxl", ".e.heic", "notes.txt", "out/f.dng")
    for name in names:
        Path("photos", name).parent.mkdir(exist_ok=True)
        Path("photos", name).write_bytes(b"?")
    found = find_images(["photos"], Path("photos/out"))
    assert found.images and not found.num_unused
    (line,) = messages
    assert line.startswith("photos: 3 image files in formats that are not supported")
    assert "2 .heic, 1 .jxl" in line and "JPEG or PNG" in line
    with pytest.raises(InputError, match=r"1 image file in.*1 \.dng.*no images in this folder"):
        find_images(["photos/out"])


@pytest.mark.parametrize("search", [refuse_missing, find_images])
def test_named_files_have_to_exist(photos, search):
    with pytest.raises(InputError, match=r"^gone\.jpg: no such file or folder$"):
        search(["photos", "gone.jpg", "gone*.jpg"])
    with pytest.raises(InputError, match=r"^photos/x: no such file or folder, nor 2 others$"):
        search(["photos/x", "photos/y", "photos/a[1].jpg", "photos/z", "z*"])


def test_nothing_at_all_is_one_line(photos, messages):
    with pytest.raises(InputError, match=r"^empty: no images in.*; x\*: no file matches this"):
        find_images(["empty", "x*"])
    with pytest.raises(InputError, match="expected at least one image or video, found none"):
        find_images([])
    assert messages == []


def test_videos_that_cannot_be_taken(photos, messages):
    """They are named, and the images are found."""
    for name in ("a.mp4", "trip/b.mov"):
        Path("photos", name).touch()
    found = find_images(["photos/a.png", "photos/a.mp4"])
    assert [path.name for path in found.videos] == ["a.mp4"] and not found.num_unused
    patterns = ["photos/a.png", "photos/a.mp4", "photos/trip", "photos/a.*", "photos/*.mp4"]
    found = find_images(patterns, None, "videos need X")
    names = [path.name for path in found.images]
    assert names == ["a.png", "a.png", "c.webp"] and not found.videos
    assert found.num_unused == 2
    assert messages == [
        "photos/a.mp4: videos need X",
        "photos/trip: 1 video skipped; videos need X",
        "photos/a.*: 1 video skipped; videos need X",
        "photos/*.mp4: 1 video skipped; videos need X",
    ]
    messages.clear()
    with pytest.raises(InputError, match=r"^photos/a\.mp4: videos need X$"):
        find_images(["photos/a.mp4"], None, "videos need X")
    assert messages == []
