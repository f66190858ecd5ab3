"""`eoid-train probe`: trains a verb head on a teacher cache alone, and scores it on a second one.

The head sees what the cache contains of a pair: the embedding of its region, both boxes and the
object class. No image is read and no box is learned, so that the score shows in minutes what
proposals, regions and teacher are good for. Scored are the proposed pairs of a cache of the test
part, as the teacher itself is scored by `eoid-cache evaluate`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from evaluation.predictions import write_predictions
from evaluation.results import RESULTS_FILE, Results, write_results
from evaluation.score_hico import ScoringConfig, score_to_fields
from pipeline.annotations.load import AnnotationFile
from pipeline.datasets.dataset import Dataset, open_dataset
from pipeline.splits import Split, load_split, unseen_verb_objects
from pipeline.types import Annotation, Detections
from pipeline.utils.devices import configure_device, resolve_device
from pipeline.utils.errors import InputError, bad_field
from pipeline.utils.files import atomic_write, describe_changes, refuse_existing, sha256_of_json
from pipeline.utils.logging import get_logger
from pipeline.utils.progress import Progress, track
from pipeline.utils.text import count_noun
from pipeline.vocabulary import Vocabulary
from student.config import ProbeConfig
from student.data.targets import label_cached_pairs
from student.models.probe import VerbProbe, pair_geometry
from student.utils.seeding import derive_seed, manual_seed
from student.weights.checkpoint_file import write_content
from teacher_cache.reader.cache import TeacherCache, open_cache, read_outputs
from teacher_cache.reader.detections import pair_detections
from teacher_cache.reader.format import PAIR_OFFSETS, REGION_EMBEDDING, SHARDS

logger = get_logger(__name__)

CHECKPOINT, FORMAT = "probe.pt", "eoid-probe-1"
# IoU of both boxes by which a proposed pair takes the labels of an annotated one, as in HICO-DET's
# protocol.
MIN_IOU = 0.5
# Pairs per forward pass without training.
CHUNK = 4096
# Parts of the fingerprint that do not change the embedding of a region: those of the annotations,
# of the proposals and of the prompts. All others must be equal in both caches.
OTHER_PARTS = {
    *("annotations", "part", "candidates", "proposals", "prompts", "logit_scale"),
    *("person_threshold", "object_threshold", "max_people", "max_objects"),
}
DETECTOR_PARTS = "detector."
# What a probe reads of a pair or a region, as arrays of floats.
FLOAT_ARRAYS = (
    REGION_EMBEDDING,
    "pairs/human_box",
    "pairs/object_box",
    "pairs/human_score",
    "pairs/object_score",
    "pairs/action_probabilities",
)
# Separates the random stream of the data order from others with the same seed.
SEED_STREAM = 0x9B0B


@dataclass(frozen=True)
class ProbeRun:
    """Paths and settings of a probe: the options of `eoid-train probe`, which explains them."""

    data: Path
    cache: Path
    test_cache: Path
    split: str
    out: Path
    config: ProbeConfig = field(default_factory=ProbeConfig)
    predictions: Path | None = None
    device: str = "auto"
    overwrite: bool = False
    name: str | None = None


@dataclass(frozen=True, eq=False)
class TrainingPairs:
    """Training pairs of a shard.

    Attributes:
        rows: (P,) int32 rows of the shard's pairs.
        labels: (P, ceil(V / 8)) uint8, the seen labels by `numpy.packbits`: a bool per verb would
            take most of the memory.
    """

    rows: np.ndarray
    labels: np.ndarray


def run_probe(run: ProbeRun) -> Results:
    """Trains a probe and evaluates it; writes `probe.pt` and `results.json`.

    Raises:
        InputError: an input cannot be used, inputs do not fit each other, or a file exists.
    """
    files = [run.out / CHECKPOINT, run.out / RESULTS_FILE]
    for file in filter(None, [*files, run.predictions]):
        refuse_existing(file, run.overwrite)
    device = configure_device(resolve_device(run.device), "float32")
    dataset = open_dataset(run.data)
    vocabulary = dataset.vocabulary
    split = load_split(vocabulary, run.split)
    train_file, cache = _open_part(dataset, run.cache, "train")
    test_file, test_cache = _open_part(dataset, run.test_cache, "test")
    _check_same_embeddings(cache, test_cache)
    annotations = {each.image_id: each for each in train_file.annotations}
    probe = train_probe(cache, annotations, split, vocabulary, run.config, device)
    detections = detect(probe, test_cache, vocabulary, device)
    split_fields = {
        "name": split.name,
        "unseen": list(split.unseen),
        "distilled_verbs": split.distilled_verbs.tolist(),
    }
    run.out.mkdir(parents=True, exist_ok=True)
    content = {
        "format": FORMAT,
        "config": asdict(run.config),
        "vocabulary": vocabulary.to_dict(),
        "split": split_fields,
        "embeddings": embedding_parts(cache),
        "model": {name: value.cpu() for name, value in probe.state_dict().items()},
    }
    with atomic_write(run.out / CHECKPOINT) as temporary:
        write_content(temporary, content)
    if run.predictions is not None:
        write_predictions(
            run.predictions, dataset.detections_to_file("test", detections), vocabulary
        )
    settings = [{**asdict(run.config), "seed": None}, split_fields, train_file.limit]
    protocols = {cache.protocol, test_cache.protocol}
    results = Results(
        name=run.name or run.out.resolve().name,
        kind="probe",
        dataset=dataset.name,
        split=split.name,
        num_images=len(test_file.annotations),
        limit=test_file.limit,
        training_split=split.name,
        training_limit=train_file.limit,
        protocol="annotated" if "annotated" in protocols else "detector",
        distillation=run.config.distillation,
        seed=run.config.seed,
        recipe=sha256_of_json(settings),
        dataset_path=dataset.root,
        predictions=run.predictions,
        **score_to_fields(
            test_file.annotations,
            detections,
            vocabulary,
            split.unseen,
            ScoringConfig(),
            test_file.swig_images,
        ),
    )
    write_results(run.out / RESULTS_FILE, results)
    return results


def _open_part(dataset: Dataset, path: Path, part: str) -> tuple[AnnotationFile, TeacherCache]:
    """The annotations of a part and its cache; of a cache of few images, only theirs.

    Raises:
        InputError: the cache is of another dataset or part, contains no region embeddings, or has
            numbers that are not finite.
    """
    cache = open_cache(path)
    file = dataset.load(part).limited(cache.limit)
    cache.check(dataset.vocabulary, file.digest, part)
    if line := file.format_issues():
        logger.warning(line)
    file.require_labels()
    if not cache.has_embeddings:
        raise InputError(
            f"{path}: expected region embeddings, found none (the cache was built with"
            " --no-embeddings, or its teacher has none)"
        )
    if not any(cache.shard_layout(shard).num_pairs for shard in range(cache.num_shards)):
        raise InputError(f"{path}: expected human-object pairs, found none")
    for shard in track(range(cache.num_shards), cache.num_shards, "Checking", "shards", True):
        _check_finite(cache, shard)
    return file, cache


def _check_finite(cache: TeacherCache, shard: int) -> None:
    """Refuses NaN and infinity in a shard, with which no weight would be learned."""
    for name, values in cache.shard_arrays(shard).items():
        if name not in FLOAT_ARRAYS:
            continue
        rows = np.flatnonzero(~np.isfinite(values).all(axis=tuple(range(1, values.ndim))))
        if len(rows):
            file = cache.path / SHARDS / cache.manifest["shards"][shard]["name"]
            found = f"others in {len(rows)} of {len(values)} rows, first {rows[0]}"
            raise bad_field(file, name, "finite numbers", found)


def embedding_parts(cache: TeacherCache) -> dict[str, Any]:
    """The parts of a cache's fingerprint that determine the embedding of a region."""
    return {
        name: value
        for name, value in cache.manifest["parts"].items()
        if name not in OTHER_PARTS and not name.startswith(DETECTOR_PARTS)
    }


def _check_same_embeddings(cache: TeacherCache, test_cache: TeacherCache) -> None:
    """Raises:
    InputError: the caches' region embeddings are of different teachers or regions.
    """
    if changes := describe_changes(embedding_parts(cache), embedding_parts(test_cache)):
        raise InputError(
            f"{test_cache.path}: expected region embeddings as in {cache.path}, found other"
            f" settings: {changes}"
        )
    # A teacher of one's own may have changed without a word in its fingerprint.
    width, test_width = map(_embedding_width, (cache, test_cache))
    if width != test_width:
        raise InputError(
            f"{test_cache.path}: expected region embeddings of width {width}, as in {cache.path},"
            f" found width {test_width}"
        )


def _embedding_width(cache: TeacherCache) -> int | None:
    widths = (cache.shard_layout(shard).embedding_width for shard in range(cache.num_shards))
    return next((width for width in widths if width), None)


def train_probe(
    cache: TeacherCache,
    annotations: dict[str, Annotation],
    split: Split,
    vocabulary: Vocabulary,
    config: ProbeConfig,
    device: torch.device,
) -> VerbProbe:
    """Trains a probe on the pairs of a cache.

    Equal arguments give equal weights, on one kind of machine with as many threads.

    Args:
        cache: teacher cache with region embeddings.
        annotations: by image id, with the labels of unseen interactions, which have no effect.
        split, vocabulary: of annotations and cache.
        config, device: settings, and where the probe is trained.

    Returns:
        The probe in eval mode.

    Raises:
        InputError: no training pair has a label, or the loss is not finite.
    """
    pairs = [
        collect_pairs(cache, shard, annotations, split, vocabulary)
        for shard in track(range(cache.num_shards), cache.num_shards, "Labels", "shards", True)
    ]
    if not any(shard_pairs.labels.any() for shard_pairs in pairs):
        raise InputError(
            f"{cache.path}: expected pairs with a label seen in {split.name}, found none"
        )
    mean, std = measure_features(cache, pairs)
    manual_seed(config.seed)
    probe = VerbProbe(
        len(mean), vocabulary.num_objects, vocabulary.num_verbs, config.hidden_dim, mean, std
    ).to(device)
    valid = torch.from_numpy(vocabulary.valid.T.copy()).to(device)
    # Labels say which seen interactions a pair has and which not. The teacher is asked about the
    # others only: its probabilities of a pair sum to 1, also where nobody does anything.
    distilled = (unseen_verb_objects(split, vocabulary).T & split.distilled_verbs).astype(
        np.float32
    )
    distilled *= config.distillation
    num_batches = [-(-len(each.rows) // config.batch_size) for each in pairs]
    optimizer = torch.optim.AdamW(
        probe.parameters(), config.learning_rate, weight_decay=config.weight_decay
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(
        optimizer, config.epochs * sum(num_batches)
    )
    num_pairs = sum(len(each.rows) for each in pairs)
    logger.info(
        f"training on {count_noun(num_pairs, 'pairs')}, {count_noun(config.epochs, 'epochs')}, with"
        f"{'' if config.distillation else 'out'} the teacher's probabilities"
    )
    with Progress(config.epochs * num_pairs, "Training", "pairs") as progress:
        for epoch in range(config.epochs):
            rng = np.random.default_rng(derive_seed(config.seed, SEED_STREAM, epoch))
            # Shard by shard, so that a file system reads every file once per epoch, and in one go.
            for shard in rng.permutation(len(pairs)).tolist():
                for order in np.array_split(
                    rng.permutation(len(pairs[shard].rows)), num_batches[shard] or 1
                ):
                    if len(order) == 0:
                        continue
                    features, objects, targets = (
                        value.to(device)
                        for value in read_batch(
                            cache, shard, pairs[shard], order, distilled, vocabulary
                        )
                    )
                    loss = probe_loss(probe(features, objects), targets, valid[objects])
                    if not math.isfinite(value := loss.item()):
                        raise bad_field(
                            cache.path, f"loss of epoch {epoch}", "a number", f"{value}"
                        )
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                    schedule.step()
                    progress.update(len(order), f"loss {value:.3f}")
    return probe.eval()


def probe_loss(logits: Tensor, targets: Tensor, valid: Tensor) -> Tensor:
    """Binary cross-entropy of (P, V) logits and targets: mean over the pairs of the sum over the
    verbs that are `valid` (bool), that is form an interaction with the pair's object."""
    losses = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    return (losses * valid).sum() / len(losses)


def collect_pairs(
    cache: TeacherCache,
    shard: int,
    annotations: dict[str, Annotation],
    split: Split,
    vocabulary: Vocabulary,
) -> TrainingPairs:
    """The training pairs of a shard with their labels; see `label_cached_pairs`."""
    arrays = cache.shard_arrays(shard)
    rows, labels = [], []
    for row, image_id in enumerate(cache.shard_layout(shard).images):
        outputs = read_outputs(arrays, row)
        image_labels, used = label_cached_pairs(
            annotations[image_id], outputs.pairs, split, vocabulary, MIN_IOU
        )
        rows.append(arrays[PAIR_OFFSETS][row] + np.flatnonzero(used))
        labels.append(np.packbits(image_labels[used], axis=1))
    if not rows:
        return TrainingPairs(np.zeros(0, np.int32), np.zeros((0, 0), np.uint8))
    return TrainingPairs(np.concatenate(rows).astype(np.int32), np.concatenate(labels))


def read_features(cache: TeacherCache, shard: int, rows: np.ndarray) -> np.ndarray:
    """(P, F) float32 features of rows of a shard's pairs: region embedding and box geometry."""
    arrays = cache.shard_arrays(shard)
    embeddings = arrays[REGION_EMBEDDING][arrays["pairs/region"][rows]]
    boxes = (arrays[f"pairs/{kind}_box"][rows] for kind in ("human", "object"))
    return np.concatenate([embeddings.astype(np.float32), pair_geometry(*boxes)], axis=1)


def measure_features(cache: TeacherCache, pairs: list[TrainingPairs]) -> tuple[Tensor, Tensor]:
    """(F,) float32 mean and standard deviation of the training pairs' features."""
    count, total, squares = 0, np.zeros(1), np.zeros(1)
    for shard, shard_pairs in enumerate(pairs):
        for first in range(0, len(shard_pairs.rows), CHUNK):
            rows = shard_pairs.rows[first : first + CHUNK]
            features = read_features(cache, shard, rows).astype(np.float64)
            count, total = count + len(rows), total + features.sum(axis=0)
            squares = squares + (features**2).sum(axis=0)
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - mean**2, 0))
    return torch.from_numpy(mean).float(), torch.from_numpy(std).float()


def read_batch(
    cache: TeacherCache,
    shard: int,
    pairs: TrainingPairs,
    order: np.ndarray,
    distilled: np.ndarray,
    vocabulary: Vocabulary,
) -> tuple[Tensor, Tensor, Tensor]:
    """A batch of a shard's training pairs, on the CPU.

    Args:
        cache, shard, pairs: the pairs.
        order: (B,) indices into `pairs`.
        distilled: (O, V) float32, 1 for interactions whose targets are the teacher's probabilities
            where there is no label.
        vocabulary: of the cache.

    Returns:
        Features (B, F) float32, object classes (B,) int64, targets (B, V) float32 in [0, 1].
    """
    arrays, rows = cache.shard_arrays(shard), pairs.rows[order]
    labels = np.unpackbits(pairs.labels[order], axis=1, count=vocabulary.num_verbs)
    objects = arrays["pairs/object_label"][rows].astype(np.int64)
    soft = arrays["pairs/action_probabilities"][rows] * distilled[objects]
    targets = np.where(labels, np.float32(1), soft)
    features = read_features(cache, shard, rows)
    return torch.from_numpy(features), torch.from_numpy(objects), torch.from_numpy(targets)


@torch.inference_mode()
def detect(
    probe: VerbProbe, cache: TeacherCache, vocabulary: Vocabulary, device: torch.device
) -> list[Detections]:
    """Detections of the images of a cache: its proposed pairs with the probe's verbs; the scores
    are those of `pair_detections`."""
    return [
        detections
        for shard in track(range(cache.num_shards), cache.num_shards, "Predicting", "shards", True)
        for detections in _detect_shard(probe, cache, shard, vocabulary, device)
    ]


def _detect_shard(
    probe: VerbProbe,
    cache: TeacherCache,
    shard: int,
    vocabulary: Vocabulary,
    device: torch.device,
) -> Iterator[Detections]:
    arrays, layout = cache.shard_arrays(shard), cache.shard_layout(shard)
    objects = arrays["pairs/object_label"].astype(np.int64)
    probabilities = np.zeros((layout.num_pairs, vocabulary.num_verbs), dtype=np.float32)
    for first in range(0, layout.num_pairs, CHUNK):
        rows = np.arange(first, min(first + CHUNK, layout.num_pairs))
        features = torch.from_numpy(read_features(cache, shard, rows)).to(device)
        logits = probe(features, torch.from_numpy(objects[rows]).to(device))
        probabilities[rows] = logits.sigmoid().cpu().numpy()
    probabilities *= vocabulary.valid[:, objects].T
    for row, image_id in enumerate(layout.images):
        first, end = arrays[PAIR_OFFSETS][row : row + 2].tolist()
        outputs = replace(read_outputs(arrays, row), probabilities=probabilities[first:end])
        yield pair_detections(image_id, outputs, vocabulary)
