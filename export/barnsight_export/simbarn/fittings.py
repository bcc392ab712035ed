"""What stands and hangs in a pen: fences, troughs, drinkers, toys, stalls, pipes, people, and layouts made of them.

Everything is built of three shapes that the renderer intersects exactly: painted panels, pipes and balls. A layout is a
family of pens; families are split between train, val and test like the floors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from barnsight_export.simbarn.textures import FLOORS, Bytes, Rng, panel_paint

Color = tuple[float, float, float]
Point = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Panel:
    """A painted rectangle: ``corner + u * edge_u + v * edge_v``; paint (h, w, 4) is open where alpha is 0."""

    corner: Point
    edge_u: Point
    edge_v: Point
    paint: Bytes


@dataclass(frozen=True, slots=True)
class Pipe:
    start: Point
    end: Point
    radius_m: float
    color: Color


@dataclass(frozen=True, slots=True)
class Ball:
    center: Point
    radii_m: Point
    color: Color


METALS: tuple[Color, ...] = (
    (0.62, 0.63, 0.64),
    (0.4, 0.41, 0.43),
    (0.2, 0.21, 0.23),
    (0.5, 0.42, 0.34),
    (0.75, 0.74, 0.7),
)
PAINTS: tuple[Color, ...] = (
    (0.7, 0.15, 0.12), (0.12, 0.3, 0.6), (0.85, 0.7, 0.1), (0.1, 0.45, 0.25), (0.85, 0.85, 0.82), (0.1, 0.1, 0.1),
    (0.9, 0.45, 0.1),
)  # fmt: skip


@dataclass(slots=True)
class Fittings:
    """What stands and hangs in a pen while it is being built."""

    rng: Rng
    width_m: float
    depth_m: float
    scale: float  # 1 for a 60 kg pig's pen; cattle 1.8
    panels: list[Panel] = field(default_factory=list)
    pipes: list[Pipe] = field(default_factory=list)
    balls: list[Ball] = field(default_factory=list)
    zones_m: dict[str, tuple[tuple[float, float], ...]] = field(default_factory=dict)
    stalls: list[tuple[float, float, float]] = field(default_factory=list)

    def metal(self) -> Color:
        base = np.array(METALS[int(self.rng.integers(len(METALS)))]) * self.rng.uniform(0.7, 1.1)
        return (float(base[0]), float(base[1]), float(base[2]))

    def paint(self) -> Color:
        return PAINTS[int(self.rng.integers(len(PAINTS)))]

    def upright_panel(self, a: tuple[float, float], b: tuple[float, float], top_m: float, kind: str) -> None:
        edge = (b[0] - a[0], b[1] - a[1], 0.0)
        self.panels.append(Panel((a[0], a[1], top_m), edge, (0.0, 0.0, -top_m), panel_paint(self.rng, kind)))
        if self.rng.random() < 0.5:
            self.pipes.append(Pipe((*a, top_m), (*b, top_m), 0.02 + 0.03 * float(self.rng.random()), self.metal()))

    def box(self, x: float, y: float, w: float, d: float, h: float, kind: str = "solid") -> None:
        """A closed box on the floor, centered at x, y."""
        paint = panel_paint(self.rng, kind)
        x0, y0, x1, y1 = x - w / 2, y - d / 2, x + w / 2, y + d / 2
        down = (0.0, 0.0, -h)
        self.panels += [
            Panel((x0, y0, h), (w, 0.0, 0.0), (0.0, d, 0.0), paint),
            Panel((x0, y0, h), (w, 0.0, 0.0), down, paint),
            Panel((x0, y1, h), (w, 0.0, 0.0), down, paint),
            Panel((x0, y0, h), (0.0, d, 0.0), down, paint),
            Panel((x1, y0, h), (0.0, d, 0.0), down, paint),
        ]

    def zone(self, name: str, x: float, y: float, w: float, d: float) -> None:
        x0, y0, x1, y1 = x - w / 2, y - d / 2, x + w / 2, y + d / 2
        self.zones_m.setdefault(name, ((x0, y0), (x1, y0), (x1, y1), (x0, y1)))


def build_fence(f: Fittings, kinds: tuple[str, ...], height_m: tuple[float, float]) -> None:
    """Four sides around the pen; one kind mostly, sometimes a gate in another."""
    main = kinds[int(f.rng.integers(len(kinds)))]
    top = float(f.rng.uniform(*height_m)) * f.scale
    w, d = f.width_m / 2, f.depth_m / 2
    corners = [(-w, -d), (w, -d), (w, d), (-w, d)]
    for i in range(4):
        kind = kinds[int(f.rng.integers(len(kinds)))] if f.rng.random() < 0.3 else main
        f.upright_panel(corners[i], corners[(i + 1) % 4], top, kind)


def _trough(f: Fittings) -> None:
    """A long trough at the upper side: walls and a dark bed of feed."""
    length, depth, height = f.width_m * float(f.rng.uniform(0.3, 0.8)), 0.3 * f.scale, 0.22 * f.scale
    x, y = float(f.rng.uniform(-0.1, 0.1)) * f.width_m, f.depth_m / 2 - depth / 2
    f.box(x, y, length, depth, height)
    feed = panel_paint(f.rng, "solid")
    feed[..., :3] = (feed[..., :3] * 0.2 + np.array([110, 85, 50]) * 0.6).astype(np.uint8)
    f.panels.append(
        Panel((x - length * 0.48, y - depth * 0.35, height + 0.005), (length * 0.96, 0, 0), (0, depth * 0.7, 0), feed)
    )
    if f.rng.random() < 0.6:
        for k in np.linspace(-0.5, 0.5, int(f.rng.integers(3, 8))):
            px = float(x + k * length)
            f.pipes.append(Pipe((px, y - depth * 0.8, height), (px, y + depth / 2, height * 2.2), 0.014, f.metal()))
    f.zone("feeder", x, y - 0.12 * f.scale, length, depth + 0.3 * f.scale)


def _hopper(f: Fittings) -> None:
    """A dry feeder against a side: a box with a lid and a bowl before it."""
    side = 1 if f.rng.random() < 0.5 else -1
    w, d = float(f.rng.uniform(0.3, 0.7)) * f.scale, float(f.rng.uniform(0.25, 0.4)) * f.scale
    x, y = side * (f.width_m / 2 - w / 2), float(f.rng.uniform(-0.3, 0.3)) * f.depth_m
    f.box(x, y, w, d, float(f.rng.uniform(0.5, 0.9)) * f.scale)
    f.box(x - side * 0.62 * w, y, 0.25 * w, d, 0.12 * f.scale)
    f.zone("feeder", x - side * 0.8 * w, y, 0.7 * w, d + 0.2 * f.scale)


def _round_feeder(f: Fittings) -> None:
    """A round feeder: a wide low bowl with a tube in the middle."""
    x, y = float(f.rng.uniform(-0.2, 0.2)) * f.width_m, float(f.rng.uniform(-0.2, 0.2)) * f.depth_m
    r = float(f.rng.uniform(0.2, 0.32)) * f.scale
    f.balls.append(Ball((x, y, 0.02), (r, r, 0.14 * f.scale), f.metal()))
    f.pipes.append(Pipe((x, y, 0.1), (x, y, 0.8 * f.scale), 0.4 * r, f.paint()))
    f.zone("feeder", x, y, 2.6 * r, 2.6 * r)


def _drinker(f: Fittings) -> None:
    """A nipple or bowl at the fence on a water pipe."""
    x, y = float(f.rng.uniform(-0.4, 0.4)) * f.width_m, -f.depth_m / 2 + 0.06
    z = float(f.rng.uniform(0.3, 0.55)) * f.scale
    f.pipes.append(Pipe((x, y, z), (x, y, 1.3 * f.scale), 0.014 * f.scale, f.metal()))
    f.balls.append(Ball((x, y + 0.07, z), (0.05 * f.scale, 0.08 * f.scale, 0.05 * f.scale), f.metal()))
    if f.rng.random() < 0.4:
        f.balls.append(Ball((x, y + 0.1, 0.18 * f.scale), (0.14 * f.scale, 0.12 * f.scale, 0.07 * f.scale), f.metal()))
    f.zone("drinker", x, y + 0.15 * f.scale, 0.35 * f.scale, 0.35 * f.scale)


def _toy(f: Fittings) -> None:
    """Enrichment: a hanging chain with a block, or a ball on the floor."""
    x, y = float(f.rng.uniform(-0.35, 0.35)) * f.width_m, float(f.rng.uniform(-0.3, 0.3)) * f.depth_m
    if f.rng.random() < 0.6:
        f.pipes.append(Pipe((x, y, 0.3), (x, y, 2.0), 0.012, f.metal()))
        f.balls.append(Ball((x, y, 0.3), (0.05, 0.05, 0.1), f.paint()))
    else:
        r = float(f.rng.uniform(0.07, 0.14))
        f.balls.append(Ball((x, y, r), (r, r, r), f.paint()))
    f.zone("toy", x, y, 0.45, 0.45)


def _overhead_pipes(f: Fittings) -> None:
    """Feed lines, cables and beams between camera and animals."""
    for _ in range(int(f.rng.integers(1, 4))):
        angle = float(f.rng.uniform(0, np.pi)) if f.rng.random() < 0.4 else float(f.rng.integers(2)) * np.pi / 2
        x, y = (float(v) for v in f.rng.uniform(-0.5, 0.5, 2) * np.array([f.width_m, f.depth_m]))
        reach, z = f.width_m + f.depth_m, float(f.rng.uniform(0.9, 1.7)) * f.scale
        dx, dy = float(np.cos(angle)) * reach, float(np.sin(angle)) * reach
        f.pipes.append(
            Pipe((x - dx, y - dy, z), (x + dx, y + dy, z + 0.1), float(f.rng.uniform(0.008, 0.045)), f.metal())
        )


def _divider(f: Fittings) -> None:
    """A short wall that reaches into the pen."""
    x, reach = float(f.rng.uniform(-0.25, 0.25)) * f.width_m, float(f.rng.uniform(0.3, 0.6)) * f.depth_m
    kind = ("solid", "boards", "bars")[int(f.rng.integers(3))]
    f.upright_panel((x, f.depth_m / 2), (x, f.depth_m / 2 - reach), float(f.rng.uniform(0.5, 0.9)) * f.scale, kind)


def _bucket(f: Fittings) -> None:
    x, y = float(f.rng.uniform(-0.5, 0.5)) * f.width_m, float(f.rng.uniform(-0.5, 0.5)) * f.depth_m
    r = float(f.rng.uniform(0.1, 0.17))
    color = f.paint()
    f.pipes.append(Pipe((x, y, 0.0), (x, y, 0.26), r, color))
    f.balls.append(Ball((x, y, 0.26), (r * 0.86, r * 0.86, 0.01), (color[0] * 0.3, color[1] * 0.3, color[2] * 0.3)))


def _keeper(f: Fittings) -> None:
    """A person in overalls: boots, legs, torso, arms, head; something upright that is not livestock."""
    x, y = float(f.rng.uniform(-0.45, 0.45)) * f.width_m, float(f.rng.uniform(-0.5, 0.5)) * f.depth_m
    turn = float(f.rng.uniform(0, 2 * np.pi))
    cloth, skin = f.paint(), (0.75, 0.56, 0.46)
    c, s = float(np.cos(turn)), float(np.sin(turn))
    for side in (1, -1):
        fx, fy = x - s * 0.1 * side, y + c * 0.1 * side
        f.balls.append(Ball((fx + 0.07 * c, fy + 0.07 * s, 0.05), (0.13, 0.13, 0.06), (0.08, 0.1, 0.08)))
        f.pipes.append(Pipe((fx, fy, 0.05), (x - s * 0.08 * side, y + c * 0.08 * side, 0.9), 0.085, cloth))
        hand = (x - s * 0.28 * side + 0.2 * c, y + c * 0.28 * side + 0.2 * s, 0.9)
        f.pipes.append(Pipe((x - s * 0.2 * side, y + c * 0.2 * side, 1.42), hand, 0.05, cloth))
    f.balls.append(Ball((x, y, 1.2), (0.22, 0.22, 0.36), cloth))
    f.balls.append(
        Ball((x + 0.03 * c, y + 0.03 * s, 1.68), (0.1, 0.1, 0.13), skin if f.rng.random() < 0.5 else f.paint())
    )


def _clutter(f: Fittings) -> None:
    """What lies about and is no animal: sacks, tubs and clothes, boxes, hoses, people; some of it colored like skin."""
    for _ in range(int(f.rng.integers(2, 9))):
        x, y = (float(v) for v in f.rng.uniform(-0.5, 0.5, 2) * np.array([f.width_m, f.depth_m]))
        size = float(f.rng.uniform(0.08, 0.4)) * f.scale
        skin = np.array([0.88, 0.66, 0.57]) * f.rng.uniform(0.6, 1.1)
        red, green, blue = (float(v) for v in (skin if f.rng.random() < 0.4 else f.rng.uniform(0.03, 0.95, 3)))
        kind = f.rng.choice(["sack", "box", "hose", "person"], p=[0.5, 0.2, 0.2, 0.1])
        if kind == "sack":  # rounder than an animal seen from above
            radii = size * f.rng.uniform((0.6, 0.6, 0.3), (1.0, 1.0, 0.9))
            center = (x, y, float(radii[2] * f.rng.uniform(0.2, 0.9)))
            f.balls.append(Ball(center, (float(radii[0]), float(radii[1]), float(radii[2])), (red, green, blue)))
        elif kind == "box":
            w, d, h = (float(v) for v in size * f.rng.uniform(0.5, 1.8, 3))
            f.box(x, y, w, d, h, ("solid", "boards", "mesh")[int(f.rng.integers(3))])
        elif kind == "hose":
            dx, dy = (float(v) for v in f.rng.uniform(-1.5, 1.5, 2) * f.scale)
            f.pipes.append(Pipe((x, y, 0.03), (x + dx, y + dy, 0.03), 0.08 * size + 0.01, (red, green, blue)))
        else:
            _keeper(f)


BED_M = 2.3  # length of a lying stall


def _cubicles(f: Fittings) -> None:
    """A row of lying stalls for cattle, heads to the upper side."""
    _stall_row(f, f.depth_m / 2 - BED_M, 1)


def _head_to_head(f: Fittings) -> None:
    """Two rows of lying stalls along the middle that face each other; one row where the pen is too narrow."""
    if f.depth_m < 2.2 * BED_M:
        _cubicles(f)
        return
    lunge = min(float(f.rng.uniform(0.0, 0.8)), f.depth_m - 2.2 * BED_M)
    _stall_row(f, -BED_M - lunge / 2, 1)
    _stall_row(f, BED_M + lunge / 2, -1)


def _stall_row(f: Fittings, foot_m: float, facing: int) -> None:
    """Lying stalls whose open ends are at y = `foot_m` and whose heads are on the side of `facing`.

    Loops between, a neck rail across, a raised bed.
    """
    pitch = 1.2
    count = max(int(f.width_m / pitch), 1)

    def y(reach_m: float) -> float:
        return foot_m + facing * reach_m

    f.box(0.0, y(BED_M / 2), count * pitch, BED_M, 0.16)
    bed = FLOORS["straw"](f.rng).tile if f.rng.random() < 0.5 else FLOORS["concrete"](f.rng).tile
    paint = np.concatenate([bed, np.full((*bed.shape[:2], 1), 255, np.uint8)], axis=2)
    left = -count * pitch / 2
    f.panels.append(Panel((left, foot_m, 0.165), (count * pitch, 0, 0), (0, facing * BED_M, 0), paint))
    color = f.metal()
    for i in range(count + 1):
        x = left + i * pitch
        f.pipes.append(Pipe((x, y(0.35), 1.05), (x, y(BED_M), 1.15), 0.03, color))
        f.pipes.append(Pipe((x, y(0.35), 0.5), (x, y(BED_M), 0.45), 0.03, color))
        f.pipes.append(Pipe((x, y(0.35), 0.5), (x, y(0.35), 1.05), 0.03, color))
    f.pipes.append(Pipe((left, y(1.65), 1.2), (-left, y(1.65), 1.2), 0.03, color))
    f.stalls += [(left + (i + 0.5) * pitch, y(1.05), facing * np.pi / 2) for i in range(count)]


def _feed_rail(f: Fittings) -> None:
    """A feed alley with a neck rail or headlocks along one side."""
    y, color = -f.depth_m / 2 + 0.1, f.metal()
    w = f.width_m / 2
    f.pipes.append(Pipe((-w, y, 1.25), (w, y, 1.25), 0.035, color))
    f.box(0.0, y, f.width_m, 0.18, 0.5)
    if f.rng.random() < 0.6:
        for x in np.arange(-w, w, float(f.rng.uniform(0.35, 0.7))):
            f.pipes.append(Pipe((float(x), y, 0.5), (float(x), y, 1.25), 0.022, color))
    f.zone("feeder", 0.0, y, f.width_m, 0.9)


FITTINGS: dict[str, Callable[[Fittings], None]] = {
    "trough": _trough, "hopper": _hopper, "round_feeder": _round_feeder, "drinker": _drinker, "toy": _toy,
    "overhead_pipes": _overhead_pipes, "divider": _divider, "bucket": _bucket, "keeper": _keeper,
    "clutter": _clutter,
    "cubicles": _cubicles, "head_to_head": _head_to_head, "feed_rail": _feed_rail,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Layout:
    """What a family of pens is built from: ``always``, and each of ``sometimes`` with its chance."""

    species: tuple[str, ...]
    fence: tuple[str, ...]
    height_m: tuple[float, float]
    always: tuple[str, ...]
    sometimes: tuple[tuple[str, float], ...]


LAYOUTS: dict[str, Layout] = {
    "walled": Layout(
        ("pig",),
        ("solid",),
        (0.6, 1.1),
        ("hopper", "drinker"),
        (("toy", 0.6), ("overhead_pipes", 0.4), ("divider", 0.2), ("keeper", 0.06), ("bucket", 0.1), ("clutter", 0.08)),
    ),
    "barred": Layout(
        ("pig", "cow"),
        ("bars", "rails"),
        (0.6, 1.0),
        ("trough", "drinker"),
        (("toy", 0.5), ("overhead_pipes", 0.4), ("divider", 0.3), ("bucket", 0.1), ("clutter", 0.08)),
    ),
    "gated": Layout(
        ("pig",),
        ("solid", "bars", "mesh"),
        (0.5, 1.1),
        ("hopper",),
        (("trough", 0.4), ("drinker", 0.8), ("toy", 0.7), ("overhead_pipes", 0.5), ("keeper", 0.06), ("clutter", 0.08)),
    ),
    "freestall": Layout(
        ("cow",),
        ("rails", "solid"),
        (0.5, 0.7),
        ("cubicles",),
        (("feed_rail", 0.6), ("overhead_pipes", 0.3), ("keeper", 0.05), ("clutter", 0.08)),
    ),
    "head_to_head": Layout(
        ("cow",),
        ("rails", "solid"),
        (0.5, 0.7),
        ("head_to_head",),
        (("overhead_pipes", 0.3), ("keeper", 0.05), ("clutter", 0.08)),
    ),
    "feed_alley": Layout(
        ("cow",),
        ("rails",),
        (0.6, 0.8),
        ("feed_rail",),
        (("drinker", 0.6), ("overhead_pipes", 0.3), ("bucket", 0.1), ("clutter", 0.08)),
    ),
    "boarded": Layout(
        ("pig", "cow"),
        ("boards",),
        (0.5, 0.9),
        ("round_feeder",),
        (("drinker", 0.8), ("toy", 0.5), ("overhead_pipes", 0.4)),
    ),
    "double_row": Layout(
        ("cow",), ("rails", "boards"), (0.5, 0.7), ("cubicles", "feed_rail"), (("overhead_pipes", 0.5),)
    ),
    "research": Layout(
        ("pig",),
        ("solid", "mesh"),
        (0.7, 1.0),
        ("trough", "drinker", "toy"),
        (("bucket", 0.2), ("overhead_pipes", 0.15)),
    ),
    "yard": Layout(
        ("cow", "pig"),
        ("boards", "rails"),
        (0.6, 0.9),
        ("trough",),
        (("drinker", 0.7), ("overhead_pipes", 0.3), ("toy", 0.4), ("divider", 0.3)),
    ),
}
LAYOUT_FAMILIES: dict[str, tuple[str, ...]] = {
    "train": ("walled", "barred", "gated", "freestall", "head_to_head", "feed_alley"),
    "val": ("boarded", "double_row"),
    "test": ("research", "yard"),
}
