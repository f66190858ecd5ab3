"""Opens a student again with further actions, which are given as sentences.

A sentence has to be embedded by the teacher's CLIP, which the student never imports. With a teacher
cache at hand, `eoid-cache prompts` therefore runs on it, in a process of its own, and the student
is opened with the prompts file that this writes.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from pipeline.utils.errors import InputError
from pipeline.utils.logging import get_logger
from student.inference.detector import Detector
from student.models.text_head import TextVerbHead
from teacher_cache.reader.cache import open_cache

logger = get_logger(__name__)

MAX_ACTIONS_TEXT = 1000
# `eoid-cache`, which need not be on the path of a service.
ENCODE = "from teacher_cache.cli import main; main()"
ENCODER_SECONDS = 600


class ActionEncoder:
    """Opens the student with further actions, whose sentences a teacher cache's CLIP embeds.

    Args:
        detector: a student with a text verb head.
        cache: a teacher cache of the CLIP that it was trained with.
        open_detector: opens the student with a prompts file, or without one.

    Raises:
        InputError: the student has another verb head, or the cache is another CLIP's.
    """

    def __init__(
        self, detector: Detector, cache: Path, open_detector: Callable[[Path | None], Detector]
    ) -> None:
        model = detector.predictor.model
        if not isinstance(model.verb_head, TextVerbHead):
            raise InputError(
                f"{detector.file}: expected a student trained with --verb-head text for --cache,"
                " found a linear one"
            )
        if open_cache(cache).text_model != model.config.text_model:
            raise InputError(
                f"{cache}: expected a cache of the CLIP that {detector.file} was trained with,"
                " found another's"
            )
        self._cache, self._open_detector = cache, open_detector

    def open(self, actions: str, folder: Path) -> Detector:
        """Opens the student with the actions of a text, one per line, in the form of `--add`.

        Args:
            actions: an empty text opens the student as it was trained.
            folder: for the prompts file.

        Raises:
            InputError: an action is not accepted, or the CLIP cannot be loaded.
        """
        lines = [line.strip() for line in actions.splitlines() if line.strip()]
        if not lines:
            return self._open_detector(None)
        if len(actions) > MAX_ACTIONS_TEXT:
            raise InputError(f"expected at most {MAX_ACTIONS_TEXT} characters of actions")
        file = folder / "prompts.h5"
        # With "=", an action that begins with a dash is no option.
        words = [f"--add={line}" for line in lines]
        done = subprocess.run(
            [
                *(sys.executable, "-c", ENCODE, "prompts", str(self._cache), *words),
                *("--out", str(file), "--overwrite", "--device", "cpu"),
            ],
            capture_output=True,
            text=True,
            timeout=ENCODER_SECONDS,
        )
        if done.returncode:
            logger.debug(done.stderr.strip())
            reason = (done.stderr.strip().splitlines() or ["eoid-cache: it ended early"])[-1]
            text = reason.partition(": ")[2].removeprefix("--add: ")
            raise InputError(text.replace(str(self._cache), "the cache"))
        return self._open_detector(file)
