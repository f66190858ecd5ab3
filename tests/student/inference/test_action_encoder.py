"""Further actions by their sentences, without a page; test_serve.py has a page with them."""

import subprocess
from functools import partial

import pytest
from commands import run_command

from pipeline.utils.errors import InputError
from student.inference.action_encoder import ActionEncoder
from student.inference.detector import Detector
from student.inference.page import _added_actions


@pytest.fixture
def encoder(text_run, text_cache):
    reopen = partial(Detector.open, text_run, "cpu", None, None, None)
    return ActionEncoder(reopen(None), text_cache, reopen)


def test_further_actions_come_from_a_process_of_the_builder(
    encoder, write_new_prompts, sentences, tmp_path, monkeypatch
):
    words = []

    def run(command, **options):
        words.extend(command)
        write_new_prompts({"juggle": ("juggling", {"ball": sentences.embeddings[0]})}, "prompts.h5")
        return subprocess.CompletedProcess(command, 0, "", "")

    known = encoder.open("", tmp_path)
    assert not words
    monkeypatch.setattr(subprocess, "run", run)
    detector = encoder.open(" --device=pulling: chair\n\n pushing over \n", tmp_path)
    assert words[3] == "prompts"
    assert words[5:7] == ["--add=--device=pulling: chair", "--add=pushing over"]
    assert detector.vocabulary.num_interactions == known.vocabulary.num_interactions + 1
    assert _added_actions(known, detector) == ["juggle"]


@pytest.mark.slow
def test_errors_of_further_actions(
    encoder, toy_detector, text_cache, cache_path, tmp_path, monkeypatch
):
    from teacher_cache.cli import main

    # In this process, which has loaded the libraries.
    monkeypatch.setattr(
        subprocess, "run", lambda command, **_: run_command(main, "eoid-cache", *command[3:])
    )
    # The cache was written by hand: its CLIP cannot be loaded.
    with pytest.raises(InputError, match=r"^--clip-model: expected the cache's CLIP") as raised:
        encoder.open("pulling: chair", tmp_path)
    assert str(text_cache) not in str(raised.value)
    with pytest.raises(InputError, match=r"^expected objects of the cache"):
        encoder.open("pulling: unicorn", tmp_path)
    with pytest.raises(InputError, match="at most 1000 characters"):
        encoder.open("x" * 1001, tmp_path)
    with pytest.raises(InputError, match="--verb-head text for --cache, found a linear one"):
        ActionEncoder(toy_detector, text_cache, None)
    with pytest.raises(InputError, match="found another's"):
        ActionEncoder(encoder.open("", tmp_path), cache_path, None)
