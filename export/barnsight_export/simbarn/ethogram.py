"""What the animals do: a small ethogram as a seeded semi-Markov process that drives bodies through the pen.

Each animal holds an intention for a drawn time, then draws the next. Intentions have goals (a trough, the drinker, a
toy, a partner's snout, a free place to lie), and the body follows its head with bounded speed, turning rate and
posture rates: nothing jumps. Upright bodies push apart, so they do not pass through one another. The behavior that is
written as truth is read off the body, by the definitions of the project: walking from 0.15 m/s, running from 0.66
m/s, eating only with the head in the feeder's zone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import Enum

import numpy as np
import numpy.typing as npt

from barnsight_export.simbarn.animals import Animal, Pose
from barnsight_export.simbarn.arrangement import arrange, pressed
from barnsight_export.simbarn.scene import Scene

Vectors = npt.NDArray[np.float64]

WALKING_M_S = 0.15
RUNNING_M_S = 0.66
STEP_S = 0.05  # longest integration step


class Behavior(str, Enum):
    """Names as they are written to the truth."""

    SLEEPING = "sleeping"
    LYING = "lying"
    STANDING = "standing"
    SITTING = "sitting"
    WALKING = "walking"
    RUNNING = "running"
    EATING = "eating"
    DRINKING = "drinking"
    PLAYING = "playing"
    NOSE_TO_NOSE = "nose_to_nose"


# Median seconds of a bout; the draw is log-normal with a spread of half a decade or so.
BOUT_S = {
    Behavior.SLEEPING: 120.0, Behavior.LYING: 45.0, Behavior.STANDING: 5.0, Behavior.SITTING: 8.0,
    Behavior.WALKING: 7.0, Behavior.RUNNING: 3.0, Behavior.EATING: 20.0, Behavior.DRINKING: 9.0,
    Behavior.PLAYING: 12.0, Behavior.NOSE_TO_NOSE: 7.0,
}  # fmt: skip
# Chance of the next intention from each posture; rows need not sum to one.
NEXT_WHEN_UP = {
    Behavior.LYING: 0.16, Behavior.STANDING: 0.14, Behavior.SITTING: 0.04, Behavior.WALKING: 0.26,
    Behavior.RUNNING: 0.05, Behavior.EATING: 0.15, Behavior.DRINKING: 0.07, Behavior.PLAYING: 0.07,
    Behavior.NOSE_TO_NOSE: 0.06,
}  # fmt: skip
NEXT_WHEN_DOWN = {Behavior.SLEEPING: 0.5, Behavior.LYING: 0.2, Behavior.STANDING: 0.2, Behavior.SITTING: 0.1}
ZONE_OF = {Behavior.EATING: "feeder", Behavior.DRINKING: "drinker", Behavior.PLAYING: "toy"}
RECUMBENT = (Behavior.SLEEPING, Behavior.LYING)
CRUISE_M_S = {
    "pig": {Behavior.RUNNING: 1.15, Behavior.WALKING: 0.38},
    "cow": {Behavior.RUNNING: 1.4, Behavior.WALKING: 0.6},
}


@dataclass(frozen=True, slots=True)
class State:
    """One animal on one frame: its pose and what the truth says about it."""

    pose: Pose
    behavior: Behavior
    speed_m_s: float


@dataclass(slots=True)
class _Actor:
    animal: Animal
    pose: Pose
    intention: Behavior
    left_s: float
    goal: Vectors | None = None  # where the snout wants to be
    partner: int | None = None
    speed_m_s: float = 0.0
    turning_rad_s: float = 0.0
    stuck_s: float = 0.0
    wanted_roll_rad: float = 0.0
    wanted_head_rad: float = 0.0

    @property
    def position(self) -> Vectors:
        return np.array([self.pose.x_m, self.pose.y_m])

    @property
    def ahead(self) -> Vectors:
        return np.array([np.cos(self.pose.heading_rad), np.sin(self.pose.heading_rad)])

    @property
    def snout(self) -> Vectors:
        turn = self.pose.heading_rad + self.pose.bend_rad + 0.7 * self.pose.head_yaw_rad
        head = np.array([np.cos(turn), np.sin(turn)])
        return self.position + self.animal.length_m * (0.24 * self.ahead + 0.27 * head)

    @property
    def down(self) -> bool:
        return self.pose.upright < 0.5


class Herd:
    """A herd living in a scene; ``states`` advances it frame by frame. Same scene and seed, same life."""

    def __init__(self, scene: Scene, seed: int) -> None:
        self.scene = scene
        self.rng = np.random.default_rng([seed, scene.spec.day, 0xE7])
        self.half_pen = np.array(scene.pen_m) / 2
        found = pressed(scene, arrange(scene, self.rng))  # who lies down later may still lie into another
        self.actors = [self._settled(animal, pose) for animal, pose in zip(scene.herd, found, strict=True)]
        for _ in range(30):  # let bodies that stand over each other slide apart before the first frame
            self._separate()

    def states(self, frames: int, fps: float) -> Iterator[tuple[State, ...]]:
        """The herd on each of ``frames`` frames; frame 0 is the herd as it was found."""
        steps = max(int(np.ceil(1.0 / fps / STEP_S)), 1)
        for frame in range(frames):
            before = [actor.position for actor in self.actors]
            if frame:
                for _ in range(steps):
                    self._step(1.0 / fps / steps)
            moved = [
                float(np.linalg.norm(actor.position - p)) * fps for actor, p in zip(self.actors, before, strict=True)
            ]
            yield tuple(
                State(actor.pose, self._behavior(actor, speed), speed)
                for actor, speed in zip(self.actors, moved, strict=True)
            )

    # -- intentions ---------------------------------------------------------------------------------------------------

    def _settled(self, animal: Animal, pose: Pose) -> _Actor:
        if pose.upright < 0.5:
            doing = Behavior.SLEEPING if self.rng.random() < 0.5 else Behavior.LYING
        elif pose.sit > 0.5:
            doing = Behavior.SITTING
        else:
            doing = Behavior.STANDING
        actor = _Actor(animal, pose, doing, float(self.rng.uniform(0.1, 1.0) * BOUT_S[doing]))
        actor.wanted_roll_rad, actor.wanted_head_rad = pose.roll_rad, pose.head_yaw_rad
        return actor

    def _choose(self, actor: _Actor) -> None:
        """Draw the next intention and its goal; one that has no goal here becomes standing."""
        table = NEXT_WHEN_DOWN if actor.down else NEXT_WHEN_UP
        names = [b for b in table if b not in ZONE_OF or ZONE_OF[b] in self.scene.zones_m]
        if actor.animal.species == "cow":  # cattle do not sit
            names.remove(Behavior.SITTING)
        shares = np.array([table[b] for b in names])
        intention = names[int(self.rng.choice(len(names), p=shares / shares.sum()))]
        goal: Vectors | None = None
        partner: int | None = None
        if intention in ZONE_OF:
            goal = self._place_in(ZONE_OF[intention])
        elif intention in (Behavior.WALKING, Behavior.RUNNING):
            goal = self.rng.uniform(-1, 1, 2) * np.maximum(self.half_pen - 0.3 * actor.animal.length_m, 0.1)
        elif intention is Behavior.NOSE_TO_NOSE:
            others = [k for k, other in enumerate(self.actors) if other is not actor and not other.down]
            if others:
                partner = others[int(self.rng.integers(len(others)))]
            else:
                intention = Behavior.STANDING
        elif intention is Behavior.LYING and not actor.down:
            goal = self._free_place(actor)
        if intention is Behavior.LYING and self.rng.random() < 0.6:
            on_side = actor.animal.species == "pig" and self.rng.random() < 0.6
            actor.wanted_roll_rad = float(self.rng.choice([-1, 1]) * (1.4 if on_side else 0.2))
        actor.intention, actor.goal, actor.partner, actor.stuck_s = intention, goal, partner, 0.0
        actor.left_s = float(BOUT_S[intention] * np.exp(self.rng.normal(0, 0.5)))

    def _place_in(self, zone: str) -> Vectors:
        corners = np.array(self.scene.zones_m[zone])
        low = np.maximum(corners.min(axis=0), -self.half_pen)
        high = np.minimum(corners.max(axis=0), self.half_pen)
        return np.asarray(low + self.rng.uniform(0.15, 0.85, 2) * (high - low))

    def _free_place(self, actor: _Actor) -> Vectors:
        """The emptiest of some places, other bodies considered: where it wants to lie down."""
        tries = self.rng.uniform(-1, 1, (12, 2)) * np.maximum(self.half_pen - 0.4 * actor.animal.length_m, 0.1)
        tries = np.concatenate([tries, actor.snout[None]])
        others = np.array([other.position for other in self.actors if other is not actor]).reshape(-1, 2)
        if not len(others):
            return np.asarray(tries[0])
        room = np.linalg.norm(tries[:, None] - others[None], axis=2).min(axis=1)
        return np.asarray(tries[int(np.argmax(room))])

    def _behavior(self, actor: _Actor, speed_m_s: float) -> Behavior:
        """The truth by definition: posture and speed first, then what the head is at."""
        if actor.pose.upright < 0.5:
            return Behavior.SLEEPING if actor.intention is Behavior.SLEEPING else Behavior.LYING
        if actor.pose.sit > 0.5:
            return Behavior.SITTING
        if speed_m_s >= RUNNING_M_S:
            return Behavior.RUNNING
        if speed_m_s >= WALKING_M_S:
            return Behavior.WALKING
        if actor.intention in ZONE_OF and self._in_zone(actor, ZONE_OF[actor.intention]):
            return actor.intention
        if any(self._touching(actor, other) for other in self.actors if other is not actor):
            return Behavior.NOSE_TO_NOSE
        return Behavior.STANDING

    def _in_zone(self, actor: _Actor, zone: str) -> bool:
        corners = np.array(self.scene.zones_m[zone])
        return bool((actor.snout >= corners.min(axis=0)).all() and (actor.snout <= corners.max(axis=0)).all())

    def _touching(self, actor: _Actor, other: _Actor) -> bool:
        """Snout at snout, and at least one of the two meant it."""
        meant = self._meets(actor, other) or self._meets(other, actor)
        reach = 0.16 * (actor.animal.length_m + other.animal.length_m) / 2
        return meant and float(np.linalg.norm(actor.snout - other.snout)) < reach

    def _meets(self, actor: _Actor, other: _Actor) -> bool:
        return actor.partner is not None and self.actors[actor.partner] is other

    # -- motion -------------------------------------------------------------------------------------------------------

    def _step(self, dt_s: float) -> None:
        circles = np.array([_circles(actor) for actor in self.actors])  # (N, 4, 2)
        for k, actor in enumerate(self.actors):
            if actor.partner is not None:
                other = self.actors[actor.partner]
                actor.goal = other.snout if not other.down else None
            self._count_down(actor, dt_s)
            others = [j for j in range(len(self.actors)) if j not in (k, actor.partner)]
            self._move(actor, dt_s, circles[others].reshape(-1, 2))
            self._hold(actor, dt_s)
        self._separate()

    def _count_down(self, actor: _Actor, dt_s: float) -> None:
        """A bout lasts from arrival at its goal; who gets nowhere gives up."""
        arrived = actor.goal is None or float(np.linalg.norm(actor.goal - actor.snout)) < 0.12 * actor.animal.length_m
        if actor.intention in (Behavior.WALKING, Behavior.RUNNING):
            arrived = not arrived  # walking is the way itself
        if arrived:
            actor.left_s -= dt_s
        blocked = actor.goal is not None and actor.speed_m_s < 0.05 and not actor.down
        actor.stuck_s = actor.stuck_s + dt_s if blocked and not arrived else 0.0
        walked = actor.intention in (Behavior.WALKING, Behavior.RUNNING) and not arrived
        if actor.left_s <= 0 or actor.stuck_s > 3.0 or walked:
            if actor.intention is Behavior.LYING and not actor.down:
                actor.goal, actor.left_s, actor.stuck_s = None, BOUT_S[Behavior.LYING], 0.0  # lie down right here
            else:
                self._choose(actor)

    def _move(self, actor: _Actor, dt_s: float, obstacles_m: Vectors) -> None:
        """Steer the head to the goal with bounded acceleration and turning; only an upright body walks."""
        pose, length = actor.pose, actor.animal.length_m
        wanted_speed, wanted_turn = 0.0, 0.0
        standing = pose.upright > 0.95 and pose.sit < 0.05
        if actor.goal is not None and standing:
            way = actor.goal - actor.snout
            distance = float(np.linalg.norm(way))
            course = actor.goal - actor.position
            error = _wrapped(float(np.arctan2(course[1], course[0])) - pose.heading_rad)
            cruise = CRUISE_M_S[actor.animal.species]
            top = cruise[Behavior.RUNNING if actor.intention is Behavior.RUNNING else Behavior.WALKING]
            facing = max(float(np.cos(error)), 0.0) ** 2
            if distance > 0.08 * length:
                wanted_speed = top * min(distance / (0.3 * length), 1.0) * (0.12 + 0.88 * facing)
                wanted_turn = float(np.clip(1.8 * error, -1.4, 1.4))
            avoid_turn, slow = _avoidance(actor, obstacles_m)
            wanted_turn += avoid_turn
            wanted_speed *= slow
        actor.speed_m_s += float(np.clip(wanted_speed - actor.speed_m_s, -1.5 * dt_s, 1.0 * dt_s))
        actor.turning_rad_s += float(np.clip(wanted_turn - actor.turning_rad_s, -5 * dt_s, 5 * dt_s))
        if not standing:
            actor.speed_m_s, actor.turning_rad_s = 0.0, 0.0
        step = actor.speed_m_s * dt_s * actor.ahead
        actor.pose = replace(
            pose,
            x_m=pose.x_m + float(step[0]),
            y_m=pose.y_m + float(step[1]),
            heading_rad=pose.heading_rad + actor.turning_rad_s * dt_s,
            gait=pose.gait + actor.speed_m_s * dt_s / (0.5 * length),
        )

    def _hold(self, actor: _Actor, dt_s: float) -> None:
        """Posture, head and legs follow the intention at their own rates."""
        pose, doing = actor.pose, actor.intention
        arrived = actor.goal is None or actor.stuck_s > 0 or doing not in RECUMBENT
        lies = doing in RECUMBENT and (actor.down or (arrived and actor.goal is None) or self._at_goal(actor))
        sits = doing is Behavior.SITTING
        upright, roll, sit = 0.0 if lies else 1.0, actor.wanted_roll_rad if lies else 0.0, 1.0 if sits else 0.0
        if not lies and abs(pose.roll_rad) > 0.25:
            upright = pose.upright  # first off the side, then up
        if lies and pose.upright > 0.2:
            roll = pose.roll_rad
        if doing is not Behavior.SLEEPING and self.rng.random() < 0.35 * dt_s:
            actor.wanted_head_rad = float(self.rng.normal(0, 0.4))
        head, pitch = actor.wanted_head_rad, -0.1
        if actor.speed_m_s > WALKING_M_S:
            head = 0.35 * actor.turning_rad_s
        at_work = doing in ZONE_OF and self._in_zone(actor, ZONE_OF[doing])
        if at_work:
            phase = 9.0 * actor.left_s
            head = {Behavior.PLAYING: 0.35 * np.sin(0.5 * phase)}.get(doing, 0.06 * np.sin(0.7 * phase))
            pitch = -0.7 + 0.08 * np.sin(phase) if doing is Behavior.EATING else -0.15 + 0.05 * np.sin(phase)
        if doing is Behavior.SLEEPING:
            head, pitch = pose.head_yaw_rad, pose.head_pitch_rad
        bend = 0.3 * actor.turning_rad_s if not lies else pose.bend_rad
        actor.pose = replace(
            pose,
            upright=_toward(pose.upright, upright, 0.7 * dt_s),
            roll_rad=_toward(pose.roll_rad, roll, 0.8 * dt_s),
            sit=_toward(pose.sit, sit, 0.8 * dt_s),
            bend_rad=_toward(pose.bend_rad, bend, 0.8 * dt_s),
            head_yaw_rad=_toward(pose.head_yaw_rad, float(head), 1.2 * dt_s),
            head_pitch_rad=_toward(pose.head_pitch_rad, float(pitch), 1.2 * dt_s),
            stride=_toward(pose.stride, min(actor.speed_m_s / 0.35, 1.0), 2.5 * dt_s),
            lift_m=_toward(pose.lift_m, pose.lift_m if lies else 0.0, 0.1 * dt_s),
        )

    def _at_goal(self, actor: _Actor) -> bool:
        return actor.goal is None or float(np.linalg.norm(actor.goal - actor.snout)) < 0.15 * actor.animal.length_m

    def _separate(self) -> None:
        """Push circles along the spines apart and into the pen; recumbent bodies do not move and may lie together."""
        if not self.actors:
            return
        circles = np.array([_circles(actor) for actor in self.actors])  # (N, 4, 2)
        radius = np.array([0.115 * actor.animal.length_m * actor.animal.girth for actor in self.actors])
        away = circles[:, None, :, None] - circles[None, :, None]  # (N, N, 4, 4, 2)
        distance = np.sqrt((away**2).sum(axis=4)) + 1e-9
        depth = np.maximum((radius[:, None] + radius[None])[:, :, None, None] - distance, 0)
        for i, j in np.argwhere(np.tril(depth.any(axis=(2, 3)), -1)).tolist():
            a, b = self.actors[i], self.actors[j]
            if a.down and b.down:
                continue
            push = away[i, j] / distance[i, j][..., None] * depth[i, j][..., None] * 0.5  # (4, 4, 2)
            share = 0.5 if a.down == b.down else float(b.down)
            self._pushed(a, circles[i], push.sum(axis=1) * share)
            self._pushed(b, circles[j], -push.sum(axis=0) * (1 - share))
        over = np.maximum(np.abs(circles) + 0.8 * radius[:, None, None] - self.half_pen, 0) * -np.sign(circles)
        for k in np.flatnonzero(over.any(axis=(1, 2))).tolist():
            if not self.actors[k].down:
                self._pushed(self.actors[k], circles[k], over[k])

    @staticmethod
    def _pushed(actor: _Actor, points: Vectors, push: Vectors) -> None:
        """Shift and turn a body by pushes (4, 2) at its circles, at most 4 cm and 0.06 rad at a time."""
        shift = push.mean(axis=0) * 1.5
        norm = float(np.linalg.norm(shift))
        shift *= min(0.04 / norm, 1.0) if norm else 0.0
        arm = points - actor.position
        torque = float((arm[:, 0] * push[:, 1] - arm[:, 1] * push[:, 0]).sum() / ((arm**2).sum() + 1e-9))
        actor.pose = replace(
            actor.pose,
            x_m=actor.pose.x_m + float(shift[0]),
            y_m=actor.pose.y_m + float(shift[1]),
            heading_rad=actor.pose.heading_rad + float(np.clip(0.5 * torque, -0.06, 0.06)),
        )


def _circles(actor: _Actor) -> Vectors:
    """Four centers along the body from rump to head: (4, 2) in meters."""
    along = np.array([-0.34, -0.12, 0.10, 0.34])
    turn = actor.pose.heading_rad + actor.pose.bend_rad * along / 0.45
    offset = np.stack([np.cos(turn), np.sin(turn)], axis=1) * along[:, None] * actor.animal.length_m
    return np.asarray(actor.position + offset)


def _avoidance(actor: _Actor, obstacles_m: Vectors) -> tuple[float, float]:
    """Turn away from, and slow down before, points of bodies ahead: turning rate in rad/s and a factor on speed."""
    reach = 0.42 * actor.animal.length_m
    away = obstacles_m - (actor.position + 0.75 * actor.animal.length_m * actor.ahead)
    push = np.maximum(1 - np.sqrt((away**2).sum(axis=1)) / reach, 0)
    left = np.array([-actor.ahead[1], actor.ahead[0]])
    turn = -0.53 * float((push * np.where(away @ left >= 0, 1, -1)).sum())
    return float(np.clip(turn, -1.5, 1.5)), 1 - 0.75 * float(push.max(initial=0.0))


def _wrapped(angle_rad: float) -> float:
    return float((angle_rad + np.pi) % (2 * np.pi) - np.pi)


def _toward(value: float, wanted: float, most: float) -> float:
    return value + float(np.clip(wanted - value, -most, most))
