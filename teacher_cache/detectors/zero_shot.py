"""Zero-shot object detectors of transformers: OWL-ViT, OWLv2 and Grounding DINO.

They find what texts name, so that any vocabulary's objects are their classes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import chain
from types import SimpleNamespace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import box_convert, box_iou

from pipeline.utils.errors import InputError
from pipeline.utils.files import sha256_of_json
from pipeline.utils.hugging_face import (
    DEFAULT_REVISION,
    Pretrained,
    PretrainedSource,
    load_pretrained,
    one_line_errors,
)
from pipeline.utils.schema import Positive, Text
from pipeline.vocabulary import Vocabulary, normalise_name, object_text
from teacher_cache.detectors.base import ZERO_SHOT_PREFIX, Detections, Detector, DetectorConfig

# Grounding DINO takes these as the ends of phrases.
DELIMITERS = re.compile(r"[.?]")
# Names that the text encoder of OWL-ViT and OWLv2 gets at once.
NAMES_PER_BATCH = 64
# Boxes of two of Grounding DINO's prompts that overlap as much are one box with two names.
SAME_BOX_IOU = 0.9


class ZeroShotDetector(Detector):
    """A frozen zero-shot detection model; see `teacher_cache.detectors.base.Detector`.

    Every distinct text is searched for once. A box gets the name with the highest score; of
    objects with equal texts, such as the two kinds of "mouse" in SWIG-HOI, the first one.

    Attributes:
        name: `hf-zero-shot:` and the model's architecture.
        classes: for each distinct text the object that its boxes get.
        weights_digest: digest of the state dict.

    Args:
        config: its `name` is `hf-zero-shot:` with a folder or a name on the Hugging Face hub; its
            `classes` are the names to search for, by default those of all objects.
        revision: branch, tag or commit of the hub's repository.
        chunk_size: maximum number of names in a pass of the text encoder. With Grounding DINO they
            share a prompt, and the outputs depend on it; None for as many as the model allows.

    Raises:
        InputError: no such model, folder or file; a model for another task; weights that lack
            tensors or are not finite; or a name that is too long for the text encoder, or that the
            tokenizer does not know.
    """

    def __init__(
        self,
        device: torch.device,
        vocabulary: Vocabulary,
        config: DetectorConfig,
        revision: Text = DEFAULT_REVISION,
        chunk_size: Positive | None = None,
    ) -> None:
        super().__init__(device, vocabulary)
        self._source = PretrainedSource(
            config.name.removeprefix(ZERO_SHOT_PREFIX),
            "--detector",
            f"{ZERO_SHOT_PREFIX} with OWL-ViT, OWLv2 or Grounding DINO",
            config.name,
            revision,
        )
        loaded = load_pretrained(
            self._source, "AutoModelForZeroShotObjectDetection", "AutoProcessor", torch.float32
        )
        if loaded.model_type not in FAMILIES:
            raise self._source.error(ValueError(f"its architecture is {loaded.model_type}"))
        self.name = f"{ZERO_SHOT_PREFIX}{loaded.model_type}"
        self.weights_digest = loaded.weights_digest
        self._settings_digest = sha256_of_json(loaded.settings)
        names = vocabulary.objects if config.classes is None else config.classes
        texts = query_texts(names, vocabulary)
        if not texts:
            raise InputError("--detector-classes: expected names of objects, found none")
        self.classes = list(texts.values())
        loaded.model.to(device)
        # What is wrong in the files of the tokenizer shows here only.
        with one_line_errors(self._source):
            self._model = FAMILIES[loaded.model_type](loaded, [*texts], chunk_size, device)
        self._images = loaded.processor.image_processor
        self._threshold = config.score_threshold

    @torch.inference_mode()
    def detect(self, images: Sequence[np.ndarray]) -> list[Detections]:
        """Boxes (N, 4), classes (N,) and scores (N,) of (h, w, 3) uint8 RGB images."""
        # What is wrong in a configuration may show here only.
        with one_line_errors(self._source):
            inputs = self._images(
                images=list(images), return_tensors="pt", input_data_format="channels_last"
            )
            sizes = [image.shape[:2] for image in images]
            return self._model.detect(inputs.to(self.device), sizes, self._threshold)

    def fingerprint(self) -> dict[str, Any]:
        """Digests of weights, of the settings of model and image processor, of the classes, and of
        the token ids of all prompts, which tokenizer, names and chunks decide."""
        return {
            "weights": self.weights_digest,
            "settings": self._settings_digest,
            "prompts": sha256_of_json(self._model.prompts),
            "classes": sha256_of_json(self.classes),
        }


def query_texts(names: Sequence[str], vocabulary: Vocabulary) -> dict[str, str]:
    """Distinct texts to search for, in the order of their first names.

    Returns:
        For each text the class of its boxes: the first of the names with this text, or if that is
        none of the vocabulary, its first object with this text. A name that is no object at all
        stays as it is.
    """
    objects: dict[str, str] = {}
    for name in vocabulary.objects:
        objects.setdefault(_query_text(name), name)
    known, texts = set(vocabulary.objects), dict[str, str]()
    for name in names:
        text = _query_text(name)
        texts.setdefault(text, name if name in known else objects.get(text, name))
    texts.pop("", None)
    return texts


def _query_text(name: str) -> str:
    # The tokenizers of these models ignore case.
    return normalise_name(DELIMITERS.sub(" ", object_text(name)))


class _TextModel(Protocol):
    """A model with its texts, which `prompts` has as token ids."""

    prompts: list[list[int]]

    def detect(
        self, inputs: Any, sizes: Sequence[tuple[int, ...]], threshold: float
    ) -> list[Detections]:
        """Detections of images of (h, w) pixels; `inputs` are those of the image processor."""


class _Owl:
    """OWL-ViT and OWLv2: each name has an embedding of its own, computed once.

    The scores of a name do not depend on the other names, so that chunks change no output.
    """

    def __init__(
        self, loaded: Pretrained, texts: list[str], chunk_size: int | None, device: torch.device
    ) -> None:
        self._model, self._images = loaded.model, loaded.processor.image_processor
        length = loaded.model.config.text_config.max_position_embeddings
        tokens = loaded.processor.tokenizer(texts, padding="max_length", max_length=length)
        self.prompts = tokens["input_ids"]
        _check_tokens(texts, self.prompts, length)
        owl = getattr(loaded.model, loaded.model.base_model_prefix)
        chunks = (
            torch.tensor(tokens[name], device=device).split(chunk_size or NAMES_PER_BATCH)
            for name in ("input_ids", "attention_mask")
        )
        with torch.inference_mode():
            # The second output is pooled.
            pooled = [owl.text_model(ids, mask)[1] for ids, mask in zip(*chunks, strict=True)]
            # (names, D)
            self._embeddings = owl.text_projection(torch.cat(pooled))

    def detect(
        self, inputs: Any, sizes: Sequence[tuple[int, ...]], threshold: float
    ) -> list[Detections]:
        feature_map = self._model.image_embedder(inputs["pixel_values"])[0]
        features = feature_map.flatten(1, 2)
        names = self._embeddings.expand(len(features), -1, -1)
        outputs = SimpleNamespace(
            logits=self._model.class_predictor(features, names)[0],
            pred_boxes=self._model.box_predictor(features, feature_map),
        )
        results = self._images.post_process_object_detection(outputs, threshold, list(sizes))
        return [(one["boxes"], one["labels"], one["scores"]) for one in results]


class _GroundingDino:
    """Grounding DINO: names share prompts, "person. dog.", each of which takes a pass.

    The score of a name is the mean over its tokens, as in the published evaluation. The text is
    fused with the image in every layer, so that boxes and scores depend on the other names of the
    prompt; what several prompts find is merged by `is_best_name`.
    """

    def __init__(
        self, loaded: Pretrained, texts: list[str], chunk_size: int | None, device: torch.device
    ) -> None:
        self._model, tokenizer = loaded.model, loaded.processor.tokenizer
        # With the delimiter.
        phrases = tokenizer([f"{text}." for text in texts], add_special_tokens=False)["input_ids"]
        first, last = tokenizer.cls_token_id, tokenizer.sep_token_id
        length = loaded.model.config.max_text_len
        _check_tokens(texts, phrases, length - 2, tokenizer.unk_token_id)
        chunks: list[list[list[int]]] = []
        for phrase in phrases:
            used = sum(map(len, chunks[-1])) + 2 if chunks else length
            if used + len(phrase) > length or len(chunks[-1]) == chunk_size:
                chunks.append([])
            chunks[-1].append(phrase)
        self.prompts = [[first, *chain.from_iterable(chunk), last] for chunk in chunks]
        self._ids = [torch.tensor([prompt], device=device) for prompt in self.prompts]
        self._weights = [_token_weights(chunk).to(device) for chunk in chunks]

    def detect(
        self, inputs: Any, sizes: Sequence[tuple[int, ...]], threshold: float
    ) -> list[Detections]:
        parts = []
        num_names = 0
        for number, (ids, weights) in enumerate(zip(self._ids, self._weights, strict=True)):
            ids = ids.expand(len(sizes), -1)
            outputs = self._model(
                **inputs,
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                token_type_ids=torch.zeros_like(ids),
            )
            probabilities = outputs.logits[..., : ids.shape[1]].sigmoid()
            scores, labels = (probabilities @ weights).clamp(max=1).max(-1)
            chunks = torch.full_like(labels, number)
            parts.append((outputs.pred_boxes, labels + num_names, scores, chunks))
            num_names += weights.shape[1]
        # Copied before they are divided into images, so that the host waits for the device once.
        all_boxes, all_labels, all_scores, all_chunks = (
            torch.cat(part, 1).cpu() for part in zip(*parts, strict=True)
        )
        results: list[Detections] = []
        for row, (height, width) in enumerate(sizes):
            # One pass with all names would find as many boxes as this at most.
            best = all_scores[row].argsort(descending=True)[: self._model.config.num_queries]
            best = best[all_scores[row][best] > threshold]
            boxes = box_convert(all_boxes[row][best], "cxcywh", "xyxy")
            boxes = boxes * boxes.new_tensor([width, height, width, height])
            keep = is_best_name(boxes, all_scores[row][best], all_chunks[row][best])
            best = best[keep]
            results.append((boxes[keep], all_labels[row][best], all_scores[row][best]))
        return results


def is_best_name(boxes: Tensor, scores: Tensor, chunks: Tensor) -> Tensor:
    """(N,) bool: whether no other prompt found the same box with a higher score.

    Args:
        boxes: (N, 4) xyxy in pixels.
        scores: (N,) of the boxes' names.
        chunks: (N,) number of the prompt that found each box.
    """
    is_same = box_iou(boxes, boxes) >= SAME_BOX_IOU
    is_better = (scores > scores[:, None]) & (chunks != chunks[:, None])
    return ~(is_same & is_better).any(1)


def _token_weights(phrases: list[list[int]]) -> Tensor:
    """(tokens, names) float32: weights of a prompt's tokens in the scores of its names, which are
    the means over the tokens of a name without its delimiter."""
    weights = torch.zeros(2 + sum(map(len, phrases)), len(phrases))
    start = 1
    for number, phrase in enumerate(phrases):
        weights[start : start + len(phrase) - 1, number] = 1 / (len(phrase) - 1)
        start += len(phrase)
    return weights


def _check_tokens(
    texts: list[str], prompts: list[list[int]], length: int, unknown: int | None = None
) -> None:
    """Checks the tokens of every name; `unknown` is the token of what the tokenizer lacks."""
    names: dict[tuple[int, ...], str] = {}
    for text, prompt in zip(texts, prompts, strict=True):
        # transformers reports no file that is missing: every word has the same token then.
        if names.setdefault(tuple(prompt), text) != text or unknown in prompt:
            raise InputError(
                f"--detector: expected a tokenizer that knows the names of all objects, found no"
                f" tokens of its own for {text}; are its files complete?"
            )
        if len(prompt) > length:
            raise InputError(
                f"--detector: expected names of at most {length} tokens, found {len(prompt)} in"
                f" {text}; --detector-classes names the objects to search for"
            )


FAMILIES: dict[str, Any] = {
    "owlvit": _Owl,
    "owlv2": _Owl,
    "grounding-dino": _GroundingDino,
    "mm-grounding-dino": _GroundingDino,
}
