"""The life of a track: hot start, confirmation, keep-alive, removal (SAM 3's rules, step 4 of its video loop).

A track is born from a strong detection. In its hot start it is removed after a few misses, since a false alarm
rarely comes back; SAM 3 does so to any young track, here a few matches put it beyond doubt. It is confirmed, and
only then reported, after those matches, or at once where the first detection was sure. Every match refills its
keep-alive, every miss drains it; a confirmed track out of sight is lost until it is found again or the keep-alive
has run out. SAM 3 counts frames; here all ages are nominal frames or seconds of the clock, so that a dropped frame
changes nothing. Frames that count for or against a track are those that the detector looks at.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from barnsight_engines.masks import box_px as mask_box_px
from barnsight_engines.masks import mask_iou
from barnsightd.tracking.motion import Motion
from barnsightd.types import Track, Tracklet, TrackletEnd, TrackSource, TrackState

NEVER_NS = -1
USUAL_CUT = 0.5


@dataclass(frozen=True, slots=True)
class TrackingSettings:
    """Thresholds of tracking; scores and shares in 0..1, ages in frames at `fps`.

    `min_score` is what a detection needs to continue a track, `strong_score` to go first, `new_score` to begin
    one, `sure_score` to begin a confirmed one. `kept_share` is how much of its area a detected mask must keep when
    each pixel has gone to one animal, `coast_share` the same for a mask that is only expected.

    With memory, an animal is found where the mask promises an IoU of `recall_iou`, unless that is another one's place,
    by an IoU of `anothers_iou`. It is remembered for certain again every `recondition_frames` where a detection of at
    least `recondition_score` fits what was expected to `recondition_iou`. `lazy` looks only for animals that no
    detection explains, which takes an IoU of `explained_iou` with where they were expected; between detections motion
    carries those that move slower than `rest_sizes_s`, in lengths of their own a second. `memory_slots` keeps fewer
    frames than the tracker can use.
    """

    fps: float = 6.0
    detect_every: int = 1
    max_objects: int = 30
    memory_slots: int | None = None
    lazy: bool = True
    explained_iou: float = 0.5
    recondition_frames: float = 60
    recondition_score: float = 0.8
    recondition_iou: float = 0.8
    recall_iou: float = 0.8
    anothers_iou: float = 0.5
    rest_sizes_s: float = 0.5
    min_score: float = 0.3
    strong_score: float = 0.5
    new_score: float = 0.7
    sure_score: float = 0.85
    match_affinity: float = 0.25
    weak_affinity: float = 0.4
    new_iou: float = 0.3
    double_iou: float = 0.7
    kept_share: float = 0.3
    confirm_matches: int = 3
    hot_start_frames: float = 15
    hot_start_misses: float = 8
    coast_frames: float = 1
    coast_share: float = 0.5
    keep_alive_s: float = 6.0

    def for_detector(self, cut: float) -> TrackingSettings:
        """The same settings for a detector whose own threshold is `cut`.

        Scores are not probabilities: how high they are depends on the network. The defaults are meant for a detector
        that is cut at 0.5, and scale with the threshold that its export chose on validation pictures.
        """
        scale = cut / USUAL_CUT
        return replace(
            self,
            min_score=min(self.min_score * scale, 1.0),
            strong_score=min(self.strong_score * scale, 1.0),
            new_score=min(self.new_score * scale, 1.0),
            sure_score=min(self.sure_score * scale, 1.0),
            recondition_score=min(self.recondition_score * scale, 1.0),
        )


@dataclass(slots=True, eq=False)
class Target:
    """One animal that a session follows; what was last seen of it, what is expected now, and its account.

    `seen_*` come from the last time that it was seen, by the detector or by memory, `detected_*` from the detector's
    last match; `mask_logits` (h, w) and `box_px` (4,) are this frame's. `unseen_frames` counts since the last match,
    `misses` all of its life, `occluded_ns` is when it was last hidden. `visible` says whether this frame's mask is
    worth reporting. `slot` is its place in memory; `sought` says whether memory looked for it on this frame, `recalled`
    whether it was found; `certain` whether this frame is to be remembered for certain, as the last one was that
    `conditioned_ns` tells.
    """

    track: int
    slot: int
    born_ns: int
    motion: Motion
    seen_mask_logits: NDArray[np.float32]
    seen_box_px: NDArray[np.float32]
    seen_center_px: NDArray[np.float64]
    detected_mask_logits: NDArray[np.float32]
    detected_box_px: NDArray[np.float32]
    mask_logits: NDArray[np.float32]
    box_px: NDArray[np.float32]
    score: float
    confirmed: bool
    keep_alive_s: float
    matches: int = 1
    unseen_frames: float = 0.0
    misses: float = 0.0
    occluded_ns: int = NEVER_NS
    source: TrackSource = TrackSource.DETECTED
    visible: bool = True
    sought: bool = False
    recalled: bool = False
    certain: bool = True
    conditioned_ns: int = NEVER_NS
    last_seen_ns: int = NEVER_NS
    score_sum: float = 0.0

    @classmethod
    def born(
        cls,
        track: int,
        slot: int,
        now_ns: int,
        box_px: NDArray[np.float32],
        mask_logits: NDArray[np.float32],
        score: float,
        settings: TrackingSettings,
    ) -> Target:
        """A new animal, from one detection."""
        motion = Motion.at_rest(box_px)
        return cls(
            track=track,
            slot=slot,
            born_ns=now_ns,
            motion=motion,
            seen_mask_logits=mask_logits,
            seen_box_px=box_px,
            seen_center_px=motion.center_px,
            detected_mask_logits=mask_logits,
            detected_box_px=box_px,
            mask_logits=mask_logits,
            box_px=box_px,
            score=score,
            confirmed=score >= settings.sure_score,
            keep_alive_s=settings.keep_alive_s,
            conditioned_ns=now_ns,
            last_seen_ns=now_ns,
            score_sum=score,
        )

    @property
    def missing(self) -> bool:
        """Whether memory looked for the animal on this frame in vain."""
        return self.sought and not self.recalled

    @property
    def moved_px(self) -> NDArray[np.float64]:
        """How far the motion filter carries the animal from where it was last seen, (2,) right and down."""
        return self.motion.center_px - self.seen_center_px

    @property
    def kept_share(self) -> float:
        """How much of the area that was last seen is left in this frame's mask, 0..1."""
        seen = np.count_nonzero(self.seen_mask_logits > 0)
        return float(np.count_nonzero(self.mask_logits > 0) / max(int(seen), 1))

    def expect(self, mask_logits: NDArray[np.float32], image_size: tuple[int, int]) -> None:
        """Begin a frame with what is expected of the animal."""
        height_px, width_px = image_size
        corners_px = self.seen_box_px.reshape(2, 2) + self.moved_px  # left top, right bottom
        self.box_px = np.clip(corners_px, 0, [width_px, height_px]).ravel().astype(np.float32)
        self.mask_logits = mask_logits
        self.source = TrackSource.PROPAGATED
        self.sought = self.recalled = self.certain = False

    def recall(self, mask_logits: NDArray[np.float32], image_size: tuple[int, int]) -> None:
        """Memory looked for the animal and found it.

        A detector's boxes are finer than the grid of masks. So the mask's box is widened, or narrowed, by as much as
        the detector's last box differed from its mask's.
        """
        self.sought = self.recalled = True
        height_px, width_px = image_size
        margins_px = self.detected_box_px - mask_box_px(self.detected_mask_logits, image_size)
        corners_px = (mask_box_px(mask_logits, image_size) + margins_px).reshape(2, 2)
        box_px = np.clip(corners_px, 0, [width_px, height_px]).ravel().astype(np.float32)
        self._see(box_px, mask_logits)

    def lose_sight(self) -> None:
        """Memory looked for the animal and did not find it."""
        self.sought, self.recalled = True, False

    def match(
        self,
        now_ns: int,
        box_px: NDArray[np.float32],
        mask_logits: NDArray[np.float32],
        score: float,
        elapsed_s: float,
        settings: TrackingSettings,
    ) -> None:
        """The animal was detected, `elapsed_s` seconds after the detector last looked."""
        since_conditioned_frames = (now_ns - self.conditioned_ns) * 1e-9 * settings.fps
        if since_conditioned_frames >= settings.recondition_frames and score >= settings.recondition_score:
            expected = mask_iou(self.mask_logits[None] > 0, mask_logits[None] > 0)
            self.certain = bool(expected[0, 0] >= settings.recondition_iou)
        self._see(box_px, mask_logits)
        self.detected_box_px, self.detected_mask_logits = box_px, mask_logits
        self.score = score
        self.score_sum += score
        self.last_seen_ns = now_ns
        self.source = TrackSource.DETECTED
        self.matches += 1
        self.unseen_frames = 0.0
        self.keep_alive_s = min(self.keep_alive_s + elapsed_s, settings.keep_alive_s)
        self.confirmed = self.confirmed or self.matches >= settings.confirm_matches

    def miss(self, now_ns: int, elapsed_s: float, settings: TrackingSettings) -> None:
        """The animal was not detected, `elapsed_s` seconds after the detector last looked."""
        looked_at_frames = elapsed_s * settings.fps / settings.detect_every
        self.unseen_frames += looked_at_frames
        self.misses += looked_at_frames
        self.keep_alive_s -= elapsed_s
        self.occluded_ns = now_ns

    def _see(self, box_px: NDArray[np.float32], mask_logits: NDArray[np.float32]) -> None:
        self.motion.update(box_px)
        self.seen_box_px = self.box_px = box_px
        self.seen_mask_logits = self.mask_logits = mask_logits
        self.seen_center_px = self.motion.center_px

    def hide(self, now_ns: int) -> None:
        """Another animal stands on this one's place: not reported on this frame."""
        self.visible = False
        self.occluded_ns = now_ns

    def age_frames(self, now_ns: int, fps: float) -> int:
        """Nominal frames from birth to now, both counted."""
        return 1 + round((now_ns - self.born_ns) * 1e-9 * fps)

    def state(self, settings: TrackingSettings) -> TrackState:
        """Where the track stands in its life."""
        if not self.confirmed:
            return TrackState.TENTATIVE
        # Half a frame of tolerance: the clock of a camera jitters.
        if self.unseen_frames > settings.coast_frames + 0.5 and not self.recalled:
            return TrackState.LOST
        return TrackState.CONFIRMED

    def is_over(self, now_ns: int, settings: TrackingSettings) -> bool:
        """Whether the track is to be removed: a false alarm in its hot start, or unseen for too long."""
        in_hot_start = self.age_frames(now_ns, settings.fps) <= settings.hot_start_frames * settings.detect_every
        unproven = self.matches < settings.confirm_matches
        false_alarm = in_hot_start and unproven and self.misses >= settings.hot_start_misses
        return false_alarm or self.keep_alive_s <= 0

    def is_at_rest(self, settings: TrackingSettings) -> bool:
        """Whether the animal is in sight and stays where it is."""
        speed_sizes_s = float(np.hypot(*self.motion.velocity_px_s)) / self.motion.size_px
        return self.state(settings) is TrackState.CONFIRMED and speed_sizes_s < settings.rest_sizes_s

    def as_tracklet(self, session: int, end: TrackletEnd) -> Tracklet:
        """What is left of the target once it is over."""
        return Tracklet(
            session=session,
            track=self.track,
            born_ns=self.born_ns,
            last_seen_ns=self.last_seen_ns,
            detections=self.matches,
            mean_score=self.score_sum / self.matches,
            found_share=self.matches / (self.matches + self.misses - self.unseen_frames),
            end=end,
        )

    def as_track(self, now_ns: int, settings: TrackingSettings) -> Track:
        """What the other stages get to know of the target."""
        return Track(
            track=self.track,
            box_px=self.box_px,
            mask_logits=self.mask_logits,
            score=self.score,
            state=self.state(settings),
            age_frames=self.age_frames(now_ns, settings.fps),
            source=self.source,
        )
