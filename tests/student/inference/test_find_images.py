import os
from pathlib import Path

import pytest

from pipeline.utils.errors import InputError
from student.inference.predict_images import FoundImage, find_images, plan_outputs


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """A folder of (empty) pictures, with the working folder above it."""
    for name in (
        "photos/b.JPG",
        "photos/a.png",
        "photos/notes.txt",
        "photos/.hidden.jpg",
        "photos/trip/a.png",
        "photos/trip/more/c.webp",
        "photos/.cache/d.jpg",
        "photos/a[1].jpg",
        "empty/notes.txt",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def names(found):
    return [os.path.relpath(one.path) for one in found]


@pytest.mark.parametrize(
    ("words", "paths", "problems"),
    [
        ([], [], []),
        (["photos/b.JPG"], ["photos/b.JPG"], []),
        # Its name says nothing, but somebody named it.
        (["photos/notes.txt"], ["photos/notes.txt"], []),
        (["photos/gone.jpg"], ["photos/gone.jpg"], []),
        (
            ["photos"],
            [
                *("photos/a.png", "photos/a[1].jpg", "photos/b.JPG", "photos/trip/a.png"),
                "photos/trip/more/c.webp",
            ],
            [],
        ),
        (["photos/*.png"], ["photos/a.png"], []),
        (["photos/**/a.png"], ["photos/a.png", "photos/trip/a.png"], []),
        (["photos/tri*"], ["photos/trip/a.png", "photos/trip/more/c.webp"], []),
        (["photos/a[1].jpg"], ["photos/a[1].jpg"], []),
        (["photos/b.JPG", "./photos/b.JPG", "photos/b*"], ["photos/b.JPG"], []),
        (["empty"], [], ["empty: no pictures in this folder"]),
        (
            ["x/*.jpg", "photos/a.png"],
            ["photos/a.png"],
            ["x/*.jpg: no file matches this pattern"],
        ),
    ],
)
def test_words(photos, words, paths, problems):
    found, lines = find_images(words)
    assert (names(found), lines) == (paths, problems)


@pytest.mark.parametrize("words", [["photos"], ["photos/**/*.*"]])
def test_results_are_not_pictures_to_look_at(photos, words):
    found, _ = find_images(words, Path("photos/trip"))
    assert [name for name in names(found) if "trip" in name] == []


def test_a_folder_that_contains_itself_ends(photos):
    os.symlink(photos / "photos", photos / "photos" / "again")
    assert len(find_images(["photos"])[0]) == 5


def plan(*places, **options):
    pictures = [FoundImage(Path("in") / str(n) / p, Path(p)) for n, p in enumerate(places)]
    planned = plan_outputs(pictures, Path("out"), **options)
    for one in planned:
        assert one.drawn.with_suffix("") == one.result.with_suffix("")
    return [one.result.relative_to("out").as_posix() for one in planned]


@pytest.mark.parametrize(
    ("places", "expected"),
    [
        ([], []),
        (["a.png"], ["a.json"]),
        (["a.png", "a.jpg", "a.jpg"], ["a.json", "a-2.json", "a-3.json"]),
        (["a.png", "A.png"], ["a.json", "A-2.json"]),
        (["a.png", "a-2.png", "a.png"], ["a.json", "a-2.json", "a-3.json"]),
        (["trip/a.png", "a.png"], ["trip/a.json", "a.json"]),
        (["a.b.png", "a"], ["a.b.json", "a.json"]),
    ],
)
def test_every_picture_has_results_of_its_own(places, expected):
    assert plan(*places) == expected


def test_taken_names():
    assert plan("settings.png", reserved={"settings"}) == ["settings-2.json"]


def test_results_never_replace_a_picture(tmp_path):
    picture = tmp_path / "a.jpg"
    picture.touch()
    with pytest.raises(InputError, match=r"a.jpg: is a picture to look at; --out has to be"):
        plan_outputs([FoundImage(picture, Path("a.jpg"))], tmp_path)
