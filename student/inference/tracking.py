"""Tracking over the frames of a video: ids of people and objects, and smoothed scores.

The boxes are tracked by ByteTrack (Zhang et al., ECCV 2022) of the package `trackers`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import count

import numpy as np
import supervision
from trackers import ByteTrackTracker

from evaluation.hico.nms import pairwise_nms
from pipeline.boxes import box_iou
from pipeline.types import Detections
from pipeline.vocabulary import Vocabulary
from student.inference.postprocess import SelectionConfig

# ByteTrack's second stage continues tracks with boxes whose score is below the threshold, down to
# this share of it. No track begins with such a box.
LOW_SHARE = 1 / 3
# Boxes of one class with this IoU are one person or object, found by several queries.
SAME_BOX_IOU = 0.7
# Smoothed scores of an action that is no longer detected are forgotten below this score.
MIN_SCORE = 0.01
# ByteTrack scales its buffer of lost tracks from this frame rate to the clip's. Frames are counted
# here, because clips whose rate varies have no frames while nothing moves.
BUFFER_RATE = 30.0

# Ids of a person and an object, 0 for a verb without object.
PairId = tuple[int, int]


@dataclass(frozen=True, eq=False)
class TrackedDetections:
    """Interactions of a frame, in which every person and object has one box.

    Attributes:
        detections: N boxes that the interactions use, K interactions with smoothed scores, in
            descending order.
        ids: (N,) int64 ids from 1, each used once in a clip.
        raw_scores: (K,) float32, the scores before smoothing; 0 where an action is not detected in
            this frame.
        slots: for every pair of rows of the boxes a small number, the same in all frames, and
            different from those of the other pairs at this time.
    """

    detections: Detections
    ids: np.ndarray
    raw_scores: np.ndarray
    slots: dict[tuple[int, int], int]


class PairTracker:
    """Gives ids to the people and objects in successive frames, and smooths the scores of pairs.

    There is a tracker for people, and one for every class of objects, so that objects of different
    classes never share an id. The score of a pair's action is smoothed over the frames in which
    both boxes are found: score = smooth * previous score + (1 - smooth) * detected score. The
    detected score is 0 if the action is missing; the first score is taken as it is.

    Args:
        vocabulary: names of the detections' indices.
        selection: which interactions are kept, by their smoothed scores. Tracks begin with boxes of
            at least its threshold.
        smooth: weight of the previous score, from 0 (no smoothing) to below 1.
        lost_frames: number of frames without its box after which a track ends.
    """

    def __init__(
        self, vocabulary: Vocabulary, selection: SelectionConfig, smooth: float, lost_frames: int
    ) -> None:
        self._vocabulary, self._selection, self._smooth = vocabulary, selection, smooth
        self._lost_frames = lost_frames
        self._low = selection.threshold * LOW_SHARE
        self._trackers: dict[int, ByteTrackTracker] = {}
        self._next_id = count(1)
        self._scores: dict[tuple[PairId, int], float] = {}
        self._slots: dict[PairId, int] = {}

    def update(self, detections: Detections) -> TrackedDetections:
        """Tracks the next frame.

        Args:
            detections: all detections in it, also those with low scores.
        """
        if self._selection.nms is not None:
            detections = pairwise_nms(detections, self._selection.nms)
        likely = detections.scores >= self._low
        hois, scores = detections.hois[likely], detections.scores[likely]
        # A box is as certain as the best of its interactions.
        box_scores = np.full(len(detections.boxes), -1.0)
        for rows in hois[:, :2].T:
            np.maximum.at(box_scores, rows[rows >= 0], scores[rows >= 0])
        # ByteTrack's Kalman filter raises for other boxes.
        is_finite = np.isfinite(detections.boxes).all(axis=1)
        box_scores[~is_finite] = -1.0
        detections = replace(detections, boxes=np.where(is_finite[:, None], detections.boxes, 0))
        same = _merge_boxes(detections, box_scores)
        ids = self._track(detections, box_scores, np.unique(same[box_scores >= 0]))
        # An interaction without object reads the additional last entry.
        id_of_row = np.append(ids[same], 0)
        detected: dict[tuple[PairId, int], float] = {}
        for (human, target, verb), score in zip(hois.tolist(), scores.tolist(), strict=True):
            pair = (int(id_of_row[human]), int(id_of_row[target]))
            is_tracked = pair[0] and (pair[1] or target < 0)
            # Boxes of one person as both sides of a pair are a mistake of the detector.
            if is_tracked and pair[0] != pair[1]:
                key = (pair, verb)
                detected[key] = max(detected.get(key, 0.0), score)
        rows_of_ids = {int(number): row for row, number in enumerate(ids.tolist()) if number}
        return self._select(
            detections, rows_of_ids, self._smooth_scores(detected, rows_of_ids), detected
        )

    def _track(
        self, detections: Detections, box_scores: np.ndarray, rows: np.ndarray
    ) -> np.ndarray:
        """(N,) ids of the rows, 0 for the others and for boxes that belong to no track."""
        ids = np.zeros(len(detections.boxes), dtype=np.int64)
        labels = detections.labels[rows]
        for label in sorted({*self._trackers, *labels.tolist()}):
            of_label = rows[labels == label]
            boxes = detections.boxes[of_label].astype(np.float64)
            tracker = self._trackers.setdefault(label, self._new_tracker())
            found = tracker.update(
                supervision.Detections(
                    xyxy=boxes,
                    confidence=box_scores[of_label],
                    data={"row": np.arange(len(boxes))},
                )
            )
            numbers = np.full(len(boxes), -1)
            if len(boxes):
                numbers[found.data["row"]] = found.tracker_id
            # ByteTrack gives an id to a track with its second box; a pair has one from the start.
            for track in tracker.tracks:
                if track.tracker_id < 0:
                    distances = np.abs(boxes - track.get_state_bbox()).sum(axis=1)
                    row = int(np.where(numbers < 0, distances, np.inf).argmin())
                    track.tracker_id = numbers[row] = next(self._next_id)
            ids[of_label] = np.maximum(numbers, 0)
        return ids

    def _new_tracker(self) -> ByteTrackTracker:
        return ByteTrackTracker(
            lost_track_buffer=self._lost_frames,
            frame_rate=BUFFER_RATE,
            track_activation_threshold=self._selection.threshold,
            minimum_consecutive_frames=1,
            high_conf_det_threshold=self._selection.threshold,
        )

    def _smooth_scores(
        self, detected: dict[tuple[PairId, int], float], rows_of_ids: dict[int, int]
    ) -> dict[tuple[PairId, int], float]:
        """Smoothed scores of the pairs with both boxes in this frame; also updates the state."""
        smoothed = {}
        for key in self._scores | detected:
            (person, target), _ = key
            if person in rows_of_ids and (not target or target in rows_of_ids):
                new = detected.get(key, 0.0)
                if key in self._scores:
                    new = self._smooth * self._scores[key] + (1 - self._smooth) * new
                if key in detected or new >= max(self._low, MIN_SCORE):
                    smoothed[key] = new
                else:
                    del self._scores[key]
        self._scores |= smoothed
        alive = {0} | {one.tracker_id for each in self._trackers.values() for one in each.tracks}
        self._scores = {key: one for key, one in self._scores.items() if alive.issuperset(key[0])}
        self._slots = {pair: one for pair, one in self._slots.items() if alive.issuperset(pair)}
        return smoothed

    def _select(
        self,
        detections: Detections,
        rows_of_ids: dict[int, int],
        smoothed: dict[tuple[PairId, int], float],
        detected: dict[tuple[PairId, int], float],
    ) -> TrackedDetections:
        # "No interaction" is left out only here, because its boxes continue tracks.
        left_out = None if self._selection.no_interaction else self._vocabulary.no_interaction
        likely = [
            (pair, verb)
            for (pair, verb), score in smoothed.items()
            if score >= self._selection.threshold and verb != left_out
        ]
        kept = sorted(likely, key=lambda key: -smoothed[key])[: self._selection.top]
        used = sorted({number for pair, _ in kept for number in pair if number})
        index = {number: row for row, number in enumerate(used)} | {0: -1}
        rows = [rows_of_ids[number] for number in used]
        for pair, _ in kept:
            if pair not in self._slots:
                taken = set(self._slots.values())
                self._slots[pair] = next(slot for slot in count() if slot not in taken)
        return TrackedDetections(
            Detections(
                image_id=detections.image_id,
                boxes=detections.boxes[rows],
                labels=detections.labels[rows],
                hois=np.array(
                    [(index[person], index[target], verb) for (person, target), verb in kept],
                    dtype=np.int64,
                ).reshape(-1, 3),
                scores=np.array([smoothed[key] for key in kept], dtype=np.float32),
            ),
            ids=np.array(used, dtype=np.int64),
            raw_scores=np.array([detected.get(key, 0.0) for key in kept], dtype=np.float32),
            slots={(index[p], index[t]): self._slots[p, t] for (p, t), _ in kept},
        )


def _merge_boxes(detections: Detections, scores: np.ndarray) -> np.ndarray:
    """(N,) for every row the best-scoring row whose box is the same person or object; the row
    itself where the (N,) score is negative."""
    same = np.arange(len(scores))
    is_same = box_iou(detections.boxes, detections.boxes) >= SAME_BOX_IOU
    is_same &= detections.labels[:, None] == detections.labels
    kept: list[int] = []
    for row in np.argsort(-scores, kind="stable")[: int((scores >= 0).sum())].tolist():
        same[row] = next((better for better in kept if is_same[row, better]), row)
        if same[row] == row:
            kept.append(row)
    return same
