import threading

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.types import Pairs
from pipeline.utils.errors import InputError
from teacher_cache.teachers.base import TeacherImage
from teacher_cache.teachers.prompts import interaction_prompts
from teacher_cache.teachers.text_image import MAX_CPU_WORKERS, TextImageTeacher, worker_pools

CPU = torch.device("cpu")


class Corners(TextImageTeacher):
    """Embeds everything as one of two unit vectors, by what the tests put in place of them."""

    image_size, logit_scale = 4, 10.0
    texts = images = None

    def __init__(self):
        super().__init__(CPU)

    def encode_texts(self, texts):
        return np.eye(2)[np.arange(len(texts)) % 2] if self.texts is None else self.texts(texts)

    def encode_images(self, regions):
        return torch.eye(2)[[0] * len(regions)] if self.images is None else self.images(regions)


@pytest.fixture
def score(vocabulary):
    """`score(teacher)`: probabilities and embeddings of three pairs in two regions."""

    def run(teacher):
        teacher.text = teacher.embed_prompts(interaction_prompts(vocabulary))
        boxes, ones = np.array([[0, 0, 4, 4]] * 3, np.float32), np.ones(3, np.float32)
        pairs = Pairs(boxes, boxes, np.array([1, 2, 3]), ones, ones, np.ones(3, np.uint8))
        image = TeacherImage("a.jpg", Image.new("RGB", (8, 6)), boxes[:2], np.array([0, 1, 1]))
        return teacher.score([image], [pairs], vocabulary)

    return run


def test_embeddings_may_be_tensors(score):
    probabilities, embeddings = score(Corners())
    np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-6)
    assert embeddings.tolist() == [[1, 0], [1, 0]] and probabilities.dtype == np.float32


@pytest.mark.parametrize(
    ("method", "function", "text"),
    [
        ("texts", lambda given: np.eye(2), r"embeddings of shape \(50, D\), found \(2, 2\)"),
        ("texts", lambda given: None, r"embeddings of shape \(50, D\), found NoneType"),
        ("texts", lambda given: np.full((50, 2), np.nan), "finite embeddings"),
        ("texts", lambda given: np.ones((50, 2)), "normalised embeddings, found a norm of 1.41"),
        ("texts", lambda given: 1 / 0, "no error, found ZeroDivisionError"),
        ("images", lambda given: np.eye(2)[:1], r"embeddings of shape \(2, 2\), found \(1, 2\)"),
        ("images", lambda given: np.eye(3)[:2], r"embeddings of shape \(2, 2\), found \(2, 3\)"),
        ("images", lambda given: np.ones((2, 2)), "normalised embeddings, found a norm of 1.41"),
        ("images", lambda given: 1 / 0, "no error, found ZeroDivisionError"),
    ],
)
def test_other_embeddings_are_refused(score, method, function, text):
    teacher = Corners()
    setattr(teacher, method, function)
    with pytest.raises(InputError, match=f"teacher Corners: encode_{method}: expected {text}"):
        score(teacher)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("image_size", None),
        ("logit_scale", "big"),
        ("logit_scale", float("nan")),
        ("batch_size", 0),
    ],
)
def test_missing_and_wrong_attributes(name, value):
    teacher = Corners()
    teacher.check_attributes()
    setattr(teacher, name, value)
    with pytest.raises(InputError, match=f"teacher Corners: {name}: expected"):
        teacher.check_attributes()


@pytest.fixture(params=[1, 2, 3, 6])
def threads(request):
    """Number of torch's threads in this process."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_workers_on_a_cpu_share_torchs_threads(threads):
    barrier = threading.Barrier(min(threads, MAX_CPU_WORKERS), timeout=60)

    def work():
        barrier.wait()
        return threading.current_thread().name, torch.get_num_threads()

    with worker_pools(CPU) as (pool, _):
        futures = [pool.submit(work) for _ in range(barrier.parties)]
        names, thread_counts = zip(*(future.result() for future in futures), strict=True)
        assert torch.get_num_threads() == threads
    assert len(set(names)) == barrier.parties
    assert sum(thread_counts) - len(thread_counts) < threads <= sum(thread_counts)
    assert torch.get_num_threads() == threads


def test_an_exception_cancels_queued_work():
    started, resume, done = threading.Event(), threading.Event(), []

    def first():
        started.set()
        resume.wait(60)
        done.append("first")

    with pytest.raises(KeyboardInterrupt), worker_pools(CPU) as (pool, _):
        pool.submit(first)
        later = pool.submit(done.append, "later")
        assert started.wait(60)
        threading.Timer(0.05, resume.set).start()
        raise KeyboardInterrupt
    assert done == ["first"] and later.cancelled()
