"""Loaded models are tested with detectors and teachers: test_transformers.py and test_vlm.py."""

import sys

import pytest
import torch

from pipeline.utils.errors import InputError
from pipeline.utils.hugging_face import MAX_REASON, PretrainedSource, load_pretrained

SOURCE = PretrainedSource("owner/name", "--detector", "hf: with an object detector", "hf:name")


def test_errors_are_one_short_line():
    text = str(SOURCE.error(ValueError("first line\nsecond " + "x" * 1000)))
    assert text.startswith("--detector: expected hf: with an object detector of transformers")
    assert "found hf:name (ValueError: first line second xxx" in text and text.endswith("...)")
    assert len(text) < MAX_REASON + 160


def test_without_transformers(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(InputError, match=r"--detector: .* for hf:name, .*pip install '\.\[hf\]'"):
        load_pretrained(SOURCE, "AutoModel", "AutoProcessor", torch.float32)
