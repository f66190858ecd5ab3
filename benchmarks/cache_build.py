"""Compares the speed of a cache build with that of CLIP's image tower on tensors in memory.

Writes a folder of JPEG files with the size of photographs. Then the image tower encodes prepared
tensors, and a build processes the images, in turns and for the same number of regions. The pairs
are given, so that no detector runs. CLIP has random weights. Prints JSON.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch

from benchmarks.program import run_main
from benchmarks.synthetic_data import IMAGE_SIZE, random_boxes, write_image
from benchmarks.timing import time_in_turns
from pipeline.types import Pairs
from pipeline.utils.devices import configure_device, resolve_device
from pipeline.vocabulary import load_vocabulary
from teacher_cache.detectors.pairing import ObjectBoxes
from teacher_cache.extraction.decoding import ImageTask
from teacher_cache.extraction.extract import ExtractionConfig, TeacherModels, extract
from teacher_cache.reader.format import ANNOTATED
from teacher_cache.teachers.clip import ClipConfig, ClipTeacher
from teacher_cache.teachers.prompts import interaction_prompts
from teacher_cache.writer.shard import write_shard

# There are no detected boxes, only given pairs.
NO_BOXES = ObjectBoxes(np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, np.float32))


def write_images(folder: Path, count: int, pairs: int, num_objects: int) -> list[ImageTask]:
    """Writes JPEG files; each has `pairs` pairs of one person with different objects."""
    rng = np.random.default_rng(0)
    image_tasks = []
    for index in range(count):
        path = folder / f"{index:05d}.jpg"
        write_image(path, index, rng)
        boxes = random_boxes(rng, pairs + 1)
        given = Pairs(
            human_boxes=np.repeat(boxes[:1], pairs, axis=0),
            object_boxes=boxes[1:],
            object_labels=rng.integers(1, num_objects, pairs),
            human_scores=np.ones(pairs, np.float32),
            object_scores=np.ones(pairs, np.float32),
            sources=np.full(pairs, ANNOTATED, np.uint8),
        )
        image_tasks.append(ImageTask(path.name, path, given, boxes=NO_BOXES))
    return image_tasks


def random_clip(name: str, folder: Path, device: torch.device) -> ClipTeacher:
    """CLIP with random weights, which suffice to measure its speed."""
    file = folder / "random.pt"
    torch.save(open_clip.create_model(name).state_dict(), file)
    return ClipTeacher(ClipConfig(name, str(file)), device)


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Measures image tower and build in turns."""
    device = configure_device(resolve_device(options.device), "auto", exact_matmul=True)
    vocabulary = load_vocabulary("toy")
    image_tasks = write_images(folder, options.images, options.pairs, vocabulary.num_objects)
    clip = random_clip(options.clip_model, folder, device)
    prompts = interaction_prompts(vocabulary)
    clip.text = clip.embed_prompts(prompts)
    models = TeacherModels(None, clip, vocabulary)
    extraction = ExtractionConfig()
    regions = options.images * options.pairs
    shape = (clip.batch_size, 3, clip.image_size, clip.image_size)
    ready = torch.randint(256, shape, dtype=torch.uint8, device=device)

    def tower() -> None:
        for start in range(0, regions, clip.batch_size):
            clip.encode_images(ready[: regions - start])

    def build() -> None:
        outputs, failed = extract(image_tasks, models, extraction, lambda count: None)
        write_shard(folder / "shard.h5", "0" * 64, list(outputs), list(outputs.values()), failed,
                    vocabulary.num_verbs)  # fmt: skip

    turns = time_in_turns({"tower": tower, "build": build}, options.turns, device)
    return {
        "clip": options.clip_model,
        "device": str(device),
        "threads": torch.get_num_threads(),
        "batch_size": clip.batch_size,
        "images": options.images,
        "image_size": IMAGE_SIZE,
        "regions": regions,
        "regions_per_second": {
            name: round(regions / seconds, 1) for name, seconds in turns.medians().items()
        },
        "ratio": turns.ratio("tower", "build"),
    }


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clip-model", default="ViT-B-32", help="name of an open_clip model")
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--pairs", type=int, default=15, help="per image")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measure(options, Path(folder)), indent=1))


if __name__ == "__main__":
    run_main(main)
