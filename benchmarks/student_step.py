"""What a training step of the student costs, beside other ways to take it.

With and without the cache, with the teacher inside, written straightforwardly; and what grouping
images by size saves. Both sides of every ratio are measured in turns in one run. Prints JSON.
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

from benchmarks.measuring import HostReads, in_turns
from benchmarks.plain_student import attention_with_weights, plain_losses, plain_model
from benchmarks.student_material import made_up_outputs, made_up_sizes, make_images
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
    """The published student on made-up images.

    Args:
        options: of the command line.
        folder: for pictures and cache.
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
        self.asked = torch.from_numpy(self.images.split.distilled_verbs)
        torch.manual_seed(0)
        self.model = HOIDetector(self.recipe.model).to(self.device)
        self.samples = [self.images[0, index] for index in range(options.batch_size)]
        self.batch = collate(self.samples).to(self.device)

    def train_step(self) -> TrainStep:
        """Our step, on a copy of the model."""
        model = HOIDetector(self.recipe.model).to(self.device)
        model.load_state_dict(self.model.state_dict())
        model = model.to(memory_format=torch.channels_last).train()
        optimizer = build_optimizer(model, self.recipe.train, self.device)
        scheduler = build_schedule(optimizer, self.recipe.train, 10**6)
        execution = Execution(self.device)
        return TrainStep(self.recipe, model, self.criterion(), optimizer, scheduler, execution)

    def criterion(self) -> Criterion:
        matcher = TwoStageMatcher(self.recipe.matcher, self.asked.to(self.device))
        return Criterion(matcher, self.recipe.losses)

    def cache(self) -> dict[str, Any]:
        """Steps with the cache's candidates and answers, and on the same images without any;
        loading by workers included."""
        train_step = self.train_step()

        def steps(images: TrainingDataset) -> float:
            size, count = self.options.batch_size, self.options.steps
            order = [(0, place % len(images)) for place in range((count + 1) * size)]
            keys = [order[at : at + size] for at in range(0, len(order), size)]
            side = self.options.side
            loader = DataLoader(
                TrainingBatches(images, 1),
                batch_size=None,
                sampler=[(own, (side, side)) for own in keys],
                **loader_options(self.options.workers, 4 * size * side**2, print),
            )
            with BatchIterator(loader) as batches:
                # Starting the workers is no part of a step.
                next(batches)
                started = time.perf_counter()
                for batch in batches:
                    train_step(batch.to(self.device))
                return (time.perf_counter() - started) / count

        turns = in_turns(
            {"with": lambda: steps(self.images), "without": lambda: steps(self.without)},
            self.options.turns,
            self.device,
        )
        return {"seconds": turns.medians(), "ratio": turns.ratio("with", "without")}

    def teacher(self) -> dict[str, Any]:
        """The same step with CLIP scoring the matched pairs' regions inside: in every decoder
        layer, as the published code does, and each matched pair once."""
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
        pictures = [read_image(self.images.records[row].path) for row in range(len(self.samples))]

        def ask(pairs: Sequence[tuple[int, int]]) -> None:
            for image, picture in enumerate(pictures):
                own = [pair for row, pair in pairs if row == image]
                if own:
                    targets = self.samples[image].targets
                    boxes = _unions(targets.human_boxes[own], targets.object_boxes[own], picture)
                    clip.encode_images(
                        crop_regions(
                            picture, boxes, clip.image_size, RegionMode("pad"), self.device
                        )
                    )

        def matched() -> list[tuple[int, int]]:
            matches = found[0].matches
            return list(zip(matches.images.tolist(), matches.targets.tolist(), strict=True))

        train_step(self.batch)

        def step(asked: Callable[[], Sequence[tuple[int, int]]]) -> None:
            train_step(self.batch)
            ask(asked())

        turns = in_turns(
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
        """Our whole step against a straightforward one."""
        train_step, recipe = self.train_step(), self.recipe
        model = plain_model(self.model).to(self.device).train()
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=1e-4, weight_decay=1e-4)
        images = list(normalise(self.batch.pixels))
        targets = [moved(sample.targets, self.device) for sample in self.samples]

        def straightforward() -> None:
            with attention_with_weights():
                outputs = model(images)
            losses = plain_losses(outputs, targets, self.asked, recipe.matcher, recipe.losses)
            optimizer.zero_grad()
            sum(losses.values(), torch.zeros(())).backward()
            torch.nn.utils.clip_grad_norm_(trained, recipe.train.clip_norm)
            optimizer.step()

        def ours() -> None:
            train_step(self.batch)

        sides = {"ours": ours, "plain": straightforward}
        turns = in_turns(sides, self.options.turns, self.device)
        return {"seconds": turns.medians(), "ratio": turns.ratio("plain", "ours")}

    def losses(self) -> dict[str, Any]:
        """Matching and losses with their gradients alone: batch 16, 64 queries, 20 pairs each."""
        recipe, images = self.recipe, 16
        chosen = [self.images[0, index % len(self.images)].targets for index in range(images)]
        targets = [moved(target, self.device) for target in chosen]
        batch = moved(Targets.collate(chosen), self.device)
        criterion = self.criterion()
        outputs = made_up_outputs(3, images, recipe.model.num_queries, self.device)

        def plainly() -> Tensor:
            losses = plain_losses(outputs, targets, self.asked, recipe.matcher, recipe.losses)
            return torch.stack(list(losses.values())).sum()

        def ours() -> Tensor:
            return criterion(outputs, batch).total

        reads = {}
        for name, side in (("ours", ours), ("plain", plainly)):
            with HostReads() as counted:
                side()
            reads[name] = counted.count
        sides: dict[str, Callable[[], None]] = {
            "ours": lambda: ours().backward(),
            "plain": lambda: plainly().backward(),
        }
        turns = in_turns(sides, self.options.turns, self.device)
        return {
            "seconds": turns.medians(),
            "ratio": turns.ratio("plain", "ours"),
            "pairs_per_image": statistics.mean(len(target) for target in targets),
            "totals": {"ours": ours().item(), "plain": plainly().item()},
            "host_reads": reads,
        }

    def padding(self) -> dict[str, Any]:
        """The share of padding in an epoch's pixels, augmented, by chance and grouped."""
        original = made_up_sizes(20_000)
        draws = np.random.default_rng(1).random((len(original), NUM_RAND))
        sizes, batch = sample_geometric_params(original, draws).sizes, 16
        chance = np.random.default_rng(2).permutation(len(sizes))
        whole = range(0, len(sizes) - batch + 1, batch)
        random = padding_fraction(
            sizes, [chance[first : first + batch].tolist() for first in whole]
        )
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
    """The architecture with random weights: what it computes does not matter here."""
    import open_clip

    from teacher_cache.teachers.clip import ClipConfig

    file = folder / "random.pt"
    torch.save(open_clip.create_model(name).state_dict(), file)
    return ClipConfig(name, str(file))


def _unions(humans: Tensor, objects: Tensor, picture: Any) -> np.ndarray:
    """(N, 4) cxcywh twice to union boxes in the picture's pixels."""
    scale = np.array([*picture.size, *picture.size], np.float32)
    both = []
    for boxes in (humans.cpu().numpy(), objects.cpu().numpy()):
        centre, half = boxes[:, :2], boxes[:, 2:] / 2
        both.append(np.concatenate([centre - half, centre + half], 1) * scale)
    return union_boxes(*both).astype(np.float32)


def results(options: argparse.Namespace, folder: Path) -> Iterator[tuple[str, Any]]:
    """What was measured where, then part by part."""
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
    parser.add_argument("--side", type=int, default=512, help="of the images, in pixels")
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
