"""`VlmTeacher`: an image-text-to-text model of transformers, which is asked about every pair.

For an image of a pair, the Q prompts of its object's interactions differ in their last tokens only.
The image and the tokens that they share are processed once; their keys and values are then repeated
for the Q endings, which are processed in batches.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from inspect import signature
from string import Formatter
from typing import Annotated, Any, Literal

import numpy as np
import torch
from msgspec import Meta
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from pipeline.types import Pairs
from pipeline.utils.errors import InputError, bad_field
from pipeline.utils.files import sha256_of_json
from pipeline.utils.hugging_face import (
    DEFAULT_REVISION,
    PretrainedSource,
    load_pretrained,
    one_line_errors,
)
from pipeline.utils.schema import PositiveFloat, Text
from pipeline.vocabulary import Vocabulary
from teacher_cache.reader.format import INDEPENDENT, SOFTMAX
from teacher_cache.teachers.base import Teacher, TeacherImage
from teacher_cache.teachers.prompts import fill_templates

SETTINGS = "--teacher-set"
# Part of the fingerprint: to be changed with what the code computes.
VERSION = 1
# Default questions, by score and image.
QUESTIONS = {
    ("yes-no", "region"): "Is the person {ing} the {object}? Answer yes or no.",
    ("yes-no", "boxes"): (
        "Is the person in the red box {ing} the {object} in the blue box? Answer yes or no."
    ),
    ("likelihood", "region"): "What is the person doing with the {object}? Answer in a few words.",
    ("likelihood", "boxes"): (
        "What is the person in the red box doing with the {object} in the blue box? Answer in a few"
        " words."
    ),
}
PHRASE = "{ing} the {object}"
HUMAN_COLOUR, OBJECT_COLOUR, BLANK_COLOUR = (255, 0, 0), (0, 0, 255), (127, 127, 127)
# Width of a box's outline, relative to the longer side of the image.
LINE_WIDTH = 0.008
# Image processors refuse, or reduce to nothing, the shorter side of images that are longer.
MAX_ASPECT_RATIO = 16
# Prompts per batch.
CPU_BATCH_SIZE, GPU_BATCH_SIZE = 16, 64
# What scores of a pass with the shared prefix may differ from those of one whole pass by. Logits of
# 16 bits are rounded to about 0.1.
TOLERANCE, HALF_TOLERANCE = 1e-2, 0.5


Size = Annotated[int, Meta(ge=32, le=4096)]


@dataclass(frozen=True, eq=False)
class Prompts:
    """Prompts of Q interactions, at least one.

    Attributes:
        texts: Q texts with the model's placeholder of one image, which the processor replaces by as
            many as the image has tokens.
        ids: Q lists of token ids of the texts, with the placeholder.
        shared: number of first tokens that all of them share and that are processed once.
    """

    texts: tuple[str, ...]
    ids: list[list[int]]
    shared: int

    @property
    def endings(self) -> list[list[int]]:
        """Tokens behind the shared ones, at least one."""
        return [ids[self.shared :] for ids in self.ids]


class VlmTeacher(Teacher):
    """A frozen image-text-to-text model.

    Score "yes-no" asks a question for each interaction of the pair's object. Its probability is
    that of the answer "yes", relative to "yes" and "no", independent of the other verbs. Score
    "likelihood" asks one question; the logit of an interaction is the mean log-likelihood of the
    tokens of its phrase as the answer, less the same for a grey image, and the probabilities are
    their softmax over the interactions of the object.

    Args:
        model: a folder, or a name on the Hugging Face hub.
        score: "yes-no" or "likelihood".
        image: what the model gets for a pair: "region", the square crop of its union box, or
            "boxes", the whole image with the person in a red box and the object in a blue one.
        question: text with `{object}`, and with `{ing}` for "yes-no"; None for that of `QUESTIONS`.
        phrase: text with `{ing}` and `{object}`, for "likelihood".
        temperature: divisor of the logits, or of the log-odds of "yes".
        size: side of the region in pixels, or the longer side of the whole image; the model's
            processor may resize it further.
        precision: precision of weights and activations. The default is that of most published
            weights; it is the same on all devices, because the outputs depend on it.
        revision: branch, tag or commit of the hub's repository.

    Raises:
        InputError: transformers is not installed, no such model, one for another task, without a
            chat template, or without tokens for "yes" and "no"; or a setting is wrong.
    """

    name = "vlm"

    def __init__(
        self,
        device: torch.device,
        model: str,
        score: Literal["yes-no", "likelihood"] = "yes-no",
        image: Literal["region", "boxes"] = "region",
        question: Text | None = None,
        phrase: Text = PHRASE,
        temperature: PositiveFloat = 1.0,
        size: Size = 448,
        precision: Literal["float32", "float16", "bfloat16"] = "bfloat16",
        revision: Text = DEFAULT_REVISION,
    ) -> None:
        super().__init__(device)
        is_yes_no = score == "yes-no"
        question = QUESTIONS[score, image] if question is None else question
        _check_fields("question", question, ("ing", "object") if is_yes_no else ("object",))
        _check_fields("phrase", phrase, ("ing", "object"))
        if is_yes_no and phrase != PHRASE:
            raise bad_field(SETTINGS, "phrase", "none with the score yes-no", phrase)
        self.probabilities = INDEPENDENT if is_yes_no else SOFTMAX
        self.image_size = size if image == "region" else None
        self._size, self._question, self._phrase = size, question, phrase
        self._temperature, self._dtype = temperature, getattr(torch, precision)
        self._source = PretrainedSource(
            model, f"{SETTINGS}: model", "an image-text-to-text model", revision=revision
        )
        loaded = load_pretrained(
            self._source, "AutoModelForImageTextToText", "AutoProcessor", self._dtype
        )
        self._processor = loaded.processor
        template = getattr(loaded.processor, "chat_template", None)
        self._tokenizer: Any = getattr(loaded.processor, "tokenizer", None)
        if template is None or self._tokenizer is None:
            raise self._source.error(ValueError("it has no chat template"))
        self._yes, self._no = self._answer_ids("yes"), self._answer_ids("no")
        self._model = loaded.model.to(device)
        # Its name in newer versions of transformers, and in older ones.
        arguments = signature(self._model.forward).parameters
        self._cache_argument = "cache" if "cache" in arguments else "past_key_values"
        self._blank_scores: dict[tuple[str, ...], Tensor] = {}
        self._is_checked = False
        vocabulary = sorted(self._tokenizer.get_vocab().items())
        self._parts = {
            "model": loaded.model_type,
            "weights": loaded.weights_digest,
            "configuration": sha256_of_json([*loaded.settings, template, vocabulary]),
            "score": score,
            "image": image,
            "question": question,
            "phrase": phrase,
            "temperature": temperature,
            "size": size,
            "precision": precision,
            "version": VERSION,
        }

    def fingerprint(self) -> dict[str, Any]:
        """All settings with their defaults, and digests of the model, its tokenizer and so on."""
        return self._parts

    @torch.inference_mode()
    def score(
        self, images: Sequence[TeacherImage], pairs: Sequence[Pairs], vocabulary: Vocabulary
    ) -> np.ndarray:
        """Probabilities (P, V) of the pairs; those with equal region and object are scored once."""
        with one_line_errors(self._source):
            rows = []
            for image, own in zip(images, pairs, strict=True):
                scored: dict[tuple[int, int], np.ndarray] = {}
                for pair, label in enumerate(own.object_labels.tolist()):
                    region = int(image.region_indices[pair])
                    key = label, pair if image.regions is None else region
                    if key not in scored:
                        if image.regions is None:
                            boxes = own.human_boxes[pair], own.object_boxes[pair]
                            picture = draw_pair(image.pixels, *boxes, self._size)
                        else:
                            pixels = image.regions[region].permute(1, 2, 0)
                            picture = Image.fromarray(pixels.contiguous().cpu().numpy())
                        scored[key] = self._score_picture(picture, label, vocabulary)
                    rows.append(scored[key])
            return np.stack(rows)

    def _score_picture(
        self, picture: Image.Image, label: int, vocabulary: Vocabulary
    ) -> np.ndarray:
        """(V,) probabilities of the verbs with an object."""
        verbs = [
            verb
            for verb, other in vocabulary.interactions
            if other == label and verb != vocabulary.no_interaction
        ]
        row = np.zeros(vocabulary.num_verbs, np.float32)
        if not verbs:
            return row
        ings = [vocabulary.verb_ings[verb] for verb in verbs]
        prompts = self.make_prompts(ings, vocabulary.objects[label])
        if not self._is_checked:
            self._check_shared_prefix(picture, prompts)
            self._is_checked = True
        scores = self.run(picture, prompts)
        if self.probabilities == INDEPENDENT:
            row[verbs] = (scores / self._temperature).sigmoid().numpy()
            return row
        if prompts.texts not in self._blank_scores:
            blank = Image.new("RGB", (self._size, self._size), BLANK_COLOUR)
            self._blank_scores[prompts.texts] = self.run(blank, prompts)
        logits = (scores - self._blank_scores[prompts.texts]) / self._temperature
        row[verbs] = logits.softmax(0).numpy()
        return row

    def make_prompts(self, ings: Sequence[str], object_name: str) -> Prompts:
        """The prompts of an object's interactions, of which `ings` are the verbs' forms."""
        if self.probabilities == INDEPENDENT:
            texts = [self._chat(self._question, ing, object_name) for ing in ings]
            ids = self._tokenize(texts)
            # The answer is read from the output for the last token.
            shared = min(_common_length(ids), *(len(each) - 1 for each in ids))
        else:
            start = self._chat(self._question, "", object_name)
            gap = "" if start[-1:].isspace() else " "
            phrases = [fill_templates([self._phrase], ing, object_name)[0] for ing in ings]
            texts = [f"{start}{gap}{phrase}" for phrase in phrases]
            start_ids, *ids = self._tokenize([start, *texts])
            # The first token of a phrase is read from the output for the token before it.
            shared = _common_length([start_ids, *ids]) - 1
        return Prompts(tuple(texts), ids, shared)

    def _chat(self, template: str, ing: str, object_name: str) -> str:
        """The conversation up to the model's answer, with the placeholder of the image."""
        (text,) = fill_templates([template], ing, object_name)
        content = [{"type": "image"}, {"type": "text", "text": text}]
        messages = [{"role": "user", "content": content}]
        return self._processor.apply_chat_template(messages, add_generation_prompt=True)

    def _tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        return self._tokenizer(list(texts), **self._token_options(texts[0]))["input_ids"]

    def _token_options(self, text: str) -> dict[str, bool]:
        # A template may write the first token, which the tokenizer would add again.
        bos = self._tokenizer.bos_token
        return {"add_special_tokens": bos is None or not text.startswith(bos)}

    def prepare(self, text: str, picture: Image.Image) -> dict[str, Tensor]:
        """The model's inputs for one prompt and image."""
        inputs = self._processor(
            text=[text], images=[picture], return_tensors="pt", **self._token_options(text)
        )
        return {
            name: value.to(self.device, self._dtype if value.is_floating_point() else None)
            for name, value in inputs.items()
        }

    def run(self, picture: Image.Image, prompts: Prompts) -> Tensor:
        """(Q,) float32 scores on the CPU: log-odds, or mean log-likelihoods."""
        from transformers import DynamicCache

        inputs, endings = self.prepare(prompts.texts[0], picture), prompts.endings
        shape = inputs["input_ids"].shape
        length = shape[1] - len(endings[0])
        if inputs["input_ids"][0, length:].tolist() != endings[0]:
            raise ValueError("its prompts do not end with the text")
        prefix = {
            name: value[:, :length] if value.shape == shape else value
            for name, value in inputs.items()
        }
        cache = DynamicCache(config=self._model.config)
        self._forward(cache, **prefix, logits_to_keep=1)
        # Models of the Qwen family number the tokens of an image by rows and columns, so that the
        # next position is not the number of tokens.
        offset = getattr(getattr(self._model, "model", None), "rope_deltas", None)
        size = self.batch_size or (CPU_BATCH_SIZE if self.device.type == "cpu" else GPU_BATCH_SIZE)
        scores = []
        for first in range(0, len(endings), size):
            batch = endings[first : first + size]
            # Padding follows the tokens, which therefore do not attend to it.
            ids = pad_sequence([torch.tensor(each) for each in batch], batch_first=True)
            ids = ids.to(self.device)
            positions = torch.arange(length, length + ids.shape[1], device=self.device)
            positions = positions.expand(ids.shape)
            if offset is not None:
                positions = (positions + offset).expand(3, *ids.shape)
            repeated = copy.deepcopy(cache)
            repeated.batch_repeat_interleave(len(batch))
            logits = self._forward(repeated, input_ids=ids, position_ids=positions)
            scores.append(self._read_scores(logits, batch))
        return torch.cat(scores).cpu()

    def run_whole(self, picture: Image.Image, prompts: Prompts) -> Tensor:
        """(Q,) float32 scores on the CPU, by one pass of the model for each prompt."""
        scores = []
        for text, ending in zip(prompts.texts, prompts.endings, strict=True):
            logits = self._model(**self.prepare(text, picture), use_cache=False).logits
            scores.append(self._read_scores(logits[:, -len(ending) :], [ending]))
        return torch.cat(scores).cpu()

    def _forward(self, cache: Any, **inputs: Any) -> Tensor:
        return self._model(**inputs, **{self._cache_argument: cache}, use_cache=True).logits

    def _read_scores(self, logits: Tensor, endings: Sequence[Sequence[int]]) -> Tensor:
        """(Q,) log-odds of "yes", or mean log-likelihoods of all tokens but the first.

        Args:
            logits: (Q, T, tokens) outputs for the endings, padded to T.
        """
        if self.probabilities == INDEPENDENT:
            last = [len(each) - 1 for each in endings]
            answers = logits[torch.arange(len(endings)), last].float()
            return answers[:, self._yes].logsumexp(1) - answers[:, self._no].logsumexp(1)
        means = []
        for row, ending in zip(logits, endings, strict=True):
            tokens = torch.tensor(ending[1:], device=row.device)
            means.append(-functional.cross_entropy(row[: len(tokens)].float(), tokens))
        return torch.stack(means)

    def _check_shared_prefix(self, picture: Image.Image, prompts: Prompts) -> None:
        """Compares scores with those of one whole pass for each prompt.

        The positions of tokens after a cached prefix are the model's own affair, and a model that
        the tests do not cover might number them in another way.

        Raises:
            InputError: they differ.
        """
        some = Prompts(prompts.texts[:2], prompts.ids[:2], prompts.shared)
        difference = (self.run(picture, some) - self.run_whole(picture, some)).abs().max()
        tolerance = TOLERANCE if self._dtype == torch.float32 else HALF_TOLERANCE
        if not difference <= tolerance:
            reason = f"scores after a cached prefix differ by {difference:.2g} from a whole pass's"
            raise self._source.error(ValueError(reason))

    def _answer_ids(self, word: str) -> list[int]:
        """Tokens that are an answer: the word or the capitalised one, after a space or not."""
        spellings = [gap + each for gap in ("", " ") for each in (word, word.capitalize())]
        encoded = [self._tokenizer(each, add_special_tokens=False).input_ids for each in spellings]
        found = {ids[0] for ids in encoded if len(ids) == 1} - {self._tokenizer.unk_token_id}
        if not found:
            raise self._source.error(ValueError(f"its tokenizer has no token for {word!r}"))
        return sorted(found)


def _common_length(ids: Sequence[Sequence[int]]) -> int:
    """How many first tokens all lists share."""
    places = enumerate(zip(*ids, strict=False))
    return next((place for place, each in places if len(set(each)) > 1), min(map(len, ids)))


def draw_pair(
    image: Image.Image, human_box: np.ndarray, object_box: np.ndarray, size: int
) -> Image.Image:
    """The image with the two xyxy boxes drawn in, its longer side resized to `size`."""
    scale = size / max(image.size)
    width, height = (max(round(side * scale), size // MAX_ASPECT_RATIO) for side in image.size)
    drawn = image.resize((width, height), Image.Resampling.BICUBIC)
    factors = np.tile([width / image.width, height / image.height], 2)
    draw, line = ImageDraw.Draw(drawn), max(2, round(size * LINE_WIDTH))
    for box, colour in ((object_box, OBJECT_COLOUR), (human_box, HUMAN_COLOUR)):
        draw.rectangle((box * factors).tolist(), outline=colour, width=line)
    return drawn


def _check_fields(setting: str, template: str, allowed: Sequence[str]) -> None:
    """Refuses a template without one of the fields, or with others."""
    try:
        found = {name for _, name, _, _ in Formatter().parse(template) if name is not None}
    except ValueError:
        found = set()
    if found != set(allowed):
        fields = " and ".join(f"{{{name}}}" for name in allowed)
        raise InputError(
            f"{SETTINGS}: {setting}: expected a text with {fields}, found {template!r}"
        )
