"""A tiny toy dataset with a cache written by hand: an accurate teacher and an accurate detector."""

import multiprocessing
import socket
from dataclasses import fields, replace

import numpy as np
import pytest
import timm
import torch
import torchvision
from commands import Command
from PIL import Image
from torch import nn
from torchvision.ops import FrozenBatchNorm2d
from training import logged

from pipeline.boxes import union_boxes
from pipeline.splits import load_split
from pipeline.types import Pairs
from pipeline.utils.files import sha256_of_file, write_json
from pipeline.vocabulary import load_vocabulary
from student.config import ModelConfig, TargetConfig, get_preset
from student.data.dataset import TrainingDataset
from student.data.text_embeddings import init_text_heads, text_head_options
from student.data.transforms import build_augmentation
from student.engine.run_inputs import RunConfig, RunInputs
from student.engine.trainer import Trainer
from student.models.detector import HOIDetector
from student.utils.distributed import Execution
from student.utils.preemption import StopSignalHandler
from student.weights.checkpoint_file import CHECKPOINT, Checkpoint, save_checkpoint
from student.weights.published import to_published
from teacher_cache.reader.cache import PromptEmbeddings, open_cache
from teacher_cache.reader.fingerprint import compute_fingerprint
from teacher_cache.reader.format import (
    FORMAT_VERSION,
    MANIFEST,
    SHARDS,
    TEACHER,
    TeacherOutputs,
    shard_name,
)
from teacher_cache.reader.prompts_file import ActionPrompts
from teacher_cache.teachers.prompts import interaction_prompts
from teacher_cache.writer.shard import write_prompts_file, write_shard, write_teacher_file

CPU = torch.device("cpu")


@pytest.fixture(scope="session")
def vocabulary():
    return load_vocabulary("toy")


@pytest.fixture(scope="session")
def small_config():
    """A detector with learned queries that is fast to build and run."""
    return ModelConfig(
        num_objects=5,
        num_verbs=7,
        num_queries=6,
        backbone="resnet18",
        hidden_dim=32,
        feedforward_dim=48,
        num_encoder_layers=1,
        num_human_object_layers=2,
        num_interaction_layers=2,
    )


@pytest.fixture(scope="session")
def toy_config():
    """The toy detector, with queries from proposals, for the small one's classes."""
    return get_preset("toy", 5, 7, 0).model


@pytest.fixture(scope="session")
def build():
    """`build(config, seed=)` gives a detector in eval mode; equal seeds give equal weights."""

    def make(config, seed=0):
        torch.manual_seed(seed)
        return HOIDetector(config).eval()

    return make


SMALL_VIT = {"depth": 3, "embed_dim": 32, "num_heads": 2}


@pytest.fixture
def small_timm(monkeypatch):
    """Shrinks models of timm that have no small variant, by the arguments in the given dict."""
    sizes = {
        "swin_tiny_patch4_window7_224": {
            "embed_dim": 16,
            "depths": (1, 2, 1, 1),
            "num_heads": (1, 1, 2, 2),
        },
        "vit_small_patch14_dinov2": SMALL_VIT,
        "vit_small_patch16_dinov3": SMALL_VIT,
        "vit_base_patch16_siglip_224": SMALL_VIT,
        "vit_base_patch16_clip_224": SMALL_VIT,
    }
    create_model = timm.create_model

    def create(name, **options):
        return create_model(name, **sizes.get(name.partition(".")[0], {}), **options)

    monkeypatch.setattr(timm, "create_model", create)
    return sizes


@pytest.fixture(scope="session")
def detr_state():
    """`detr_state(backbone=, ...)` gives random weights under the names of DETR's checkpoints."""

    def make(backbone="resnet18", d=32, feedforward=48, layers=6, queries=100, pre_norm=False):
        with torch.device("meta"):
            body = torchvision.models.get_model(backbone, norm_layer=FrozenBatchNorm2d)
            parts = {
                "transformer": nn.Transformer(d, 1, layers, layers, feedforward),
                "class_embed": nn.Linear(d, 92),
                "query_embed": nn.Embedding(queries, d),
                "input_proj": nn.Conv2d(body.fc.in_features, d, 1),
                "backbone.0.body": body,
            }
            for number, out in enumerate((d, d, 4)):
                parts[f"bbox_embed.layers.{number}"] = nn.Linear(d, out)
        left_out = ("backbone.0.body.fc.", *(() if pre_norm else ("transformer.encoder.norm.",)))
        random = torch.Generator().manual_seed(7)
        return {
            f"{part}.{name}": torch.randn(value.shape, generator=random)
            for part, module in parts.items()
            for name, value in module.state_dict().items()
            if not f"{part}.{name}".startswith(left_out)
        }

    return make


@pytest.fixture(scope="session")
def make_teacher_outputs(vocabulary):
    """`make_teacher_outputs(annotation, seed)` gives accurate outputs for an image.

    Annotated pairs come first; then every person with every thing, boxes found to `spread` pixels.
    The teacher gives an annotated action a probability of 0.9.
    """

    def build(annotation, seed=0, spread=2, vocabulary=vocabulary):
        rng = np.random.default_rng(seed)
        rows = [tuple(row[:2]) for row in annotation.hois.tolist() if row[1] >= 0]
        annotated = list(dict.fromkeys(rows))
        people = np.flatnonzero(annotation.labels == vocabulary.person)
        things = np.flatnonzero(annotation.labels != vocabulary.person)
        pairs = np.array(
            annotated + [(p, t) for p in people for t in things], dtype=np.int64
        ).reshape(-1, 2)
        proposed = np.arange(len(pairs)) >= len(annotated)
        moved = annotation.boxes + rng.uniform(-spread, spread, annotation.boxes.shape)
        found = np.clip(moved, 0, 128)
        boxes = np.where(proposed[:, None, None], found[pairs], annotation.boxes[pairs]).astype(
            np.float32
        )
        labels = annotation.labels[pairs[:, 1]]
        return TeacherOutputs(
            pairs=Pairs(
                human_boxes=boxes[:, 0],
                object_boxes=boxes[:, 1],
                object_labels=labels,
                human_scores=np.where(proposed, 0.9, 1).astype(np.float32),
                object_scores=np.where(proposed, 0.8, 1).astype(np.float32),
                sources=proposed.astype(np.uint8),
            ),
            probabilities=_probabilities(annotation, pairs, labels, vocabulary),
            region_indices=np.arange(len(pairs)),
            region_boxes=union_boxes(boxes[:, 0], boxes[:, 1]),
            embeddings=None,
        )

    return build


def _probabilities(annotation, pairs, labels, vocabulary):
    verbs = vocabulary.valid[:, labels].T.astype(np.float32)
    if vocabulary.no_interaction is not None:
        verbs[:, vocabulary.no_interaction] = 0
    weights = 0.1 * verbs / verbs.sum(1, keepdims=True)
    for human, thing, verb in annotation.hois:
        if verb != vocabulary.no_interaction and thing >= 0:
            weights[(pairs == (human, thing)).all(1), verb] += 0.9
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="session")
def write_cache():
    """`write_cache(folder, vocabulary, digest, {image id: outputs})` makes a finished cache."""

    def write(folder, vocabulary, digest, outputs, **further):
        parts = {"vocabulary": vocabulary.digest(), "annotations": digest, "teacher": "by hand"}
        parts |= further
        path = folder / SHARDS / shard_name(0)
        ids = list(outputs)
        write_shard(
            path, compute_fingerprint(parts), ids, list(outputs.values()), {}, vocabulary.num_verbs
        )
        shard = {"name": path.name, "sha256": sha256_of_file(path), "images": ids}
        write_json(
            folder / MANIFEST,
            {
                "format_version": FORMAT_VERSION,
                "fingerprint": compute_fingerprint(parts),
                "parts": parts,
                "failed": {},
                "shards": [shard],
            },
        )
        return folder

    return write


@pytest.fixture(scope="session")
def make_cache(make_teacher_outputs, write_cache, vocabulary):
    """`make_cache(folder, annotation file)` makes a finished cache of accurate outputs."""

    def make(folder, file, vocabulary=vocabulary, spread=2, **parts):
        outputs = {
            one.image_id: make_teacher_outputs(one, row, spread, vocabulary)
            for row, one in enumerate(file.annotations)
        }
        return write_cache(folder, vocabulary, file.digest, outputs, **parts)

    return make


@pytest.fixture(scope="session")
def cache_path(tmp_path_factory, annotations, make_cache):
    return make_cache(tmp_path_factory.mktemp("cache") / "cache", annotations)


CLIP = {"clip.model": "by hand", "clip.weights": "0" * 64, "clip.quick_gelu": False}


@pytest.fixture(scope="session")
def sentences(vocabulary):
    """`PromptEmbeddings` in which prompts of one verb are similar."""
    random = np.random.default_rng(5)
    verbs = random.standard_normal((vocabulary.num_verbs, 16))
    things = 0.4 * random.standard_normal((vocabulary.num_objects, 16))
    embeddings = np.stack([verbs[verb] + things[label] for verb, label in vocabulary.interactions])
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    return PromptEmbeddings(interaction_prompts(vocabulary), embeddings.astype(np.float32), 10.0)


@pytest.fixture(scope="session")
def text_cache(
    tmp_path_factory, annotations, make_teacher_outputs, write_cache, vocabulary, sentences
):
    """A cache whose region embeddings equal those of the likeliest action's prompt."""
    outputs = {}
    for row, annotation in enumerate(annotations.annotations):
        own = make_teacher_outputs(annotation, row)
        hois = vocabulary.interaction_ids[own.probabilities.argmax(1), own.pairs.object_labels]
        embeddings = sentences.embeddings[hois]
        outputs[annotation.image_id] = replace(own, embeddings=embeddings)
    folder = tmp_path_factory.mktemp("cache") / "reading"
    write_cache(folder, vocabulary, annotations.digest, outputs, **CLIP)
    write_teacher_file(folder / TEACHER, open_cache(folder).fingerprint, sentences)
    return folder


@pytest.fixture(scope="session")
def make_text_run(tmp_path_factory, vocabulary, tiny_recipe, text_cache):
    """`make_text_run(verb_head=, object_head=)` gives a run folder of an untrained student with
    text heads; split ua."""

    def make(**options):
        cache = open_cache(text_cache)
        recipe = tiny_recipe.override(**options, **text_head_options(options, cache, vocabulary))
        model = build_distinct(recipe.model)
        init_text_heads(model.text_heads, cache, vocabulary)
        return save_student(tmp_path_factory.mktemp("run"), model, recipe, vocabulary)

    return make


@pytest.fixture(scope="session")
def text_run(make_text_run):
    """A run folder of an untrained student with a text verb head; split ua."""
    return make_text_run(verb_head="text")


def build_distinct(config, seed=0):
    """An untrained detector with distinct scores, so that no order depends on rounding."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = HOIDetector(config)
        heads = [model.object_head] if config.object_head == "linear" else []
        if config.verb_head == "linear":
            heads.append(model.verb_head)
        if config.queries == "proposals":
            proposal_head = model.query_source.head
            heads += [proposal_head.person_logit, proposal_head.object_logits]
        for head in heads:
            torch.nn.init.normal_(head.weight, std=1.0)
    return model


def save_student(run, model, recipe, vocabulary):
    """Writes a run folder of a student that was trained with split ua, and returns it."""
    checkpoint = Checkpoint(
        recipe, vocabulary, load_split(vocabulary, "ua"), model.state_dict(), {}
    )
    save_checkpoint(run / CHECKPOINT, checkpoint)
    return run


@pytest.fixture
def write_new_prompts(tmp_path, text_cache):
    """`write_new_prompts({"juggle": (form, {object: embedding})}, **changes)` writes what
    `eoid-cache prompts` would, and gives its path."""

    def write(actions, name="new.h5", **changes):
        rows = [
            (number, label, f"a picture of person {form} {label}", embedding)
            for number, (form, things) in enumerate(actions.values())
            for label, embedding in things.items()
        ]
        made = ActionPrompts(
            text_model=open_cache(text_cache).text_model,
            verbs=tuple(actions),
            verb_ings=tuple(form for form, _ in actions.values()),
            actions=np.array([row[0] for row in rows]),
            objects=tuple(row[1] for row in rows),
            prompts=tuple((row[2],) for row in rows),
            embeddings=np.stack([row[3] for row in rows]).astype(np.float32),
        )
        write_prompts_file(tmp_path / name, replace(made, **changes))
        return tmp_path / name

    return write


@pytest.fixture(scope="session")
def make_images(dataset, annotations, cache_path, vocabulary):
    """`make_images(split, augmentation, seed=, config=)` gives the toy dataset's training
    images.
    """

    def make(split, augmentation, seed=0, config=None):
        return TrainingDataset(
            dataset.records(annotations),
            np.full((len(annotations.annotations), 2), 128),
            annotations.annotations,
            open_cache(cache_path),
            split,
            vocabulary,
            config or TargetConfig(),
            augmentation,
            seed,
        )

    return make


@pytest.fixture(scope="session")
def tiny_recipe(vocabulary):
    """The toy dataset's recipe for two short epochs of four steps."""
    recipe = get_preset("toy", vocabulary.num_objects, vocabulary.num_verbs, vocabulary.person)
    return recipe.override(epochs=2, batch_size=4, precision="float32")


@pytest.fixture
def make_trainer(make_images, tiny_recipe, vocabulary, tmp_path, dataset, cache_path):
    """`make_trainer("run", workers=, device=, field=value)` gives a new trainer that logs every
    step; its `go()` trains, and takes signals."""
    split = load_split(vocabulary, "ua")

    def build(name, workers=0, device=CPU, checkpoint_minutes=15, **options):
        settings = {key: options.pop(key) for key in ("accumulation", "compiled") if key in options}
        recipe = tiny_recipe.override(**options)
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        torch.manual_seed(recipe.train.seed)
        model = HOIDetector(recipe.model)
        augmentation = build_augmentation("toy")
        images = make_images(split, augmentation, recipe.train.seed, recipe.targets)
        inputs = RunInputs(dataset, open_cache(cache_path), split, recipe, images)
        execution = Execution(device, workers=workers, **settings)
        trainer = Trainer(inputs, model, folder, execution, checkpoint_minutes, log_every=1)

        def go():
            with StopSignalHandler() as signals:
                trainer.train(signals)

        trainer.go = go
        return trainer

    return build


@pytest.fixture(scope="session")
def configure_run(dataset_root, cache_path):
    """`configure_run(out, field=value)`: a `RunConfig` of one epoch on the toy dataset. Keywords
    that are not its fields are fields of the recipe."""
    names = {field.name for field in fields(RunConfig)}

    def make(out, **changes):
        settings = {name: changes.pop(name) for name in names & changes.keys()}
        options = {"epochs": 1, "batch_size": 8, "precision": "float32", **changes}
        common = {"data": dataset_root, "cache": cache_path, "split": "ua", "preset": "toy"}
        common |= {"device": "cpu", "workers": 0}
        return RunConfig(**{**common, **settings}, out=out, options=options)

    return make


@pytest.fixture
def start(tmp_path):
    """`start(words, first="", **environment)` starts a command, after the code `first`; calling
    the result waits for its end. The processes are forked from a server that has imported the
    modules; the start method of their own child processes is the default one."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["student.engine.run", "torch.nn.parallel.distributed"])
    begun = []

    def begin(words, first="", **environment):
        log = tmp_path / f"command-{len(begun)}"
        begun.append(Command(context, log, words, first, environment))
        return begun[-1]

    yield begin
    for one in begun:
        if one.process.is_alive():
            one.process.kill()
            one.process.join()


@pytest.fixture
def start_processes(start):
    """`start_processes(words)` begins a command in two processes that train together."""

    def begin(words, **options):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        return [
            start(words, RANK=str(rank), LOCAL_RANK=str(rank), **common, **options)
            for rank in range(2)
        ]

    return begin


@pytest.fixture
def student_command(dataset_root, cache_path):
    """`student_command(out, *more)`: a short training command."""

    def words(out, *more):
        places = ("--data", dataset_root, "--cache", cache_path, "--out", out, "--split", "ua")
        short = ("--preset", "toy", "--precision", "float32", "--device", "cpu", "--no-report")
        return ["student", *places, *short, "--log-every", 1, *more]

    return words


TOLERANCE = {"rel": 1e-5, "abs": 1e-7}


@pytest.fixture
def train_alone_and_together(start, start_processes, student_command, tmp_path):
    """Trains in one process and in two: what each has logged, and the messages of the second."""

    def train(*options, tolerance=TOLERANCE):
        options = ("--batch-size", 7, "--workers", 0, *options)
        ends = [one() for one in start_processes(student_command(tmp_path / "together", *options))]
        assert [code for code, _, _ in ends] == [0, 0], ends
        assert "6 images" in ends[0][1] and ends[1][1] == "" and "training" not in ends[1][2]
        code, _, err = start(student_command(tmp_path / "alone", *options))()
        assert code == 0, err
        alone, together = (logged(tmp_path / name) for name in ("alone", "together"))
        assert [line["step"] for line in together] == [line["step"] for line in alone]
        assert together[0]["losses"] == pytest.approx(alone[0]["losses"], **tolerance)
        norm = pytest.approx(alone[0]["grad_norm"], rel=10 * tolerance["rel"])
        assert together[0]["grad_norm"] == norm
        assert together[0]["candidates"] == alone[0]["candidates"]
        assert alone[0]["candidates"]["total"] > 0
        return alone, together, err

    return train


@pytest.fixture(autouse=True)
def own_generator():
    """Makes random draws of a test independent of those of other tests."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@pytest.fixture(scope="session")
def toy_checkpoint(tmp_path_factory, vocabulary, tiny_recipe):
    """A run folder of an untrained student with queries from proposals; split ua."""
    model = build_distinct(tiny_recipe.model)
    return save_student(tmp_path_factory.mktemp("run"), model, tiny_recipe, vocabulary)


@pytest.fixture(scope="session")
def published_checkpoint(tmp_path_factory, vocabulary, small_config):
    """A small file in the published form, with as many verbs and objects as the toy dataset."""
    sizes = {"num_objects": vocabulary.num_objects, "num_verbs": vocabulary.num_verbs}
    config = replace(small_config, **sizes, num_queries=7, num_interaction_layers=1)
    model = build_distinct(config, seed=1)
    path = tmp_path_factory.mktemp("published") / "small.pth"
    torch.save({"model": to_published(model.state_dict())}, path)
    return path


@pytest.fixture
def write_image(tmp_path):
    """`write_image(name, (width, height), seed)` writes an image of coloured blocks."""

    def make(name, size=(128, 128), seed=0, **options):
        blocks = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(blocks).resize(size, Image.Resampling.BICUBIC).save(path, **options)
        return path

    return make
