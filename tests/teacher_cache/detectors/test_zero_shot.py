"""Small zero-shot detectors of transformers with random weights, saved as on the hub."""

import json
import shutil
import string
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


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


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


def rows(boxes):
    """(N, 6) boxes, labels and scores, sorted."""
    parts = [np.round(boxes.boxes, 2), boxes.labels[:, None], boxes.scores[:, None]]
    table = np.concatenate(parts, axis=1)
    return table[np.lexsort(table.T.round(4))]


@pytest.mark.parametrize("name", OWL)
def test_owl_finds_what_one_pass_of_transformers_with_all_names_finds(folders, vocabulary, name):
    detector = load(folders[name], vocabulary, settings=("chunk_size=2",))
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
        np.testing.assert_allclose(boxes.scores, expected["scores"].numpy()[inside], atol=1e-5)
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
        scale = torch.tensor([100, 60, 100, 60])
        plain = box_convert(outputs.pred_boxes[0], "cxcywh", "xyxy")[order] * scale
        plain = plain.numpy().clip(0, scale)
        inside = (plain[:, 2:] > plain[:, :2]).all(1)
        assert len(boxes.boxes) == inside.sum() > 5
        np.testing.assert_allclose(boxes.boxes, plain[inside], atol=1e-2)
        np.testing.assert_array_equal(boxes.labels, labels[order].numpy()[inside])
        np.testing.assert_allclose(boxes.scores, scores[order].numpy()[inside], atol=1e-5)
