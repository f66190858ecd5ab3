"""The photographs of the tests at a reduced size, with a small teacher of random weights."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from PIL import Image

from pipeline.images import read_image
from pipeline.utils.files import read_json, write_json
from pipeline.vocabulary import Vocabulary, load_vocabulary
from teacher_cache.teachers.clip import build_clip, save_clip
from teacher_cache.teachers.prompts import interaction_prompts
from teacher_cache.teachers.word_tokenizer import WordTokenizer
from teacher_cache.toy.models import clip_config

PHOTOS = Path(__file__).parents[1] / "tests/data/photos"
TEACHER, DETECTIONS = "teacher", "detections.json"
JPEG_QUALITY = 95
# Words that sentences beside the vocabulary's prompts may use.
FURTHER_WORDS, CONTEXT_LENGTH = ("photo", "pushing"), 12
# Not ImageNet's values, which a reader of the files could assume.
PREPROCESSING = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]}


def write_photographs(out: Path, scale: Callable[[int, int], float], source: Path = PHOTOS) -> None:
    """Writes the dataset folder of the photographs, with other sizes, and a teacher's folder.

    Args:
        out: new folder.
        scale: the factor for an image of this width and height.
        source: dataset folder with boxes in pixels.
    """
    (out / "images").mkdir(parents=True)
    factors = {}
    for path in sorted((source / "images").iterdir()):
        image = read_image(path)
        factor = factors[path.name] = scale(*image.size)
        size = [max(1, round(side * factor)) for side in image.size]
        resized = image.resize((size[0], size[1]), Image.Resampling.LANCZOS)
        resized.save(out / "images" / path.name, quality=JPEG_QUALITY)
    for part in ("train", "test"):
        entries = read_json(source / f"annotations/{part}.json")
        for entry in entries:
            factor = factors[entry["file_name"]]
            entry["width"], entry["height"] = Image.open(out / "images" / entry["file_name"]).size
            for row in entry["annotations"]:
                row["bbox"] = [factor * value for value in row["bbox"]]
        write_json(out / f"annotations/{part}.json", entries)
    found = read_json(source / DETECTIONS)
    for row in found:
        row["bbox"] = [factors[row["image_id"]] * value for value in row["bbox"]]
    write_json(out / DETECTIONS, found)
    for name in ("dataset.toml", "vocabulary.json"):
        shutil.copy(source / name, out)
    write_teacher(out / TEACHER, load_vocabulary(out / "vocabulary.json"), FURTHER_WORDS)


def write_teacher(
    folder: Path,
    vocabulary: Vocabulary,
    further_words: Sequence[str] = (),
    context_length: int = CONTEXT_LENGTH,
) -> None:
    """Writes a small CLIP with random weights that knows the words of the vocabulary's prompts and
    further ones, in sentences of up to `context_length` tokens."""
    prompts = interaction_prompts(vocabulary)
    words = {word for group in prompts for prompt in group for word in prompt.split()}
    tokenizer = WordTokenizer(sorted({*words, *further_words}), context_length)
    config = clip_config(tokenizer)
    model = build_clip(config, torch.Generator().manual_seed(3))
    save_clip(folder, model, config, PREPROCESSING, tokenizer)
