"""Compares the cost of the student's training step with that of alternatives.

The alternatives are a step without the cache, one that runs the teacher, and a straightforward
implementation. A further part is the padding saved by grouping images by size. Both sides of every
ratio are measured in turns. Prints JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from benchmarks.plain_student import attention_with_weights, plain_losses, plain_model
from benchmarks.synthetic_data import make_images, random_outputs, random_sizes
from benchmarks.timing import HostSyncCounter, time_in_turns
from pipeline.boxes import union_boxes
from pipeline.images import read_image
from pipeline.utils.devices import configure_device, resolve_device
from student.config import Recipe, get_preset
from student.data.dataset import TrainingBatches, TrainingDataset, collate
from student.data.samplers import epoch_batches, padding_fraction
from student.data.targets import Targets
from student.data.transforms import NUM_RAND, normalise, sample_geometric_params
from student.engine.optimizer import build_optimizer, build_schedule
from student.engine.train_step import TrainStep
from student.losses.criterion import Criterion
from student.losses.matcher import TwoStageMatcher
from student.models.detector import HOIDetector
from student.utils.distributed import Execution
from student.utils.workers import BatchIterator, loader_options

PARTS = ("cache", "teacher", "plain", "losses", "padding")


class Bench:
    """The published student on synthetic images.

    Args:
        options: command-line options.
        folder: folder for images and cache.
    """

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.options = options
        self.device = configure_device(resolve_device(options.device), "auto")
        self.images, self.without = make_images(
            folder, options.images, options.labelled, options.proposed, options.side
        )
        vocabulary = self.images.vocabulary
        sizes = (vocabulary.num_objects, vocabulary.num_verbs, vocabulary.person)
        self.recipe: Recipe = get_preset("published", *sizes).override(
            backbone=options.backbone, batch_size=options.batch_size, interactive_threshold=0.0
        )
        self.distilled_verbs = torch.from_numpy(self.images.split.distilled_verbs)
        torch.manual_seed(0)
        self.model = HOIDetector(self.recipe.model).to(self.device)
        self.samples = [self.images[0, index] for index in range(options.batch_size)]
        self.batch = collate(self.samples).to(self.device)

    def train_step(self) -> TrainStep:
        """The project's training step, on a copy of the model."""
        model = HOIDetector(self.recipe.model).to(self.device)
        model.load_state_dict(self.model.state_dict())
        model = model.to(memory_format=torch.channels_last).train()
        optimizer = build_optimizer(model, self.recipe.train, self.device)
        scheduler = build_schedule(optimizer, self.recipe.train, 10**6)
        execution = Execution(self.device)
        return TrainStep(self.recipe, model, self.criterion(), optimizer, scheduler, execution)

    def criterion(self) -> Criterion:
        matcher = TwoStageMatcher(self.recipe.matcher, self.distilled_verbs.to(self.device))
        return Criterion(matcher, self.recipe.losses)

    def cache(self) -> dict[str, Any]:
        """Steps with the cache's candidates and probabilities, and without any.

        The times include loading by workers.
        """
        train_step = self.train_step()

        def steps(images: TrainingDataset) -> float:
            size, count = self.options.batch_size, self.options.steps
            order = [(0, index % len(images)) for index in range((count + 1) * size)]
            keys = [order[start : start + size] for start in range(0, len(order), size)]
            side = self.options.side
            loader = DataLoader(
                TrainingBatches(images, 1),
                batch_size=None,
                sampler=[(key, (side, side)) for key in keys],
                **loader_options(self.options.workers, 4 * size * side**2),
            )
            with BatchIterator(loader) as batches:
                # The first batch includes the start of the workers.
                next(batches)
                started = time.perf_counter()
                for batch in batches:
                    train_step(batch.to(self.device))
                return (time.perf_counter() - started) / count

        turns = time_in_turns(
            {"with": lambda: steps(self.images), "without": lambda: steps(self.without)},
            self.options.turns,
            self.device,
        )
        return {"seconds": turns.medians(), "ratio": turns.ratio("with", "without")}

    def teacher(self) -> dict[str, Any]:
        """The step with and without CLIP encoding the regions of matched pairs.

        CLIP encodes them in every decoder layer, as in the published code, or once per pair.
        """
        from teacher_cache.teachers.clip import ClipTeacher
        from teacher_cache.teachers.regions import RegionMode, crop_regions

        with tempfile.TemporaryDirectory() as folder:
            clip = ClipTeacher(_random_clip(self.options.clip_model, Path(folder)), self.device)
        train_step = self.train_step()
        criterion, found = train_step.criterion, []

        def remember(*arguments: Any) -> Any:
            found[:] = [criterion(*arguments)]
            return found[0]

        train_step.criterion = remember
        images = [read_image(self.images.records[row].path) for row in range(len(self.samples))]

        def encode(pairs: Sequence[tuple[int, int]]) -> None:
            for index, image in enumerate(images):
                targeted = [pair for row, pair in pairs if row == index]
                if targeted:
                    targets = self.samples[index].targets
                    boxes = _union_boxes(
                        targets.human_boxes[targeted], targets.object_boxes[targeted], image
                    )
                    clip.encode_images(
                        crop_regions(image, boxes, clip.image_size, RegionMode("pad"), self.device)
                    )

        def matched() -> list[tuple[int, int]]:
            matches = found[0].matches
            return list(zip(matches.images.tolist(), matches.targets.tolist(), strict=True))

        train_step(self.batch)

        def step(pairs: Callable[[], Sequence[tuple[int, int]]]) -> None:
            train_step(self.batch)
            encode(pairs())

        turns = time_in_turns(
            {
                "cached": lambda: step(list),
                "every_layer": lambda: step(matched),
                "each_pair_once": lambda: step(lambda: sorted(set(matched()))),
            },
            self.options.turns,
            self.device,
        )
        pairs = matched()
        return {
            "seconds": turns.medians(),
            "ratio": turns.ratio("every_layer", "cached"),
            "ratio_each_pair_once": turns.ratio("each_pair_once", "cached"),
            "clip": self.options.clip_model,
            "regions": {"every_layer": len(pairs), "each_pair_once": len(set(pairs))},
        }

    def plain(self) -> dict[str, Any]:
        """The whole step, and a straightforward implementation of it."""
        train_step, recipe = self.train_step(), self.recipe
        model = plain_model(self.model).to(self.device).train()
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=1e-4, weight_decay=1e-4)
        images = list(normalise(self.batch.pixels))
        targets = [moved(sample.targets, self.device) for sample in self.samples]

        def straightforward() -> None:
            with attention_with_weights():
                outputs = model(images)
            losses = plain_losses(
                outputs, targets, self.distilled_verbs, recipe.matcher, recipe.losses
            )
            optimizer.zero_grad()
            sum(losses.values(), torch.zeros(())).backward()
            torch.nn.utils.clip_grad_norm_(trained, recipe.train.clip_norm)
            optimizer.step()

        def ours() -> None:
            train_step(self.batch)

        sides = {"ours": ours, "plain": straightforward}
        turns = time_in_turns(sides, self.options.turns, self.device)
        return {"seconds": turns.medians(), "ratio": turns.ratio("plain", "ours")}

    def losses(self) -> dict[str, Any]:
        """Matching and losses with their gradients, for batches of 16, 64 queries and 20 pairs."""
        recipe, images = self.recipe, 16
        chosen = [self.images[0, index % len(self.images)].targets for index in range(images)]
        targets = [moved(target, self.device) for target in chosen]
        batch = moved(Targets.collate(chosen), self.device)
        criterion = self.criterion()
        outputs = random_outputs(3, images, recipe.model.num_queries, self.device)

        def plainly() -> Tensor:
            losses = plain_losses(
                outputs, targets, self.distilled_verbs, recipe.matcher, recipe.losses
            )
            return torch.stack(list(losses.values())).sum()

        def ours() -> Tensor:
            return criterion(outputs, batch).total

        reads = {}
        for name, side in (("ours", ours), ("plain", plainly)):
            with HostSyncCounter() as counted:
                side()
            reads[name] = counted.count
        sides: dict[str, Callable[[], None]] = {
            "ours": lambda: ours().backward(),
            "plain": lambda: plainly().backward(),
        }
        turns = time_in_turns(sides, self.options.turns, self.device)
        return {
            "seconds": turns.medians(),
            "ratio": turns.ratio("plain", "ours"),
            "pairs_per_image": statistics.mean(len(target) for target in targets),
            "totals": {"ours": ours().item(), "plain": plainly().item()},
            "host_reads": reads,
        }

    def padding(self) -> dict[str, Any]:
        """Fraction of padding in an epoch, for random batches and for batches of similar size."""
        original = random_sizes(20_000)
        draws = np.random.default_rng(1).random((len(original), NUM_RAND))
        sizes, batch = sample_geometric_params(original, draws).sizes, 16
        order = np.random.default_rng(2).permutation(len(sizes))
        whole = range(0, len(sizes) - batch + 1, batch)
        random = padding_fraction(sizes, [order[first : first + batch].tolist() for first in whole])
        grouped = padding_fraction(sizes, epoch_batches(sizes, batch, seed=0, epoch=0))
        return {
            "random": round(random, 4),
            "grouped": round(grouped, 4),
            "ratio": round(grouped / random, 3),
        }


def moved(targets: Targets, device: torch.device) -> Targets:
    """The targets on a device."""
    return replace(targets, **{name: value.to(device) for name, value in vars(targets).items()})


def _random_clip(name: str, folder: Path) -> Any:
    """A CLIP of this architecture with random weights, which suffice to measure its speed."""
    import open_clip

    from teacher_cache.teachers.clip import ClipConfig

    file = folder / "random.pt"
    torch.save(open_clip.create_model(name).state_dict(), file)
    return ClipConfig(name, str(file))


def _union_boxes(humans: Tensor, objects: Tensor, image: Any) -> np.ndarray:
    """(N, 4) xyxy union boxes in pixels, of relative cxcywh boxes."""
    scale = np.array([*image.size, *image.size], np.float32)
    both = []
    for boxes in (humans.cpu().numpy(), objects.cpu().numpy()):
        centre, half = boxes[:, :2], boxes[:, 2:] / 2
        both.append(np.concatenate([centre - half, centre + half], 1) * scale)
    return union_boxes(*both).astype(np.float32)


def results(options: argparse.Namespace, folder: Path) -> Iterator[tuple[str, Any]]:
    """Device and options, then the results of each part."""
    bench = Bench(options, folder)
    yield "device", str(bench.device)
    yield "threads", torch.get_num_threads()
    for name in ("backbone", "side", "batch_size", "labelled", "proposed", "workers"):
        yield name, getattr(options, name)
    for part in options.parts:
        yield part, getattr(bench, part)()


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--backbone", default="resnet50")
    parser.add_argument("--clip-model", default="ViT-B-16")
    parser.add_argument("--side", type=int, default=512, help="side of the images in pixels")
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--labelled", type=int, default=5, help="pairs per image")
    parser.add_argument("--proposed", type=int, default=15, help="pairs per image")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--steps", type=int, default=8, help="per turn, for the cache")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--device", default="auto")
    with tempfile.TemporaryDirectory() as folder:
        found = dict(results(parser.parse_args(), Path(folder)))
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
