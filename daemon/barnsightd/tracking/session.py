"""A session: the animals of one camera from one start to the next, each with a number of its own.

`Session.step` is SAM 3's video loop (Carion et al., 2025) with the detector on every frame and masks carried on
by a `Propagator`. Everything that is kept is bounded by `max_objects`; numbers start at 1 in each session.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from barnsight_engines.masks import mask_iou
from barnsightd.tracking.association import Round, assign, box_iou, motion_affinity
from barnsightd.tracking.lifecycle import Target, TrackingSettings
from barnsightd.tracking.overlap import claim_pixels, doubles
from barnsightd.tracking.propagation import Features, MotionPropagator, Propagator
from barnsightd.types import Detections, Track, TrackSource, TrackState

LONGEST_CHARGED_FRAMES = 2.0


class Session:
    """Follows the animals of one camera; one thread steps it, frame by frame.

    `session` is the number that the store gave this session. `waiting` is how many detections of the last frame
    asked for a track and found all `max_objects` slots taken; `turned_away` sums them over the session.
    """

    def __init__(self, settings: TrackingSettings, *, session: int, propagator: Propagator | None = None) -> None:
        self.settings = settings
        self.session = session
        self.waiting = 0
        self.turned_away = 0
        self._propagator = propagator or MotionPropagator()
        self._targets: list[Target] = []
        self._next_track = 1
        self._now_ns: int | None = None
        self._image_size = (0, 0)

    @property
    def tracks(self) -> tuple[Track, ...]:
        """Every track that is alive: tentative, confirmed and lost."""
        return tuple(target.as_track(self._now_ns or 0, self.settings) for target in self._targets)

    def step(
        self, detections: Detections | None, monotonic_ns: int, features: Features | None = None
    ) -> tuple[Track, ...]:
        """Take in one frame and report the confirmed tracks that are visible on it.

        `detections` are None on a frame that the detector skipped: tracks are then carried on, and none is
        blamed for not being found.
        """
        elapsed_s = self._age(monotonic_ns)
        if detections is not None:
            self._image_size = detections.image_size
        self._predict(elapsed_s, features)
        if detections is not None:
            # A gap in the stream is not the animals' fault: it costs them no more than two frames.
            charged_s = min(elapsed_s, LONGEST_CHARGED_FRAMES / self.settings.fps)
            matches = self._match(detections)
            candidates = self._candidates(detections, matches)
            self._update(detections, matches, monotonic_ns, charged_s)
            self._bear(detections, candidates, monotonic_ns)
        self._suppress(monotonic_ns)
        self._targets = [t for t in self._targets if not t.is_over(monotonic_ns, self.settings)]
        return self._report(monotonic_ns)

    def _age(self, monotonic_ns: int) -> float:
        """Set the clock; seconds since the last step."""
        elapsed_ns = monotonic_ns - self._now_ns if self._now_ns is not None else 0
        self._now_ns = monotonic_ns
        return max(elapsed_ns, 0) * 1e-9

    def _predict(self, elapsed_s: float, features: Features | None) -> None:
        """Where every animal should be by now, and what its mask should be."""
        if not self._targets:
            return
        for target in self._targets:
            target.motion.predict(elapsed_s)
        mask_logits = self._propagator.propagate(self._targets, features, self._image_size)
        for target, logits in zip(self._targets, mask_logits, strict=True):
            target.expect(logits, self._image_size)

    def _match(self, detections: Detections) -> dict[int, int]:
        """Which detection each target gets, by index: those in sight first, then beginners, then the lost."""
        if not self._targets or not len(detections):
            return {}
        settings = self.settings
        in_sight = self._are(TrackState.CONFIRMED)
        beginners = self._are(TrackState.TENTATIVE)
        usable = detections.scores >= settings.min_score
        strong = detections.scores >= settings.strong_score

        masks = mask_iou(self._masks(), detections.mask_logits > 0)  # (T, h, w), (D, h, w) -> (T, D)
        boxes = box_iou(np.stack([target.box_px for target in self._targets]), detections.boxes_px)
        overlap = (masks + boxes) / 2
        nearness = motion_affinity([target.motion for target in self._targets], detections.boxes_px)
        return assign(
            [
                Round(in_sight, strong, overlap, settings.match_affinity),
                Round(in_sight, usable, overlap, settings.weak_affinity),
                Round(beginners, usable, overlap, settings.match_affinity),
                Round(~beginners, strong, nearness, 0.0),
            ]
        )

    def _candidates(self, detections: Detections, matches: dict[int, int]) -> list[int]:
        """Detections that may be new animals, best first: sure enough, nobody's, and no part of a known animal.

        A part is told by its overlap with a matched animal's mask, with the mask that was expected of it, or
        with a better candidate.
        """
        known = list(matches.values())
        free = [
            d
            for d in np.argsort(-detections.scores, kind="stable").tolist()
            if d not in known and detections.scores[d] >= self.settings.new_score
        ]
        if not free:
            return []
        masks = detections.mask_logits > 0
        overlap = mask_iou(masks[free], masks)  # (F, D)
        expected = np.zeros(len(free))
        if matches:
            expected = mask_iou(masks[free], self._masks()[list(matches)]).max(axis=1)  # (F, T) -> (F,)

        candidates: list[int] = []
        for row, d in enumerate(free):
            nearest = max(float(overlap[row, known].max(initial=0)), float(expected[row]))
            if nearest < self.settings.new_iou:
                candidates.append(d)
                known.append(d)
        return candidates

    def _update(self, detections: Detections, matches: dict[int, int], now_ns: int, charged_s: float) -> None:
        """Each target gets its detection or a miss."""
        for index, target in enumerate(self._targets):
            d = matches.get(index)
            if d is None:
                target.miss(now_ns, charged_s, self.settings)
            else:
                box_px, mask_logits, score = _detection(detections, d)
                target.match(box_px, mask_logits, score, charged_s, self.settings)

    def _bear(self, detections: Detections, candidates: list[int], now_ns: int) -> None:
        """New targets for the candidates, as far as there are slots; the weakest wait for the next frame."""
        free_slots = self.settings.max_objects - len(self._targets)
        self.waiting = max(len(candidates) - free_slots, 0)
        self.turned_away += self.waiting
        for d in candidates[:free_slots]:
            target = Target.born(self._next_track, now_ns, *_detection(detections, d), self.settings)
            self._targets.append(target)
            self._next_track += 1

    def _suppress(self, now_ns: int) -> None:
        """Two targets on one place, or one that keeps too little of its area: the less believable is hidden."""
        settings = self.settings
        for target in self._targets:
            target.visible = target.state(settings) != TrackState.LOST
        shown = [target for target in self._targets if target.visible]
        if not shown:
            return

        masks = np.stack([target.mask_logits for target in shown])  # (N, h, w)
        detected = np.array([target.source is TrackSource.DETECTED for target in shown])
        suppressed = np.zeros(len(shown), np.bool_)
        if not detected.all():  # two detections are never doubles: the detector has taken those out
            occluded_ns = np.array([target.occluded_ns for target in shown], np.int64)
            suppressed = doubles(mask_iou(masks > 0, masks > 0), occluded_ns, minimum=settings.double_iou)

        claimed = masks.copy()
        claimed[~suppressed] = claim_pixels(masks[~suppressed], detected[~suppressed])
        least_share = np.where(detected, settings.kept_share, settings.coast_share)
        for target, mask_logits, is_double, least in zip(shown, claimed, suppressed, least_share, strict=True):
            target.mask_logits = mask_logits
            if is_double or target.kept_share < least:
                target.hide(now_ns)

    def _report(self, now_ns: int) -> tuple[Track, ...]:
        """The tracks that are trusted and visible on this frame."""
        return tuple(
            target.as_track(now_ns, self.settings) for target in self._targets if target.confirmed and target.visible
        )

    def _are(self, state: TrackState) -> NDArray[np.bool_]:
        """Which targets are in a state, (T,)."""
        return np.array([target.state(self.settings) is state for target in self._targets])

    def _masks(self) -> NDArray[np.bool_]:
        """This frame's mask of each target, (T, h, w)."""
        return np.stack([target.mask_logits for target in self._targets]) > 0


def _detection(detections: Detections, d: int) -> tuple[NDArray[np.float32], NDArray[np.float32], float]:
    """One detection's box (4,), mask logits (h, w) and score."""
    return detections.boxes_px[d], detections.mask_logits[d], float(detections.scores[d])
