"""Small zero-shot detectors of transformers with random weights, saved as on the hub."""

import json
import shutil
import string
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from commands import run_command
from PIL import Image
from safetensors.torch import load_file, save_file
from torchvision.ops import box_convert

from pipeline.utils.errors import InputError
from pipeline.vocabulary import load_vocabulary
from teacher_cache.cli import main
from teacher_cache.detectors.base import DetectorConfig
from teacher_cache.detectors.load import load_detector
from teacher_cache.detectors.zero_shot import is_best_name, query_texts
from teacher_cache.reader.cache import open_cache

transformers = pytest.importorskip("transformers", reason="the extra hf is not installed")
pytestmark = pytest.mark.usefixtures("offline")

CPU = torch.device("cpu")
# Weights larger than usual, so that the outputs differ clearly from input to input.
SCALE = 0.3
WORDS = ["person", "dog", "horse", "bike", "ball", "umbrella", "chair", "car", "box", "baseball"]
NAMES = ("person", "dog", "baseball bat", "ball", "chair")
# transformers takes these ids of BERT's vocabulary for [CLS], [SEP], "." and "?".
BERT_IDS = {"[PAD]": 0, "[UNK]": 100, "[CLS]": 101, "[SEP]": 102, "[MASK]": 103, ".": 1012}
BERT_IDS |= {"?": 1029}


def write_json(file, value):
    file.write_text(json.dumps(value))


def write_clip_tokenizer(folder):
    """The files of OWL-ViT's tokenizer, in which each of the words is one token."""
    letters = [*("!", *string.ascii_lowercase, *string.digits, *"_-.?")]
    tokens, merges = [*letters, *(f"{letter}</w>" for letter in letters)], []
    for word in WORDS:
        *pieces, last = word
        pieces.append(f"{last}</w>")
        left = pieces[0]
        for right in pieces[1:]:
            merges.append(f"{left} {right}")
            left += right
            tokens.append(left)
    # The text encoder takes the token with the highest id as the end.
    tokens = [*dict.fromkeys(tokens), "<|startoftext|>", "<|endoftext|>"]
    write_json(folder / "vocab.json", {token: number for number, token in enumerate(tokens)})
    merges = ["#version: 0.2", *dict.fromkeys(merges)]
    (folder / "merges.txt").write_text("\n".join(merges) + "\n")
    special = {"bos_token": tokens[-2], "eos_token": tokens[-1], "unk_token": tokens[-1]}
    special["pad_token"] = "!"
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 16}
    write_json(folder / "special_tokens_map.json", special)
    write_json(folder / "tokenizer_config.json", {**settings, **special})
    return len(tokens)


def write_bert_tokenizer(folder):
    numbers = {number: token for token, number in BERT_IDS.items()}
    tokens = [numbers.get(number, f"[unused{number}]") for number in range(1030)]
    tokens += [*WORDS, *string.ascii_lowercase, *(f"##{c}" for c in string.ascii_lowercase)]
    (folder / "vocab.txt").write_text("\n".join(tokens) + "\n")
    settings = {"tokenizer_class": "BertTokenizer", "do_lower_case": True}
    write_json(folder / "tokenizer_config.json", {**settings, "model_max_length": 512})
    return len(tokens)


def write_owl(folder, name):
    kind = {"owlvit": "OwlViT", "owlv2": "Owlv2"}[name]
    vocab_size = write_clip_tokenizer(folder)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    sizes |= {"num_attention_heads": 2}
    config = getattr(transformers, f"{kind}Config")(
        text_config={
            **sizes,
            "vocab_size": vocab_size,
            "bos_token_id": vocab_size - 2,
            "eos_token_id": vocab_size - 1,
            "pad_token_id": 0,
        },
        vision_config={**sizes, "image_size": 32, "patch_size": 8},
        projection_dim=16,
    )
    size = {"height": 32, "width": 32}
    getattr(transformers, f"{kind}ImageProcessor")(size=size).save_pretrained(folder)
    return getattr(transformers, f"{kind}ForObjectDetection")(config)


def write_grounding_dino(folder, name):
    kind = {"grounding-dino": "GroundingDino", "mm-grounding-dino": "MMGroundingDino"}[name]
    config = getattr(transformers, f"{kind}Config")(
        backbone_config=transformers.SwinConfig(
            image_size=32,
            embed_dim=8,
            depths=[1, 1, 1],
            num_heads=[1, 2, 2],
            window_size=2,
            out_indices=[1, 2, 3],
        ),
        text_config={
            "model_type": "bert",
            "vocab_size": write_bert_tokenizer(folder),
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
        },
        d_model=32,
        num_queries=12,
        encoder_layers=1,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        num_feature_levels=4,
        max_text_len=32,
    )
    size = {"shortest_edge": 48, "longest_edge": 80}
    transformers.GroundingDinoImageProcessor(size=size).save_pretrained(folder)
    return getattr(transformers, f"{kind}ForObjectDetection")(config)


WRITERS = {
    "owlvit": write_owl,
    "owlv2": write_owl,
    "grounding-dino": write_grounding_dino,
    "mm-grounding-dino": write_grounding_dino,
}
OWL, GROUNDING = [*WRITERS][:2], [*WRITERS][2:]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Folders of the models, by their architecture."""
    root = tmp_path_factory.mktemp("models")
    with torch.random.fork_rng():
        torch.manual_seed(3)
        for name, write in WRITERS.items():
            (root / name).mkdir()
            model = write(root / name, name)
            with torch.no_grad():
                for tensor in model.parameters():
                    if tensor.dim() > 1:
                        tensor.normal_(std=SCALE)
            model.save_pretrained(root / name)
    return {name: root / name for name in WRITERS}


def load(folder, vocabulary, **options):
    options = {"score_threshold": 0.0, **options}
    return load_detector(DetectorConfig(f"hf-zero-shot:{folder}", **options), vocabulary, CPU)


def noise(width, height, count=1):
    rng = np.random.default_rng(0)
    shape = (height, width, 3)
    return [Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)) for _ in range(count)]


def plain_model(folder):
    model = transformers.AutoModelForZeroShotObjectDetection.from_pretrained(folder).eval()
    return model, transformers.AutoProcessor.from_pretrained(folder)


def assert_equal(found, expected):
    np.testing.assert_allclose(found.boxes, expected.boxes, atol=1e-2)
    np.testing.assert_array_equal(found.labels, expected.labels)
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-4)


def edit_json(file, **changes):
    write_json(file, {**json.loads(file.read_text()), **changes})


@pytest.mark.parametrize("name", OWL)
def test_owl_finds_what_one_pass_of_transformers_with_all_names_finds(folders, vocabulary, name):
    detector = load(folders[name], vocabulary, settings=(("chunk_size", "2"),))
    assert detector.name == f"hf-zero-shot:{name}"
    assert detector.missing_objects == detector.other_classes == ()
    images = noise(100, 60, count=3)
    found = detector.detect(images)
    model, processor = plain_model(folders[name])
    labels = set()
    for image, boxes in zip(images, found, strict=True):
        inputs = processor(text=[[*vocabulary.objects]], images=image, return_tensors="pt")
        with torch.inference_mode():
            outputs = model(**inputs)
        (expected,) = processor.post_process_grounded_object_detection(outputs, 0.0, [(60, 100)])
        plain = expected["boxes"].numpy().clip(0, [100, 60, 100, 60])
        inside = (plain[:, 2:] > plain[:, :2]).all(1)
        assert len(boxes.boxes) == inside.sum() > 5
        np.testing.assert_allclose(boxes.boxes, plain[inside], atol=1e-3)
        np.testing.assert_array_equal(boxes.labels, expected["labels"].numpy()[inside])
        np.testing.assert_allclose(boxes.scores, expected["scores"].numpy()[inside], atol=1e-4)
        labels |= set(boxes.labels.tolist())
    assert len(labels) > 1


@pytest.mark.parametrize("name", GROUNDING)
def test_grounding_dino_gives_a_box_its_best_name(folders, vocabulary, name):
    """A name's score is the mean over its tokens in the outputs of transformers."""
    objects = ("person", "dog", "baseball box", "ball")
    vocabulary = replace(vocabulary, objects=objects, category_ids=(1, 2, 3, 4))
    detector = load(folders[name], vocabulary)
    images = noise(100, 60, count=2)
    model, processor = plain_model(folders[name])
    for image, boxes in zip(images, detector.detect(images), strict=True):
        inputs = processor(text=[[*objects]], images=image, return_tensors="pt")
        with torch.inference_mode():
            outputs = model(**inputs)
        tokens = outputs.logits[0].sigmoid()
        # [CLS] person . dog . baseball box . ball . [SEP]
        assert inputs["input_ids"].shape == (1, 11)
        names = [tokens[:, 1], tokens[:, 3], tokens[:, 5:7].mean(1), tokens[:, 8]]
        scores, labels = torch.stack(names, 1).max(1)
        order = scores.argsort(descending=True)
        scale = np.array([100, 60, 100, 60])
        plain = box_convert(outputs.pred_boxes[0], "cxcywh", "xyxy")[order].numpy() * scale
        plain = plain.clip(0, scale)
        inside = (plain[:, 2:] > plain[:, :2]).all(1)
        assert len(boxes.boxes) == inside.sum() > 5
        np.testing.assert_allclose(boxes.boxes, plain[inside], atol=1e-2)
        np.testing.assert_array_equal(boxes.labels, labels[order].numpy()[inside])
        np.testing.assert_allclose(boxes.scores, scores[order].numpy()[inside], atol=1e-4)


@pytest.mark.parametrize("name", WRITERS)
def test_the_other_images_of_a_batch_change_nothing(folders, vocabulary, name):
    detector = load(folders[name], vocabulary)
    # Three pixels could be taken for three channels.
    for size in [(100, 60), (3, 50), (50, 3)]:
        images = noise(*size, count=3)
        for image, found in zip(images, detector.detect(images), strict=True):
            (alone,) = detector.detect([image])
            assert_equal(found, alone)


def test_chunks_change_nothing_for_owl(folders, vocabulary):
    detectors = [
        load(folders["owlv2"], vocabulary, settings=settings)
        for settings in [(), (("chunk_size", "1"),), (("chunk_size", "4"),)]
    ]
    (expected,) = detectors[0].detect(noise(64, 64))
    for detector in detectors[1:]:
        assert detector.fingerprint_parts() == detectors[0].fingerprint_parts()
        (found,) = detector.detect(noise(64, 64))
        assert_equal(found, expected)


def test_prompts_of_grounding_dino_are_merged(folders, vocabulary):
    """A prompt per name finds the boxes of detectors with one name each, but no box twice."""
    folder = folders["grounding-dino"]
    names = ("person", "dog", "ball")
    detector = load(folder, vocabulary, classes=names, settings=(("chunk_size", "1"),))
    (found,) = detector.detect(noise(64, 64))
    model, processor = plain_model(folder)
    parts = []
    for number, name in enumerate(names):
        inputs = processor(text=[[name]], images=noise(64, 64)[0], return_tensors="pt")
        with torch.inference_mode():
            outputs = model(**inputs)
        boxes = box_convert(outputs.pred_boxes[0], "cxcywh", "xyxy") * 64
        scores = outputs.logits[0].sigmoid()[:, 1]
        parts.append((boxes, torch.full_like(scores, number), scores))
    boxes, chunks, scores = map(torch.cat, zip(*parts, strict=True))
    assert len(boxes) == 36
    # As many as one pass finds.
    best = scores.argsort(descending=True)[:12]
    best = best[is_best_name(boxes[best], scores[best], chunks[best])]
    np.testing.assert_allclose(np.sort(found.scores), np.sort(scores[best].numpy()), atol=1e-4)
    assert len(set(found.labels.tolist())) > 1
    # The names of a prompt depend on each other, so that its size is in the fingerprint.
    together = load(folder, vocabulary, classes=names)
    parts = [each.fingerprint_parts() for each in (detector, together)]
    assert {key for key in parts[0] if parts[0][key] != parts[1][key]} == {"detector.prompts"}


def test_the_prompts_of_grounding_dino_take_as_many_tokens_as_the_model(folders, vocabulary):
    names = tuple(f"person {letter}" for letter in string.ascii_lowercase)
    detector = load(folders["grounding-dino"], vocabulary, classes=("person", *names))
    prompts = detector._detector._model.prompts
    # With [CLS] and [SEP], and without a split name: 32 tokens at most, 3 per name.
    assert [len(prompt) for prompt in prompts] == [31, 32, 23]
    assert [prompt.count(BERT_IDS["."]) for prompt in prompts] == [10, 10, 7]


def test_the_same_box_of_two_prompts():
    boxes = torch.tensor([[0, 0, 10, 10], [0, 0, 10, 9.5], [0, 0, 10, 8], [0, 0, 10, 10.0]])
    scores, chunks = torch.tensor([0.5, 0.6, 0.7, 0.4]), torch.tensor([0, 1, 2, 0])
    assert is_best_name(boxes, scores, chunks).tolist() == [False, True, True, False]
    assert is_best_name(boxes, scores, torch.zeros(4)).all()
    assert is_best_name(boxes[:0], scores[:0], chunks[:0]).shape == (0,)


def test_texts_of_swig_hoi():
    """Without underscores and WordNet ids; the first of the objects with a text gets its boxes."""
    swig = load_vocabulary("swig-hoi")
    texts = query_texts(swig.objects, swig)
    assert len(texts) == 962 and texts["person"] == "person"
    assert texts["automobile mechanic"] == "automobile_mechanic"
    assert texts["mouse"] == "mouse_n03793489" == swig.objects[900]
    assert texts["crown"] == "Crown"
    assert query_texts(["Mouse", "mouse_n02330245", "a. b?", "?"], swig) == {
        "mouse": "mouse_n03793489",
        "a b": "a. b?",
    }
    assert query_texts(["mouse_n02330245"], swig) == {"mouse": "mouse_n02330245"}


def test_the_vocabulary_of_swig_hoi(folders):
    swig = load_vocabulary("swig-hoi")
    detector = load(folders["owlv2"], swig, classes=("person", "dog", "Crown", "box", "mouse"))
    assert len(detector.missing_objects) == 995
    (found,) = detector.detect(noise(64, 64))
    names = {swig.objects[label] for label in found.labels}
    assert names <= {"person", "dog", "Crown", "box", "mouse_n03793489"}


def test_the_threshold(folders, vocabulary):
    for name in ("owlv2", "grounding-dino"):
        (everything,) = load(folders[name], vocabulary).detect(noise(64, 64))
        cut = float(np.median(everything.scores))
        (best,) = load(folders[name], vocabulary, score_threshold=cut).detect(noise(64, 64))
        np.testing.assert_array_equal(best.scores, everything.scores[everything.scores > cut])


@pytest.mark.parametrize("name", ["owlv2", "grounding-dino"])
def test_an_emulated_gpu_finds_the_same(folders, vocabulary, emulate_cuda, name):
    (expected,) = load(folders[name], vocabulary).detect(noise(64, 64))
    config = DetectorConfig(f"hf-zero-shot:{folders[name]}", score_threshold=0.0)
    with emulate_cuda() as gpu:
        (found,) = load_detector(config, vocabulary, torch.device("cuda", 0)).detect(noise(64, 64))
    assert gpu.kernels.total() > 0
    assert_equal(found, expected)


def test_the_fingerprint_depends_on_weights_settings_names_and_tokenizer(
    folders, vocabulary, tmp_path
):
    folder = shutil.copytree(folders["owlv2"], tmp_path / "model")
    parts = [load(folder, vocabulary).fingerprint_parts()]
    names = ("model", "weights", "settings", "prompts", "classes")
    assert parts[0].keys() == {f"detector.{name}" for name in names}

    def changed(**options):
        parts.append(load(folder, vocabulary, **options).fingerprint_parts())
        return {key[9:] for key in parts[0] if parts[-1][key] != parts[-2][key]}

    assert changed(classes=vocabulary.objects[:-1]) == {"prompts", "classes"}
    parts.pop()
    edit_json(folder / "preprocessor_config.json", image_mean=[0.5] * 3)
    assert changed() == {"settings"}
    tokens = json.loads((folder / "vocab.json").read_text())
    tokens["dog</w>"], tokens["car</w>"] = tokens["car</w>"], tokens["dog</w>"]
    write_json(folder / "vocab.json", tokens)
    assert changed() == {"prompts"}
    weights = load_file(folder / "model.safetensors")
    weights["class_head.dense0.bias"][0] += 1
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    assert changed() == {"weights"}


def drop_a_tensor(folder):
    weights = load_file(folder / "model.safetensors")
    del weights["class_head.dense0.bias"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize(
    ("edit", "text"),
    [
        (drop_a_tensor, "--detector: .* none for 1 tensors, first class_head.dense0.bias"),
        (lambda folder: (folder / "config.json").unlink(), "--detector: expected hf-zero-shot: "),
        (lambda folder: (folder / "vocab.json").unlink(), "--detector: expected hf-zero-shot: "),
        (lambda folder: (folder / "preprocessor_config.json").unlink(), "expected hf-zero-shot: "),
        (lambda folder: edit_json(folder / "config.json", model_type="detr"), "OWLv2 or Ground"),
        (lambda folder: edit_json(folder / "config.json", model_type="clip"), "OWLv2 or Ground"),
        (shutil.rmtree, "--detector: expected hf-zero-shot: with OWL-ViT, OWLv2 or Grounding DINO"),
    ],
)
def test_wrong_folders(folders, vocabulary, tmp_path, edit, text, capfd):
    folder = shutil.copytree(folders["owlv2"], tmp_path / "model")
    edit(folder)
    with pytest.raises(InputError, match=text) as caught:
        load(folder, vocabulary)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("edit", "text"),
    [
        # transformers 4 refuses such a folder itself.
        (
            lambda file: file.unlink(),
            "found no tokens of its own for person; are its files|: expected hf-z",
        ),
        (lambda file: file.write_text(""), "--detector: expected hf-zero-shot: "),
        (lambda file: file.write_text("person"), "--detector: expected hf-zero-shot: "),
        (lambda file: file.write_text("[UNK]\nperson\n."), "no tokens of its own for horse"),
    ],
)
def test_a_tokenizer_without_its_words(folders, vocabulary, tmp_path, edit, text):
    """transformers takes every word for an unknown one."""
    folder = shutil.copytree(folders["grounding-dino"], tmp_path / "model")
    edit(folder / "vocab.txt")
    with pytest.raises(InputError, match=text) as caught:
        load(folder, vocabulary)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"weights": "a.pth"}, "--detector-weights: expected none with hf-zero-shot:/.* found a.p"),
        ({"settings": (("size", "3"),)}, r"--detector-set: .*\(revision, chunk_size\), found size"),
        ({"settings": (("chunk_size", "0"),)}, "chunk_size: .* number from 1 .*found 0"),
        ({"settings": (("chunk_size", "few"),)}, "--detector-set: chunk_size: .* found few"),
        ({"classes": ("dog", "ball")}, "--detector-classes: expected a detector that finds people"),
        ({"classes": ()}, "--detector-classes: expected names of objects, found none"),
        ({"classes": ("person", "x " * 40)}, r"names of at most \d+ tokens, found \d+ in x x x"),
    ],
)
def test_wrong_options(folders, vocabulary, options, text):
    for name in ("owlv2", "grounding-dino"):
        with pytest.raises(InputError, match=text) as caught:
            load(folders[name], vocabulary, **options)
        assert "\n" not in str(caught.value)


def test_a_detector_with_fixed_classes_is_no_zero_shot_one(folders, vocabulary):
    config = DetectorConfig(f"hf:{folders['owlv2']}")
    with pytest.raises(InputError, match="--detector: expected hf: with an object detector"):
        load_detector(config, vocabulary, CPU)


def build(dataset, out, *options):
    words = ["build", dataset, "--out", out, "--device", "cpu", "--images-per-shard", 3]
    thresholds = ["--person-threshold", 0.05, "--object-threshold", 0.05, "--max-people", 2]
    return run_command(main, "eoid-cache", *words, *thresholds, *options)


@pytest.mark.parametrize("name", ["owlv2", "grounding-dino"])
def test_a_build_is_resumed_and_repaired(
    shared_dataset, folders, tmp_path, contents, monkeypatch, name
):
    monkeypatch.chdir(folders[name].parent)
    out = tmp_path / "cache"
    done = build(shared_dataset, out, "--detector", f"hf-zero-shot:{name}")
    assert done.returncode == 0, done.stderr
    cache, before = open_cache(out), contents(out)
    assert sum(len(cache[image_id].pairs) for image_id in cache.image_ids) > 10
    assert cache.manifest["settings"]["detector"] == f"hf-zero-shot:{folders[name]}"
    (out / "shards/00001.h5").unlink()
    (out / "manifest.json").unlink()
    monkeypatch.chdir(tmp_path)
    detector = ("--detector", f"hf-zero-shot:{folders[name]}")
    if name == "grounding-dino":
        done = build(shared_dataset, out, *detector, "--detector-set", "chunk_size=2")
        assert done.returncode == 2 and "detector.prompts" in done.stderr
    done = build(shared_dataset, out, *detector)
    assert done.returncode == 0 and "resuming" in done.stderr, done.stderr
    assert contents(out) == before
    shard = out / "shards/00000.h5"
    shard.write_bytes(shard.read_bytes()[:-9])
    assert run_command(main, "eoid-cache", "verify", out, "--repair").returncode == 0
    assert contents(out) == before


@pytest.mark.slow
def test_two_workers(shared_dataset, folders, tmp_path, contents):
    detector = ("--detector", f"hf-zero-shot:{folders['owlv2']}")
    for out, workers in {"one": 0, "two": 2}.items():
        done = build(shared_dataset, tmp_path / out, *detector, "--workers", workers)
        assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


UNIFORM = """
import numpy as np
from teacher_cache.teachers.base import Teacher

class Uniform(Teacher):
    probabilities = "independent"
    def score(self, images, pairs, vocabulary):
        return np.full((sum(map(len, pairs)), vocabulary.num_verbs), 0.5, np.float32)
"""


@pytest.fixture
def swig_dataset(tmp_path, monkeypatch):
    """Two images in SWIG-HOI's layout with its own vocabulary, and a teacher without weights."""
    (tmp_path / "uniform.py").write_text(UNIFORM)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "uniform", raising=False)
    swig = load_vocabulary("swig-hoi")
    names = ("person", "car", "mouse_n02330245", "mouse_n03793489", "person")
    boxes = [
        {
            "bbox": [5 * number, 4, 5 * number + 30, 40 + number],
            "category_id": swig.objects.index(name),
            "aux_category_id": [6, 7] if number else [],
        }
        for number, name in enumerate(names)
    ]
    verb = next(verb for verb, label in swig.interactions if swig.objects[label] == "car")
    entries = [
        {
            "file_name": f"driving_{number}.jpg",
            "img_id": number,
            "width": 64,
            "height": 48,
            "box_annotations": boxes if number == 1 else boxes[:2],
            "hoi_annotations": [{"subject_id": 0, "object_id": 1, "action_id": verb}],
        }
        for number in (1, 2)
    ]
    root = tmp_path / "swig"
    (root / "annotations").mkdir(parents=True)
    (root / "images_512").mkdir()
    write_json(root / "annotations/swig_trainval_1000.json", entries)
    for number, image in enumerate(noise(64, 48, count=2), 1):
        image.save(root / f"images_512/driving_{number}.jpg")
    return root


def test_the_annotated_objects_of_swig_hoi(swig_dataset, folders, tmp_path):
    detector = ("--detector", f"hf-zero-shot:{folders['owlv2']}", "--teacher", "uniform:Uniform")
    classes = ("--set", "detector-classes=annotated")
    done = build(swig_dataset, tmp_path / "cache", *detector, *classes)
    assert done.returncode == 0, done.stderr
    # The other mouse is searched for by the same text.
    assert "has no class for 997 of the 1000 objects of swig-hoi" in done.stderr
    cache = open_cache(tmp_path / "cache")
    names = ["person", "car", "mouse_n03793489", "mouse_n02330245"]
    assert cache.manifest["settings"]["detector_classes"] == names
    assert sum(len(cache[image_id].pairs) for image_id in cache.image_ids) > 2
    other = ("--detector", "toy", "--teacher", "uniform:Uniform")
    done = build(swig_dataset, tmp_path / "other", *other, *classes)
    assert done.returncode == 2 and "annotated with --detector hf-zero-shot:" in done.stderr


def test_annotated_candidates_of_swig_hoi(swig_dataset, tmp_path):
    """The published protocol: every annotated person with every other annotated box."""
    words = ("--candidates", "annotated", "--teacher", "uniform:Uniform", "--device", "cpu")
    done = run_command(main, "eoid-cache", "build", swig_dataset, "--out", "cache", *words)
    assert done.returncode == 0, done.stderr
    cache = open_cache(tmp_path / "cache")
    assert cache.protocol == "annotated" and cache.image_ids == ["driving_1.jpg", "driving_2.jpg"]
    swig = load_vocabulary("swig-hoi")
    objects = [swig.objects.index(name) for name in ("car", "mouse_n02330245", "mouse_n03793489")]
    first, second = (cache[image_id].pairs for image_id in cache.image_ids)
    proposed = first.sources == 1
    labels = first.object_labels[proposed].tolist()
    # Two people, who are objects of each other too; aux_category_id adds none.
    assert sorted(labels) == sorted([*objects, swig.person] * 2)
    assert first.object_labels[~proposed].tolist() == objects[:1]
    assert second.object_labels.tolist() == [objects[0]] * 2
    assert (first.human_scores == 1).all() and (first.object_scores == 1).all()
