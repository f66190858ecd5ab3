"""Synthetic training data of a real vocabulary: images, annotations and a cache on disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from pipeline.splits import load_split
from pipeline.toy.scene import draw_scene
from pipeline.types import Annotation, ImageRecord, Pairs
from pipeline.utils.files import sha256_of_file, write_json
from pipeline.vocabulary import Vocabulary, load_vocabulary
from student.config import TargetConfig
from student.data.dataset import TrainingDataset
from teacher_cache.reader.cache import open_cache
from teacher_cache.reader.fingerprint import compute_fingerprint
from teacher_cache.reader.format import FORMAT_VERSION, MANIFEST, SHARDS, TeacherOutputs, shard_name
from teacher_cache.writer.shard import write_shard

IMAGE_SIZE = (640, 480)
PERSON_SCORE = 0.9


class FixedSize:
    """Resizes every image to a square, so that all steps do the same work."""

    def __init__(self, side: int) -> None:
        self.side, self.resize = side, v2.Resize((side, side))

    def __call__(self, values: dict[str, Tensor], rand: np.ndarray) -> dict[str, Tensor]:
        """See `student.data.transforms.Augmentation`."""
        return self.resize(values)

    def sizes(self, sizes: np.ndarray, rand: np.ndarray) -> np.ndarray:
        """See `student.data.transforms.Augmentation`."""
        return np.full_like(sizes, self.side)


def make_images(
    folder: Path,
    count: int,
    labelled: int,
    proposed: int,
    side: int,
    vocabulary: Vocabulary | None = None,
    split: str = "ua",
) -> tuple[TrainingDataset, TrainingDataset]:
    """A training dataset with a cache, and one of the same images with a cache without pairs.

    Args:
        folder: folder to write images and cache to.
        count: number of images.
        labelled: annotated pairs per image.
        proposed: pairs of the detector per image.
        side: side of the images in training, in pixels.
        vocabulary: by default that of HICO-DET.
        split: zero-shot split of the vocabulary.
    """
    vocabulary = vocabulary or load_vocabulary("hico-det")
    rng = np.random.default_rng(0)
    records, annotations, outputs, no_outputs = [], [], {}, {}
    (folder / "images").mkdir(parents=True)
    for index in range(count):
        path = folder / "images" / f"{index:05d}.jpg"
        write_image(path, index, rng)
        annotation = _annotation(path.name, labelled, vocabulary, rng)
        records.append(ImageRecord(path.name, path))
        annotations.append(annotation)
        outputs[path.name] = _teacher_outputs(annotation, proposed, vocabulary, rng)
        nothing = _annotation(path.name, 0, vocabulary, rng)
        no_outputs[path.name] = _teacher_outputs(nothing, 0, vocabulary, rng)

    def images(name: str, outputs: Mapping[str, TeacherOutputs]) -> TrainingDataset:
        parts = {"vocabulary": vocabulary.digest()}
        write_cache(folder / name, [outputs], vocabulary.num_verbs, parts)
        return TrainingDataset(
            records,
            np.full((len(records), 2), side),
            annotations,
            open_cache(folder / name),
            load_split(vocabulary, split),
            vocabulary,
            TargetConfig(),
            FixedSize(side),
            seed=0,
        )

    return images("cache", outputs), images("empty", no_outputs)


def write_image(path: Path, index: int, rng: np.random.Generator) -> None:
    """Writes a JPEG file with the size and the noise of a photograph."""
    drawn, _ = draw_scene(0, "models", index)
    pixels = np.asarray(drawn.resize(IMAGE_SIZE, Image.Resampling.BICUBIC), dtype=np.int16)
    grainy = np.clip(pixels + rng.normal(0, 8, pixels.shape), 0, 255).astype(np.uint8)
    Image.fromarray(grainy).save(path, quality=90)


def random_boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    """(count, 4) float32 random xyxy boxes inside an image."""
    middle = rng.uniform([0.25, 0.25], [0.75, 0.75], (count, 2)) * IMAGE_SIZE
    half = rng.uniform(0.05, 0.25, (count, 2)) * IMAGE_SIZE
    boxes = np.concatenate([middle - half, middle + half], axis=1)
    return boxes.astype(np.float32)


def _annotation(
    name: str, count: int, vocabulary: Vocabulary, rng: np.random.Generator
) -> Annotation:
    chosen = rng.choice(vocabulary.num_interactions, count, replace=False)
    verbs, labels = np.array([vocabulary.interactions[hoi] for hoi in chosen]).reshape(-1, 2).T
    rows = np.arange(count)
    all_labels = np.concatenate([np.full(count, vocabulary.person), labels]).astype(np.int64)
    hois = np.stack([rows, rows + count, verbs], 1)
    return Annotation(name, random_boxes(rng, 2 * count), all_labels, hois)


def _teacher_outputs(
    annotation: Annotation, proposed: int, vocabulary: Vocabulary, rng: np.random.Generator
) -> TeacherOutputs:
    """Teacher outputs of the annotated pairs and `proposed` pairs of a detector."""
    count = len(annotation.hois)
    humans = np.concatenate([annotation.boxes[:count], random_boxes(rng, proposed)])
    things = np.concatenate([annotation.boxes[count:], random_boxes(rng, proposed)])
    others = rng.integers(0, vocabulary.num_objects, proposed)
    labels = np.concatenate([annotation.labels[count:], others])
    total = count + proposed
    probabilities = vocabulary.valid[:, labels].T * rng.random((total, vocabulary.num_verbs))
    probabilities /= probabilities.sum(1, keepdims=True)
    scores = np.full(total, PERSON_SCORE, np.float32)
    sources = (np.arange(total) >= count).astype(np.uint8)
    return TeacherOutputs(
        pairs=Pairs(humans, things, labels, scores, scores, sources),
        probabilities=probabilities.astype(np.float32),
        region_indices=np.arange(total),
        region_boxes=np.concatenate(
            [np.minimum(humans, things)[:, :2], np.maximum(humans, things)[:, 2:]], 1
        ),
        embeddings=None,
    )


def write_cache(
    folder: Path,
    shards: Sequence[Mapping[str, TeacherOutputs]],
    num_verbs: int,
    parts: dict[str, Any],
) -> Path:
    """Writes a finished cache.

    Args:
        folder: folder of the cache.
        shards: for each shard, the outputs by image.
        num_verbs: number of verbs.
        parts: parts of the fingerprint.
    """
    fingerprint, entries = compute_fingerprint(parts), []
    for number, outputs in enumerate(shards):
        path = folder / SHARDS / shard_name(number)
        write_shard(path, fingerprint, list(outputs), list(outputs.values()), {}, num_verbs)
        digest = sha256_of_file(path)
        entries.append({"name": path.name, "sha256": digest, "images": list(outputs)})
    manifest = {"format_version": FORMAT_VERSION, "fingerprint": fingerprint, "parts": parts}
    write_json(folder / MANIFEST, {**manifest, "failed": {}, "shards": entries})
    return folder
