"""`TextImageTeacher`: teachers that compare embeddings of regions and of sentences, as CLIP does.

The prompts of all interactions are embedded once per build. Regions are cropped and encoded
concurrently, in full batches that may contain regions of several images (EoID section 3.3).
"""

from __future__ import annotations

from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from functools import cache
from itertools import chain
from typing import Any

import numpy as np
import torch
from msgspec import Struct
from torch import Tensor

from pipeline.images import is_large
from pipeline.types import Pairs
from pipeline.utils.errors import bad_field
from pipeline.utils.plugins import describe_plugin, user_errors
from pipeline.utils.schema import Positive, PositiveFloat, convert
from pipeline.vocabulary import Vocabulary
from teacher_cache.reader.cache import PromptEmbeddings
from teacher_cache.reader.soft_targets import action_probabilities
from teacher_cache.teachers.base import Batch, CheckedScores, Teacher, TeacherImage, to_array
from teacher_cache.teachers.prompts import Prompts, embed_prompts
from teacher_cache.teachers.regions import crop_regions

# Batches of images that detection may be ahead of cropping, and batches of regions that cropping
# may be ahead of encoding; they limit the memory.
MAX_BATCHES_CROPPING = 2
MAX_BATCHES_ENCODING = 8
# Threads that crop while a GPU runs the models.
NUM_GPU_WORKERS = 4
# On a CPU; each worker holds a batch in memory.
MAX_CPU_WORKERS = 4
# Regions per batch. On a CPU the activations of larger batches no longer fit its cache.
CPU_BATCH_SIZE, GPU_BATCH_SIZE = 64, 256
# What the norm of an embedding that was normalised in half precision may differ from 1 by.
NORM_TOLERANCE = 1e-2


class _Attributes(Struct):
    """Attributes that a user's class has to set."""

    image_size: int
    batch_size: Positive
    logit_scale: PositiveFloat


class TextImageTeacher(Teacher):
    """A teacher whose scores are cosine similarities of regions and sentences.

    Probabilities are the softmax of the scaled similarities over the actions of a pair's object. A
    subclass needs the methods `encode_texts` and `encode_images` and sets `image_size` and
    `logit_scale`. A cache of such a teacher can be rescored, and a student can have a text head.

    Attributes:
        logit_scale: factor on cosine similarities.
        batch_size: number of regions per batch.
    """

    image_size: int
    batch_size: int
    logit_scale: float

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self.batch_size = GPU_BATCH_SIZE if device.type == "cuda" else CPU_BATCH_SIZE

    @abstractmethod
    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        """N sentences -> (N, D) float32 normalised embeddings."""

    @abstractmethod
    def encode_images(self, regions: Tensor) -> np.ndarray:
        """(N, 3, S, S) uint8 RGB regions on the device -> (N, D) float32 normalised embeddings."""

    def encode_images_async(self, regions: Tensor) -> Callable[[], np.ndarray]:
        """Starts encoding regions; returns a function that waits and returns the embeddings."""
        embeddings = self.encode_images(regions)
        return lambda: embeddings

    def embed_prompts(self, prompts: Prompts) -> PromptEmbeddings:
        """The prompts of the H interactions with their embeddings."""
        return PromptEmbeddings(
            prompts, embed_prompts(prompts, self.embed_sentences), self.logit_scale
        )

    def embed_sentences(self, sentences: Sequence[str]) -> np.ndarray:
        """What `encode_texts` returns, checked.

        Raises:
            InputError: it returns something else than normalised embeddings.
        """
        with user_errors(self, "encode_texts"):
            found = self.encode_texts(sentences)
        embeddings = self._check_embeddings(found, "encode_texts", (len(sentences), None))
        if not np.isfinite(embeddings).all():
            raise bad_field(describe_plugin(self), "encode_texts", "finite embeddings", "others")
        return embeddings

    def start_encoding(self, regions: Tensor) -> Callable[[], np.ndarray]:
        """Like `encode_images_async`; the returned function checks the embeddings.

        Raises:
            InputError: they have another shape than the text embeddings, or are not normalised.
        """
        assert self.text is not None, "the builder gives the teacher the cache's text embeddings"
        shape = len(regions), self.text.embeddings.shape[1]
        with user_errors(self, "encode_images"):
            get_embeddings = self.encode_images_async(regions)

        def get_checked() -> np.ndarray:
            with user_errors(self, "encode_images"):
                embeddings = get_embeddings()
            return self._check_embeddings(embeddings, "encode_images", shape)

        return get_checked

    def check_attributes(self) -> None:
        """See `Plugin.check_attributes`."""
        super().check_attributes()
        values = {name: getattr(self, name, None) for name in _Attributes.__struct_fields__}
        convert(values, _Attributes, describe_plugin(self))

    def _check_embeddings(
        self, found: object, method: str, shape: tuple[int, int | None]
    ) -> np.ndarray:
        """Embeddings of a shape as float32, whose norm is 1 where they are finite."""
        embeddings = to_array(self, found, method, "embeddings", shape)
        norms = np.linalg.norm(embeddings, axis=1)
        wrong = norms[np.isfinite(norms) & (np.abs(norms - 1) > NORM_TOLERANCE)]
        if len(wrong):
            raise bad_field(
                describe_plugin(self), method, "normalised embeddings", f"a norm of {wrong[0]:g}"
            )
        return embeddings

    def score(
        self, images: Sequence[TeacherImage], pairs: Sequence[Pairs], vocabulary: Vocabulary
    ) -> CheckedScores:
        """Probabilities (P, V) of the pairs, and embeddings (R, D) of the regions."""
        (scores,) = self.score_batches([(images, pairs)], vocabulary)
        return scores

    def score_batches(
        self, batches: Iterable[Batch], vocabulary: Vocabulary
    ) -> Iterator[CheckedScores]:
        """Scores of all batches at once, when the last region is encoded.

        The embeddings may not be finite.
        """
        text = self.text
        assert text is not None, "the builder gives the teacher the cache's text embeddings"
        cropping: deque[list[Future[Tensor]]] = deque()
        rows, labels, num_regions = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)], 0
        with worker_pools(self.device) as (crop_pool, encoder_pool):
            encoder = _BatchEncoder(self, self.batch_size, encoder_pool)
            for images, pairs in batches:
                for index, own in enumerate(pairs):
                    rows.append(images[index].region_indices + num_regions)
                    labels.append(own.object_labels)
                    num_regions += len(images[index].region_boxes)
                cropping.append(
                    [
                        crop_pool.submit(
                            crop_regions,
                            image.pixels,
                            image.region_boxes,
                            self.image_size,
                            self.region,
                            self.device,
                            self.interpolation,
                        )
                        for image in images
                    ]
                )
                if len(cropping) > MAX_BATCHES_CROPPING:
                    encoder.add(cropping.popleft())
                follows = self.detector_follows and self.device.type == "cpu"
                if follows or any(is_large(image.pixels) for image in images):
                    wait(list(chain.from_iterable(cropping)))
                if follows:
                    wait(encoder.running)
                # Not held while the next ones are decoded.
                del images
            for futures in cropping:
                encoder.add(futures)
            embeddings = encoder.finish()
        embeddings = embeddings.reshape(-1, text.embeddings.shape[1])
        with np.errstate(invalid="ignore"):
            logits = text.logit_scale * embeddings @ text.embeddings.T
            logits = logits[np.concatenate(rows)]
            yield action_probabilities(logits, np.concatenate(labels), vocabulary), embeddings


class _BatchEncoder:
    """Encodes regions in full batches, which may contain regions of several images."""

    def __init__(self, teacher: TextImageTeacher, batch_size: int, pool: Executor) -> None:
        self._teacher, self._batch_size, self._pool = teacher, batch_size, pool
        self._queued: deque[Tensor] = deque()
        self.running: deque[Future[Callable[[], np.ndarray]]] = deque()
        self._embeddings: list[np.ndarray] = []

    def add(self, cropping: Sequence[Future[Tensor]]) -> None:
        """Adds the (R, 3, S, S) uint8 regions of some images."""
        self._queued += [regions.result() for regions in cropping]
        while sum(map(len, self._queued)) >= self._batch_size:
            batch, missing = [], self._batch_size
            while missing:
                regions = self._queued.popleft()
                batch.append(regions[:missing])
                if len(regions) > missing:
                    self._queued.appendleft(regions[missing:])
                missing -= len(batch[-1])
            self._submit(batch)

    def finish(self) -> np.ndarray:
        """Encodes the rest; (R, D) float32 embeddings in the order in which regions were added."""
        if sum(map(len, self._queued)):
            self._submit(list(self._queued))
        while self.running:
            self._collect_oldest()
        if not self._embeddings:
            return np.zeros((0, 0), np.float32)
        return np.concatenate(self._embeddings)

    def _submit(self, batch: Sequence[Tensor]) -> None:
        self.running.append(self._pool.submit(self._start, batch))
        if len(self.running) > MAX_BATCHES_ENCODING:
            self._collect_oldest()

    def _start(self, batch: Sequence[Tensor]) -> Callable[[], np.ndarray]:
        return self._teacher.start_encoding(torch.cat(list(batch)))

    def _collect_oldest(self) -> None:
        self._embeddings.append(self.running.popleft().result()())


@contextmanager
def worker_pools(device: torch.device) -> Iterator[tuple[Executor, Executor]]:
    """Thread pools for cropping and for encoding.

    With a GPU, one thread encodes and `NUM_GPU_WORKERS` crop. They use a CUDA stream of
    their own, so that their kernels do not wait for the detector's in the caller's stream.

    On a CPU, a few workers do both, and torch's threads are divided among them. Several
    matrix products of few threads each use the cores better than one of many threads, which is as
    slow as its slowest thread.

    When the `with` block raises, running work is awaited and queued work is cancelled.
    """
    threads = torch.get_num_threads()
    if device.type == "cuda":
        stream = _second_stream(device)
        # The models were copied to the device in the caller's stream.
        stream.wait_stream(torch.cuda.current_stream(device))
        pools = [
            ThreadPoolExecutor(count, initializer=_set_cuda_stream, initargs=(device, stream))
            for count in (NUM_GPU_WORKERS, 1)
        ]
    else:
        count = min(threads, MAX_CPU_WORKERS)
        shares = (-(-threads // count),)
        pools = [ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=shares)]
    try:
        yield pools[0], pools[-1]
    except BaseException:
        for pool in pools:
            pool.shutdown(cancel_futures=True)
        raise
    finally:
        for pool in pools:
            pool.shutdown()
        # A worker's setting is the default of every thread that uses torch for the first time.
        torch.set_num_threads(threads)


@cache
def _second_stream(device: torch.device) -> Any:
    """A second stream of a GPU.

    Cached, because torch's allocator reuses memory only within the stream that freed it: a new
    stream for each shard would leave the memory of the last one unused.
    """
    return torch.cuda.Stream(device)


def _set_cuda_stream(device: torch.device, stream: Any) -> None:
    """Sets the current device and stream of a worker thread."""
    torch.cuda.set_device(device)
    torch.cuda.set_stream(stream)
