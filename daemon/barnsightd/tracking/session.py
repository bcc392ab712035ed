"""A session: the animals of one camera from one start to the next, each with a number of its own.

`Session.step` is SAM 3's video loop (Carion et al., 2025). Detections are matched to where the animals are expected by
their motion, or by what is remembered of them where the session has a memory. That looks for every animal first (as
SAM 3 does), or, `lazy`, only for those that no detection explains beyond doubt: most of the time none. Everything that
is kept is bounded by `max_objects`; numbers start at 1 in each session.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from barnsight_engines.encoder import Features
from barnsight_engines.masks import mask_iou
from barnsightd.tracking.association import Round, assign, box_iou, motion_affinity
from barnsightd.tracking.lifecycle import Target, TrackingSettings
from barnsightd.tracking.overlap import claim_pixels, doubles
from barnsightd.tracking.propagation import MemoryPropagator, carried
from barnsightd.types import Detections, Track, Tracklet, TrackletEnd, TrackSource, TrackState

LONGEST_CHARGED_FRAMES = 2.0
FEWEST_IN_A_SCENE = 3  # animals that must all have gone at once before the scene is said to have changed


class Session:
    """Follows the animals of one camera; one thread steps it, frame by frame.

    `session` is the number that the store gave this session; `memory` is its own, of no other session. `waiting` is how
    many detections, when the detector last looked, asked for a track and found all `max_objects` slots taken.
    """

    def __init__(self, settings: TrackingSettings, *, session: int, memory: MemoryPropagator | None = None) -> None:
        self.settings = settings
        self.session = session
        self.waiting = 0
        self._memory = memory
        self._targets: list[Target] = []
        self._over: list[Tracklet] = []
        self._next_track = 1
        self._started_ns: int | None = None
        self._now_ns = 0
        self._detected_ns: int | None = None
        self._image_size = (0, 0)

    @property
    def tracks(self) -> tuple[Track, ...]:
        """Every track that is alive: tentative, confirmed and lost."""
        return tuple(target.as_track(self._now_ns, self.settings) for target in self._targets)

    @property
    def size_bytes(self) -> int:
        """What the session's memory takes, from its start to its end."""
        return self._memory.size_bytes if self._memory else 0

    def step(
        self, detections: Detections | None, monotonic_ns: int, features: Features | None = None
    ) -> tuple[Track, ...]:
        """Take in one frame and report the confirmed tracks that are visible on it.

        `detections` are None on a frame that the detector skipped: tracks are then carried on, and none is
        blamed for not being found. `features` are the encoder's, which a memory looks at. Raises EngineError.
        """
        if detections is not None:
            self._image_size = detections.image_size
        self._expect(self._age(monotonic_ns, looked=detections is not None))
        sought = self._targets if not self.settings.lazy else []
        self._seek(sought, features)
        if detections is not None:
            charged_s = self._charge(monotonic_ns)
            matches, claims = self._match(detections)
            if self.settings.lazy and self._seek(self._in_doubt(matches, claims), features):
                matches, _ = self._match(detections)
            if self._is_cut(detections, matches):
                self._cut()
                matches = {}
            candidates = self._candidates(detections, matches)
            self._update(detections, matches, monotonic_ns, charged_s)
            self._bear(detections, candidates, monotonic_ns)
        elif self.settings.lazy:
            self._seek([target for target in self._targets if not target.is_at_rest(self.settings)], features)
        self._suppress(monotonic_ns)
        if self._memory is not None and features is not None and detections is not None:
            self._memory.remember(self._targets, features)
        self._end([t for t in self._targets if t.is_over(monotonic_ns, self.settings)], TrackletEnd.LOST)
        return self._report(monotonic_ns)

    def take_tracklets(self) -> tuple[Tracklet, ...]:
        """The tracks that ended since the last call; those that were never confirmed are no animals."""
        over, self._over = tuple(self._over), []
        return over

    def end(self) -> tuple[Tracklet, ...]:
        """End the session and every track in it, and hand over what was not yet taken."""
        self._end(list(self._targets), TrackletEnd.SESSION)
        return self.take_tracklets()

    def _age(self, monotonic_ns: int, *, looked: bool) -> float:
        """Set the clock; seconds since the last step."""
        if self._started_ns is None:
            self._started_ns = self._now_ns = monotonic_ns
        elapsed_s = max(monotonic_ns - self._now_ns, 0) * 1e-9
        self._now_ns = monotonic_ns
        if self._memory is not None:
            looks = (monotonic_ns - self._started_ns) * 1e-9 * self.settings.fps / self.settings.detect_every
            self._memory.begin_frame(round(looks) if looked else None)
        return elapsed_s

    def _charge(self, monotonic_ns: int) -> float:
        """Seconds that a miss costs on this frame: since the detector last looked.

        A gap in the stream is not the animals' fault: it costs them no more than two detections would.
        """
        last_ns = self._detected_ns if self._detected_ns is not None else monotonic_ns
        self._detected_ns = monotonic_ns
        longest_s = LONGEST_CHARGED_FRAMES * self.settings.detect_every / self.settings.fps
        return min(max(monotonic_ns - last_ns, 0) * 1e-9, longest_s)

    def _expect(self, elapsed_s: float) -> None:
        """Where every animal should be by now if it went on moving as it did."""
        for target in self._targets:
            target.motion.predict(elapsed_s)
            target.expect(carried(target, self._image_size), self._image_size)

    def _seek(self, targets: Sequence[Target], features: Features | None) -> bool:
        """Let memory look for animals; whether it did."""
        if self._memory is None or features is None or not targets:
            return False
        self._memory.seek(targets, self._targets, features, self._image_size)
        return True

    def _match(self, detections: Detections) -> tuple[dict[int, int], NDArray[np.float32]]:
        """Which detection each target gets, by index, and the IoU of every expected mask with every detection, (T, D).

        Those in sight come first, then beginners, then the lost and those that memory looked for in vain.
        """
        if not self._targets or not len(detections):
            return {}, np.zeros((len(self._targets), len(detections)), np.float32)
        settings = self.settings
        in_sight = self._are(TrackState.CONFIRMED) & ~np.array([target.missing for target in self._targets])
        beginners = self._are(TrackState.TENTATIVE)
        usable = detections.scores >= settings.min_score
        strong = detections.scores >= settings.strong_score

        masks = mask_iou(self._masks(), detections.mask_logits > 0)  # (T, h, w), (D, h, w) -> (T, D)
        boxes = box_iou(np.stack([target.box_px for target in self._targets]), detections.boxes_px)
        overlap = (masks + boxes) / 2
        nearness = motion_affinity([target.motion for target in self._targets], detections.boxes_px)
        rounds = [
            Round(in_sight, strong, overlap, settings.match_affinity),
            Round(in_sight, usable, overlap, settings.weak_affinity),
            Round(beginners, usable, overlap, settings.match_affinity),
            Round(~beginners, strong, nearness, 0.0),
        ]
        return assign(rounds), masks

    def _in_doubt(self, matches: dict[int, int], claims: NDArray[np.float32]) -> list[Target]:
        """Targets that no detection explains, or one that lies elsewhere, or that another target claims as well."""
        claimants = np.count_nonzero(claims >= self.settings.new_iou, axis=0)  # (T, D) -> (D,)

        def explained(index: int) -> bool:
            d = matches.get(index)
            return d is not None and claims[index, d] >= self.settings.explained_iou and claimants[d] == 1

        return [target for index, target in enumerate(self._targets) if not explained(index)]

    def _is_cut(self, detections: Detections, matches: dict[int, int]) -> bool:
        """Whether the scene changed at once: there are animals, and not one of them is where one was."""
        if matches or any(target.recalled for target in self._targets):
            return False
        strong = np.count_nonzero(detections.scores >= self.settings.strong_score)
        return min(int(strong), int(self._are(TrackState.CONFIRMED).sum())) >= FEWEST_IN_A_SCENE

    def _cut(self) -> None:
        """End every track: what is seen from now on are other animals, or the same ones that identity must tell."""
        self._end(list(self._targets), TrackletEnd.CUT)

    def _end(self, targets: Sequence[Target], end: TrackletEnd) -> None:
        """Take targets out of the session; their slots are free again."""
        for target in targets:
            self._targets.remove(target)
            if self._memory is not None:
                self._memory.forget(target)
            if target.confirmed:
                self._over.append(target.as_tracklet(self.session, end))

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
                target.match(now_ns, box_px, mask_logits, score, charged_s, self.settings)
        self._take_turns(now_ns)

    def _take_turns(self, now_ns: int) -> None:
        """Of the targets that may be remembered for certain again, only the one that waited longest is, on one frame.

        Animals that were born together would else be due together, and hold up a frame.
        """
        due = sorted((target for target in self._targets if target.certain), key=lambda t: t.conditioned_ns)
        for target in due[1:]:
            target.certain = False
        for target in due[:1]:
            target.conditioned_ns = now_ns

    def _bear(self, detections: Detections, candidates: list[int], now_ns: int) -> None:
        """New targets for the candidates, as far as there are slots; the weakest wait for the next frame."""
        free_slots = self.settings.max_objects - len(self._targets)
        self.waiting = max(len(candidates) - free_slots, 0)
        slots = sorted(set(range(self.settings.max_objects)) - {target.slot for target in self._targets})
        for slot, d in zip(slots, candidates, strict=False):
            target = Target.born(self._next_track, slot, now_ns, *_detection(detections, d), self.settings)
            self._targets.append(target)
            self._next_track += 1

    def _suppress(self, now_ns: int) -> None:
        """Two targets on one place, or one that keeps too little of its area: the less believable is hidden."""
        settings = self.settings
        for target in self._targets:
            hidden = target.missing and target.source is TrackSource.PROPAGATED
            target.visible = target.state(settings) != TrackState.LOST and not hidden
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
