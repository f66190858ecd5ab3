"""Compares the speed of a cache build with that of CLIP's image tower on tensors in memory.

Writes a folder of JPEG files with the size of photographs. Then the image tower encodes prepared
tensors, and a build processes the images, in turns and for the same number of regions. The pairs
are given, so that no detector runs. Prints JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from pipeline.toy.scene import draw_scene
from pipeline.types import Pairs
from pipeline.utils.devices import configure_device, resolve_device
from pipeline.vocabulary import Vocabulary, load_vocabulary
from teacher_cache.detectors.pairing import ObjectBoxes
from teacher_cache.extraction.decoding import ImageTask
from teacher_cache.extraction.extract import ExtractionConfig, TeacherModels, extract
from teacher_cache.reader.cache import PromptEmbeddings
from teacher_cache.reader.format import ANNOTATED
from teacher_cache.teachers.clip import ClipConfig, ClipTeacher, build_clip, save_clip
from teacher_cache.teachers.prompts import embed_prompts, interaction_prompts
from teacher_cache.teachers.word_tokenizer import WordTokenizer
from teacher_cache.toy.models import CONTEXT_LENGTH, MEAN, STD, clip_config
from teacher_cache.writer.shard import write_shard

TOY = "toy"
# There are no detected boxes, only given pairs.
NO_BOXES = ObjectBoxes(np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, np.float32))


def write_images(
    folder: Path, count: int, pairs: int, size: tuple[int, int], vocabulary: Vocabulary
) -> list[ImageTask]:
    """Writes JPEG files; each has `pairs` pairs of one person with different objects."""
    rng = np.random.default_rng(0)
    image_tasks = []
    for index in range(count):
        drawn, _ = draw_scene(0, "models", index)
        pixels = np.asarray(drawn.resize(size, Image.Resampling.BICUBIC), dtype=np.int16)
        grainy = np.clip(pixels + rng.normal(0, 8, pixels.shape), 0, 255).astype(np.uint8)
        path = folder / f"{index:05d}.jpg"
        Image.fromarray(grainy).save(path, quality=90)
        middle = rng.uniform([0.2, 0.2], [0.8, 0.8], (pairs + 1, 2)) * size
        half = rng.uniform(0.05, 0.25, (pairs + 1, 2)) * size
        boxes = np.concatenate([middle - half, middle + half], axis=1).clip(0, [*size, *size])
        image_tasks.append(
            ImageTask(
                path.name,
                path,
                Pairs(
                    human_boxes=np.repeat(boxes[:1], pairs, axis=0).astype(np.float32),
                    object_boxes=boxes[1:].astype(np.float32),
                    object_labels=rng.integers(1, vocabulary.num_objects, pairs),
                    human_scores=np.ones(pairs, np.float32),
                    object_scores=np.ones(pairs, np.float32),
                    sources=np.full(pairs, ANNOTATED, np.uint8),
                ),
                boxes=NO_BOXES,
            )
        )
    return image_tasks


def open_model(folder: Path, name: str, weights: str | None, device: str) -> ClipTeacher:
    """Loads CLIP; without `weights`, the architecture with random weights."""
    torch_device = configure_device(resolve_device(device), "auto", exact_matmul=True)
    if name == TOY:
        prompts = interaction_prompts(load_vocabulary(TOY))
        words = sorted({word for (prompt,) in prompts for word in prompt.split()})
        tokenizer = WordTokenizer(words, CONTEXT_LENGTH)
        config = clip_config(tokenizer)
        model = build_clip(config, torch.Generator().manual_seed(0))
        save_clip(folder, model, config, {"mean": list(MEAN), "std": list(STD)}, tokenizer)
        return ClipTeacher(ClipConfig(str(folder)), torch_device)
    if weights is None:
        import open_clip

        file = folder / "random.pt"
        folder.mkdir(parents=True)
        torch.save(open_clip.create_model(name).state_dict(), file)
        weights = str(file)
    return ClipTeacher(ClipConfig(name, weights), torch_device)


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Measures image tower and build in turns."""
    vocabulary = load_vocabulary(TOY)
    images = folder / "images"
    images.mkdir()
    image_tasks = write_images(
        images, options.images, options.pairs, tuple(options.size), vocabulary
    )
    clip = open_model(folder / "clip", options.clip_model, options.clip_weights, options.device)
    batch = options.batch_size or clip.batch_size
    prompts = interaction_prompts(vocabulary)
    text = PromptEmbeddings(prompts, embed_prompts(prompts, clip.encode_texts), clip.logit_scale)
    teacher = TeacherModels(None, clip, text, vocabulary)
    extraction = ExtractionConfig(regions_per_batch=batch)
    regions = options.images * options.pairs
    ready = torch.randn(batch, 3, clip.image_size, clip.image_size, device=clip.device)

    def tower() -> None:
        for start in range(0, regions, batch):
            clip.encode_pixels(ready[: regions - start])

    def build() -> None:
        outputs, failed = extract(image_tasks, teacher, extraction, lambda count: None)
        write_shard(folder / "shard.h5", "0" * 64, list(outputs), list(outputs.values()), failed,
                    vocabulary.num_verbs)  # fmt: skip

    times: dict[str, list[float]] = {"tower": [], "build": []}
    sides: list[tuple[str, Callable[[], None]]] = [("tower", tower), ("build", build)]
    extract(image_tasks[: max(1, options.images // 10)], teacher, extraction, lambda count: None)
    clip.encode_pixels(ready)
    for turn in range(options.turns):
        for name, work in sides if turn % 2 == 0 else sides[::-1]:
            started = time.perf_counter()
            work()
            if clip.device.type == "cuda":
                torch.cuda.synchronize()
            times[name].append(time.perf_counter() - started)
    median = {name: statistics.median(seconds) for name, seconds in times.items()}
    return {
        "clip": options.clip_model,
        "device": str(clip.device),
        "threads": torch.get_num_threads(),
        "batch_size": batch,
        "images": options.images,
        "image_size": list(options.size),
        "regions": regions,
        "tower_regions_per_second": round(regions / median["tower"], 1),
        "build_regions_per_second": round(regions / median["build"], 1),
        "ratio": round(median["tower"] / median["build"], 3),
        "seconds": {name: [round(s, 2) for s in seconds] for name, seconds in times.items()},
    }


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--clip-model", default="ViT-B-32", help="name of an open_clip model, or toy"
    )
    parser.add_argument("--clip-weights", help="tag or file; default: random weights")
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--pairs", type=int, default=15, help="per image")
    parser.add_argument("--size", type=int, nargs=2, default=(640, 480), help="width, height")
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measure(options, Path(folder)), indent=1))


if __name__ == "__main__":
    main()
