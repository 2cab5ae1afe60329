"""Normal anatomy of the chest phantom: pose, soft masks of organs, and projected bones and vessels.

Everything lives in body coordinates: x grows towards the patient's left (image right), y towards the feet,
the origin is mid-chest and one unit is the image side (`FIELD_MM` millimetres at scale 1). `Pose` maps body
to image coordinates, in which the image is the unit square; nothing below knows the pixel size except the
one-pixel floor on edge widths, so a patient drawn at two sizes is one picture sampled twice.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from PIL import Image, ImageDraw

FIELD_MM = 400.0
APEX_X = 0.115
"""Lateral offset of a lung apex from the midline."""
WIDEST_Y = 0.12
"""Level at which the chest cavity reaches its full width."""
CARINA_Y = -0.17

Array = np.ndarray


def soft(distance: Array, width: float) -> Array:
    """Smoothstep from 0 (distance ≤ -width/2) to 1 (distance ≥ width/2); `distance` in body units."""
    t = distance * (1.0 / width)
    t += 0.5
    np.maximum(t, 0.0, out=t)
    np.minimum(t, 1.0, out=t)
    smooth = t * -2.0
    smooth += 3.0
    smooth *= t
    smooth *= t
    return smooth


def bump(distance: Array, width: float) -> Array:
    """Smooth unit bump of half-width `width` centred where `distance` is 0."""
    t = distance * (1.0 / width)
    t *= t
    np.subtract(1.0, t, out=t)
    np.maximum(t, 0.0, out=t)
    t *= t
    return t


def norm(dx: Array, dy: Array) -> Array:
    """Euclidean length; several times faster than np.hypot, whose overflow guard is not needed here."""
    squared = dx * dx
    squared += dy * dy
    return np.sqrt(squared, out=squared)


def fillet(a: Array, b: Array, radius: float) -> Array:
    """Union of two signed distances with a rounded inner corner."""
    near = np.maximum(radius - np.abs(a - b), 0.0)
    return np.maximum(a, b) + near * near * (0.25 / radius)


@dataclass(frozen=True)
class Anatomy:
    """What differs between patients, in body units unless said otherwise."""

    half_width: float
    apex_y: float
    dome_y: tuple[float, float]
    """Top of the right and left hemidiaphragm at full inspiration."""
    angle_drop: float
    """How far the costophrenic angle lies below the dome."""
    heart_width: float
    """Half the transverse heart diameter."""
    knob: float
    """Radius of the aortic knob."""
    rib_drop: float
    rib_pitch: float
    clavicle_y: float
    habitus: float
    """0 thin to 1 obese."""
    breast: float
    """0 none to 1."""
    scoliosis: float
    vessel_seed: int

    @classmethod
    def sample(cls, rng: np.random.Generator) -> Anatomy:
        """Draw one patient's anatomy."""
        u = rng.uniform
        half_width = u(0.315, 0.36)
        dome = u(0.145, 0.20)
        return cls(
            half_width=half_width,
            apex_y=u(-0.385, -0.345),
            dome_y=(dome, dome + u(0.012, 0.035)),
            angle_drop=u(0.10, 0.135),
            heart_width=half_width * u(0.39, 0.46),
            knob=u(0.030, 0.045),
            rib_drop=u(0.13, 0.18),
            rib_pitch=u(0.054, 0.061),
            clavicle_y=u(-0.325, -0.285),
            habitus=u(0.0, 1.0),
            breast=float(rng.random() < 0.45) * u(0.5, 1.0),
            scoliosis=u(-0.012, 0.012),
            vessel_seed=int(rng.integers(2**31)),
        )


@dataclass(frozen=True)
class Pose:
    """One exposure: where the body lies in the image and how the film was taken."""

    angle: float
    """Radians, clockwise as displayed."""
    scale: float
    shift: tuple[float, float]
    inspiration: float
    """How much the hemidiaphragms rise above full inspiration."""
    portable: bool
    """AP projection: magnified heart, scapulae over the lungs."""

    @classmethod
    def sample(cls, rng: np.random.Generator, portable: bool) -> Pose:
        """Draw the pose of one exposure; a portable one is rotated more and less inspired."""
        spread = 1.6 if portable else 1.0
        return cls(
            angle=float(np.radians(np.clip(rng.normal(0, 1.8 * spread), -6, 6))),
            scale=rng.uniform(1.04, 1.22),
            shift=(rng.uniform(-0.02, 0.02) * spread, rng.uniform(-0.01, 0.03) * spread),
            inspiration=rng.uniform(0.0, 0.035) * spread,
            portable=portable,
        )

    def to_image(self, points: Array) -> Array:
        """Body points [..., 2] to image coordinates [..., 2] in the unit square."""
        return points @ self._turn + self._origin

    @cached_property
    def _turn(self) -> Array:
        c, s = np.cos(self.angle), np.sin(self.angle)
        return self.scale * np.array([[c, s], [-s, c]])

    @cached_property
    def _origin(self) -> Array:
        return 0.5 + np.array(self.shift)

    def body_grid(self, side: int) -> tuple[Array, Array]:
        """Body coordinates (x, y) of the pixel centres, two float32 arrays [side, side]."""
        centres = (np.arange(side, dtype=np.float32) + 0.5) / side - 0.5
        u = ((centres - self.shift[0]) / self.scale)[None, :].astype(np.float32)
        v = ((centres - self.shift[1]) / self.scale)[:, None].astype(np.float32)
        c, s = np.float32(np.cos(self.angle)), np.float32(np.sin(self.angle))
        return c * u + s * v, c * v - s * u


class Canvas:
    """Polygon drawing at twice the render resolution, averaged down to float32 in [0, 1]."""

    def __init__(self, pose: Pose, side: int) -> None:
        self.pose, self.side = pose, 2 * side
        self.image = Image.new("L", (self.side, self.side))
        self.pen = ImageDraw.Draw(self.image)

    def _pixels(self, points: Array) -> list[list[float]]:
        # Pillow puts integer coordinates at pixel centres.
        at = self.pose.to_image(points) * self.side - 0.5
        flat: list[list[float]] = at.reshape(len(points), -1).tolist()
        return flat

    def lines(self, points: Array, width: float, value: float) -> None:
        """Polylines through body points [count, n, 2].

        A line thinner than a canvas pixel is dimmed instead, and left out where it would hardly show.
        """
        pixels = width * self.pose.scale * self.side
        if pixels < 0.75:
            return
        drawn = max(1, round(pixels))
        fill = int(255 * value * min(1.0, pixels / drawn))
        joint = "curve" if drawn > 5 else None
        for line in self._pixels(points):
            self.pen.line(line, fill=fill, width=drawn, joint=joint)

    def polygons(self, points: Array, value: float) -> None:
        """Filled polygons through body points [count, n, 2]."""
        for outline in self._pixels(points):
            self.pen.polygon(outline, fill=int(255 * value))

    def bands(self, centre: Array, width: Array, value: float) -> None:
        """Filled bands of varying `width` [count, n] about centre lines [count, n, 2]."""
        step = np.empty_like(centre)
        step[:, 1:-1] = centre[:, 2:] - centre[:, :-2]
        step[:, 0], step[:, -1] = centre[:, 1] - centre[:, 0], centre[:, -1] - centre[:, -2]
        normal = step[..., ::-1] * (-1.0, 1.0) / (norm(step[..., 0], step[..., 1])[..., None] + 1e-9)
        # Pillow also fills the pixels that the outline touches, half a pixel on either side.
        half = normal * (np.maximum(width[..., None] - 1 / (self.pose.scale * self.side), 0.0) / 2)
        self.polygons(np.concatenate([centre + half, (centre - half)[:, ::-1]], 1), value)

    def layer(self, gain: float = 1.0) -> Array:
        """The drawing as float32 [render side, render side] in [0, gain]."""
        return np.asarray(self.image.reduce(2)) * np.float32(gain / 255.0)


@dataclass
class Chest:
    """The chest of one exposure sampled on a grid of `side` pixels; masks are float32 [side, side]."""

    anatomy: Anatomy
    pose: Pose
    side: int
    heart_scale: float = 1.0
    x: Array = field(init=False)
    y: Array = field(init=False)

    def __post_init__(self) -> None:
        self.x, self.y = self.pose.body_grid(self.side)

    def edge(self, width: float) -> float:
        """An edge width no sharper than one pixel."""
        return max(width, 1.0 / (self.side * self.pose.scale))

    @cached_property
    def ax(self) -> Array:
        """Distance from the midline."""
        return np.abs(self.x)

    def dome_top(self, sign: int) -> float:
        """Level of the hemidiaphragm's top; sign -1 is the patient's right, +1 the left."""
        return self.anatomy.dome_y[sign > 0] - self.pose.inspiration

    def angle_y(self, sign: int) -> float:
        """Level of the costophrenic angle of one side."""
        return self.dome_top(sign) + self.anatomy.angle_drop

    def outer(self, y: float) -> float:
        """Half-width of the chest cavity at level y, the zero of `wall`."""
        a = self.anatomy
        t = min(max((WIDEST_Y - y) / (WIDEST_Y - a.apex_y), 0.0), 1.0)
        return APEX_X + (a.half_width - APEX_X) * math.sqrt(1.0 - t * t)

    @cached_property
    def _up(self) -> Array:
        t = np.clip((WIDEST_Y - self.y) / (WIDEST_Y - self.anatomy.apex_y), 0.0, 1.5)
        return t * t

    @cached_property
    def wall(self) -> Array:
        """Approximate distance inward from the lateral and apical chest wall; negative outside it."""
        reach = self.anatomy.half_width - APEX_X
        across = np.maximum((self.ax - APEX_X) / reach, 0.0)
        return (1.0 - np.sqrt(across * across + self._up)) * reach

    @cached_property
    def dome(self) -> Array:
        """Distance above the hemidiaphragm; negative in the abdomen."""
        top = np.where(self.x > 0, np.float32(self.dome_top(1)), np.float32(self.dome_top(-1)))
        lateral = (self.ax - 0.14) / (self.anatomy.half_width - 0.14)
        sag = lateral * lateral * np.where(lateral > 0, np.float32(1.0), np.float32(0.35))
        return top + np.float32(self.anatomy.angle_drop) * sag - self.y

    @cached_property
    def cavity(self) -> Array:
        """Hemithoraces above the diaphragm, the space that lung, fluid or free air can fill."""
        medial = self.ax - 0.025 - 0.06 * self._up
        edge = self.edge(0.007)
        return soft(self.wall, edge) * soft(self.dome, edge) * soft(medial, 0.02)

    @cached_property
    def _heart_distance(self) -> Array:
        k = self.heart_scale * (1.12 if self.pose.portable else 1.0)
        long_axis = self.anatomy.heart_width * 1.12 * k
        short_axis = self.anatomy.heart_width * 0.86 * (1 + 0.60 * (k - 1))
        base = min(self.dome_top(1), self.dome_top(-1))
        cx, cy = 0.034 + 0.05 * (k - 1), base - 0.062 - 0.05 * (k - 1)
        c, s = np.float32(np.cos(0.70)), np.float32(np.sin(0.70))
        dx, dy = self.x - np.float32(cx), self.y - np.float32(cy)
        u, v = (c * dx + s * dy) / np.float32(long_axis), (c * dy - s * dx) / np.float32(short_axis)
        return (1.0 - np.sqrt(u * u + v * v)) * np.float32(short_axis)

    @cached_property
    def heart(self) -> Array:
        """Heart silhouette: a tilted ellipse resting on the diaphragm, apex to the patient's left."""
        return soft(self._heart_distance, self.edge(0.014))

    @cached_property
    def silhouette(self) -> Array:
        """Cardiomediastinal silhouette: heart, great vessels, aortic knob and pulmonary trunk in one outline."""
        strip = 0.038 + 0.020 * np.clip((self.y + 0.36) * 5.0, 0.0, 1.0) - self.ax
        knob = np.float32(self.anatomy.knob) - norm(self.x - 0.034, self.y + 0.165)
        trunk = 0.040 - norm(self.x - 0.040, self.y + 0.080)
        vessels = fillet(fillet(strip, knob, 0.02), trunk, 0.04)
        return soft(fillet(vessels, self._heart_distance, 0.07), self.edge(0.014))

    @cached_property
    def torso(self) -> Array:
        """Soft-tissue thickness: 0 in the air around the body, rising to 1 in its middle."""
        a = self.anatomy
        neck = 0.085 + 0.02 * a.habitus
        arm = np.clip((-0.02 - self.y) / 0.24, 0.0, 1.0)
        flank = a.half_width + 0.035 + 0.09 * a.habitus + 0.34 * arm * arm - self.ax
        deltoid = np.clip(self.ax - 0.36, 0.0, 0.3)
        shoulder = self.y + 0.335 + 0.17 * np.exp((neck - self.ax) * (1 / 0.075)) - 3.0 * deltoid * deltoid
        t = np.clip(np.minimum(flank, shoulder) * (1 / 0.17), 0.0, 1.0)
        return np.sqrt(t * (2.0 - t))


def draw_ribs(chest: Chest, posterior: Canvas, anterior: Canvas) -> None:
    """Ribs 1 to 10 as tilted hoops seen from the front.

    The posterior half leaves the spine and falls towards the lateral wall, the anterior half falls further
    and back towards the sternum. Of the posterior half, cortex is drawn before the fainter marrow inside it.
    """
    a = chest.anatomy
    number = np.arange(10)[:, None]
    y0 = a.apex_y + 0.012 + a.rib_pitch * number
    drop = a.rib_drop * (0.55 + 0.07 * number)
    reach = np.array([[chest.outer(float(level)) + 0.006] for level in (y0 + drop / 2).ravel()])
    sides = np.array([[[-1.0, 1.0]], [[1.0, 1.0]]])
    back, front = np.linspace(0.10, 1.62, 14), np.linspace(1.50, 2.50, 10)
    for canvas, theta, thick in ((posterior, back, 0.020), (anterior, front, 0.024)):
        x = reach * np.sin(theta) ** np.where(number > 2, 0.9, 1.0)
        y = y0 + drop * (1 - np.cos(theta)) / 2 - 0.018 * np.sin(2 * theta).clip(0)
        hoops = (np.stack([x, y], -1)[None] * sides[:, None]).reshape(20, len(theta), 2)
        width = np.tile(thick * (0.45 + 0.55 * np.abs(np.cos(theta)) ** 0.5), (20, 1))
        canvas.bands(hoops, width, 1.0)
        if canvas is posterior:
            canvas.bands(hoops, (width - 0.006).clip(0.001), 0.60)


def draw_girdle(chest: Chest, canvas: Canvas) -> None:
    """Clavicles, scapulae and humeral heads; a portable film leaves the scapulae over the lungs."""
    inward = 0.075 if chest.pose.portable else 0.0
    sides = np.array([[[-1.0, 1.0]], [[1.0, 1.0]]])
    blade = np.array([(0.29, -0.28), (0.40, -0.32), (0.415, -0.20), (0.375, -0.05), (0.35, -0.05), (0.33, -0.14)])
    canvas.polygons((blade - (inward, 0)) * sides, 0.42 if inward else 0.26)
    ridge = np.array([(0.27, -0.25), (0.35, -0.305), (0.44, -0.345)]) - (inward, 0)
    canvas.lines(ridge * sides, 0.012, 0.50)
    turn = np.linspace(0, 2 * np.pi, 24)
    canvas.polygons(np.stack([0.465 + 0.045 * np.cos(turn), 0.05 * np.sin(turn) - 0.27], -1) * sides, 0.55)
    canvas.lines(np.array([(0.478, -0.26), (0.58, 0.0)]) * sides, 0.05, 0.55)
    s = np.linspace(0, 1, 16)
    level = chest.anatomy.clavicle_y - 0.055 * s - 0.016 * np.sin(2 * np.pi * s)
    clavicle = np.stack([0.028 + 0.39 * s, level], -1) * sides
    width = np.tile(0.020 + 0.010 * (1 - s) ** 4, (2, 1))
    canvas.bands(clavicle, width, 1.0)
    canvas.bands(clavicle, width - 0.008, 0.72)


def draw_vessels(chest: Chest, canvas: Canvas) -> None:
    """Pulmonary vessels: a tree from each hilum that forks four times, thinner and fainter outwards."""
    rng = np.random.default_rng(chest.anatomy.vessel_seed)
    trunks = 8
    sign = np.repeat([-1.0, 1.0], trunks)
    root = np.tile(np.linspace(-0.035, 0.045, trunks), 2)
    at = np.stack([sign * 0.058, root - np.where(sign < 0, 0.05, 0.07)], -1) + rng.normal(0, 0.008, (2 * trunks, 2))
    heading = np.tile(np.linspace(-1.30, 1.40, trunks), 2) + rng.normal(0, 0.12, 2 * trunks)
    width, value, length = 0.0125, 0.90, 0.058
    for generation in range(5):
        reach = length * rng.uniform(0.7, 1.35, len(at))[:, None] / 2
        bent = heading + rng.normal(0, 0.22, len(at))
        middle = at + reach * np.stack([sign * np.cos(heading), np.sin(heading)], -1)
        end = middle + reach * np.stack([sign * np.cos(bent), np.sin(bent)], -1)
        canvas.lines(np.stack([at, middle, end], 1), width, value)
        both = np.concatenate([end, end]), np.concatenate([sign, sign])
        fork = rng.uniform(0.15, 0.55, len(at))
        keep = rng.random(2 * len(at)) < (0.9 if generation < 2 else 0.66)
        at, sign = both[0][keep], both[1][keep]
        heading = np.concatenate([bent + fork, bent - fork])[keep]
        width, value, length = width * 0.66, value * 0.88, length * 0.98


def spine_density(chest: Chest) -> Array:
    """Vertebral column: a bright strip stepped by darker discs, with pedicles and spinous processes."""
    near = np.flatnonzero((chest.ax < 0.06).any(0))
    columns = slice(near[0], near[-1] + 1)
    x, y = chest.x[:, columns], chest.y[:, columns]
    off = np.abs(x - chest.anatomy.scoliosis * np.sin(6.0 * y))
    pitch = 0.050 + 0.012 * np.clip(y + 0.4, 0, 1)
    phase = y / pitch
    along = np.abs(phase - np.round(phase))
    body = soft(0.036 + 0.006 * along - off, chest.edge(0.008))
    plates = bump(along - 0.36, 0.09)
    pedicle = bump(norm(off - 0.021, (along - 0.12) * pitch), 0.009)
    process = bump(norm(off, (along - 0.05) * pitch * 0.6), 0.009)
    spine = np.zeros_like(chest.x)
    spine[:, columns] = body * (0.72 + 0.28 * plates - 0.22 * (along > 0.44)) + 0.3 * pedicle + 0.4 * process
    return spine


def draw_airway(chest: Chest, canvas: Canvas) -> None:
    """Trachea and main bronchi."""
    canvas.lines(np.array([[(0.0, -0.60), (0.002, -0.35), (-0.004, CARINA_Y)]]), 0.030, 0.8)
    bronchi = [[(-0.004, CARINA_Y - 0.01), (reach, CARINA_Y + 0.065)] for reach in (-0.062, 0.075)]
    canvas.lines(np.array(bronchi), 0.018, 0.5)
