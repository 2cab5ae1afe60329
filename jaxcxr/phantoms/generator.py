"""Synthetic frontal chest radiographs whose findings, sides and sizes are known.

An analytic drawing, not a simulation: organs are soft masks from signed distances, bones and vessels are
projected curves, and densities add up before a display curve. It serves to train and test the pipeline where
no patient data may go; it says nothing about patients.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
from PIL import Image

from jaxcxr.errors import UserError
from jaxcxr.phantoms.anatomy import (
    CARINA_Y,
    FIELD_MM,
    Anatomy,
    Array,
    Canvas,
    Chest,
    Pose,
    bump,
    draw_airway,
    draw_girdle,
    draw_ribs,
    draw_vessels,
    norm,
    soft,
    spine_density,
)

KINDS = ("effusion", "cardiomegaly", "pneumothorax", "consolidation", "nodule", "edema", "device")
DEVICES = ("endotracheal tube", "central line", "pacemaker", "nasogastric tube")
SIGN = {"right": -1, "left": 1}
"""The patient's right is image left, where body x is negative."""
MIN_SIZE, MAX_SIZE = 64, 512
VISIBLE = 128
"""Pixels. Below this size, tubes and lines keep the width in pixels that they have at it, so that they stay visible."""


@dataclass(frozen=True)
class Finding:
    """One positive finding, as a radiologist would qualify it; a qualifier that does not apply is empty.

    `kind` is one of `KINDS`. `side` is left, right or (effusion only) bilateral. `size` is small, moderate or
    large for effusion and pneumothorax, and mild, moderate or severe for cardiomegaly and edema. `zone` is
    upper, mid or lower for consolidation and nodule, `mm` the nodule's diameter, `device` one of `DEVICES`.
    """

    kind: str
    side: str = ""
    size: str = ""
    zone: str = ""
    mm: int = 0
    device: str = ""

    def as_dict(self) -> dict[str, Any]:
        """The qualifiers that apply, by name."""
        return {name: value for name, value in asdict(self).items() if value}

    def signs(self) -> list[int]:
        """The sides as body-x signs: [-1] right, [1] left, both when bilateral."""
        return [-1, 1] if self.side == "bilateral" else [SIGN[self.side]]


@dataclass(frozen=True)
class Patient:
    """A phantom patient: anatomy is a function of (seed, number) alone."""

    seed: int
    number: int

    @cached_property
    def anatomy(self) -> Anatomy:
        """The patient's anatomy, equal at every visit."""
        return Anatomy.sample(np.random.default_rng([self.seed, self.number]))


@dataclass(frozen=True)
class Drawing:
    """A radiograph and its ground truth.

    `image` is uint8 [size, size], or of the film's size, bright for dense. `masks` holds a bool array of that size
    and `boxes` a half-open pixel box (x0, y0, x1, y1) for each finding, in the order the findings were given. `lungs`
    is bool of that size, where lung lies beside the heart and the mediastinum, whatever is in it.
    """

    image: Array
    masks: tuple[Array, ...]
    lungs: Array
    boxes: tuple[tuple[int, int, int, int], ...]

    def condition(self, findings: Sequence[Finding]) -> Array:
        """Where things are, uint8 [..., 3]: lungs in red, findings in green, devices in blue."""
        channels = np.zeros((*self.image.shape, 3), bool)
        channels[..., 0] = self.lungs
        for finding, mask in zip(findings, self.masks, strict=True):
            channels[..., 2 if finding.kind == "device" else 1] |= mask
        return np.uint8(255) * channels


def draw(
    patient: Patient,
    study: int,
    findings: Sequence[Finding],
    size: int,
    view: str = "PA",
    exposure: int = 0,
) -> Drawing:
    """Draw one frontal radiograph of `size` by `size` pixels.

    The picture is a function of the arguments alone. Each finding has its own random stream, so leaving one
    out changes nothing but that finding. `exposure` numbers the images of a study: pose and noise differ
    between them, the findings do not.

    Raises:
        UserError: `size` is outside 64 to 512, or `view` is neither PA nor AP.
    """
    if not MIN_SIZE <= size <= MAX_SIZE:
        raise UserError(f"phantom size {size} is outside {MIN_SIZE} to {MAX_SIZE}; choose a size in that range")
    if view not in ("PA", "AP"):
        raise UserError(f"phantom view {view!r} is not drawn; choose PA or AP")
    key = [patient.seed, patient.number, study]
    rng = np.random.default_rng([*key, 1000 + exposure])
    pose = Pose.sample(rng, portable=view == "AP")
    # Small images are averaged down from half as many pixels again; larger ones rely on one-pixel soft edges.
    side = size if size >= 128 else 3 * size // 2
    chest = Chest(patient.anatomy, pose, side, heart_scale=_heart_scale(key, findings))
    scene = _Scene(chest, Canvas(pose, chest.side), wider=max(1.0, VISIBLE / size))
    soft_masks = [_DRAWERS[f.kind](scene, f, _finding_rng(key, f)) for f in _in_drawing_order(findings)]
    by_finding = dict(zip(_in_drawing_order(findings), soft_masks, strict=True))
    image = (_average(255 * _expose(scene, rng), size) + 0.5).astype(np.uint8)
    masks = tuple(_binary(_average(by_finding[f], size)) for f in findings)
    lungs = _binary(_average(scene.visible, size))
    return Drawing(image, masks, lungs, tuple(bounding_box(mask) for mask in masks))


class _Scene:
    """Layers that findings change before the exposure: lung air, added density, vessels, hardware."""

    def __init__(self, chest: Chest, hardware: Canvas, wider: float) -> None:
        """`wider` is how many times their true width tubes, lines and leads have."""
        self.chest, self.hardware, self.wider = chest, hardware, wider
        solid = 1.0 - 0.86 * chest.silhouette
        depth = np.clip(chest.wall / 0.10, 0.0, 1.0)
        self.lung = chest.cavity * solid
        """Where lung shows, 1 in the open lung."""
        self.air = self.lung * (0.60 + 0.40 * np.sqrt(depth))
        self.extra = np.zeros_like(self.air)
        self.vessel_gain = np.ones_like(self.air)
        self.visible = chest.cavity * (1.0 - chest.silhouette)
        self.fluid = np.zeros_like(self.air)

    def on(self, sign: int) -> Array:
        """Mask of one half of the body."""
        return self.chest.x * sign > 0


def _finding_rng(key: list[int], finding: Finding) -> np.random.Generator:
    return np.random.default_rng([*key, 1 + KINDS.index(finding.kind), DEVICES.index(finding.device or DEVICES[0])])


def _in_drawing_order(findings: Sequence[Finding]) -> list[Finding]:
    return sorted(findings, key=lambda f: KINDS.index(f.kind))


def _heart_scale(key: list[int], findings: Sequence[Finding]) -> float:
    for finding in findings:
        if finding.kind == "cardiomegaly":
            low = {"mild": 1.24, "moderate": 1.42, "severe": 1.62}[finding.size]
            return low + _finding_rng(key, finding).uniform(0, 0.08)
    return 1.0


def _draw_cardiomegaly(scene: _Scene, finding: Finding, rng: np.random.Generator) -> Array:
    """The heart silhouette; its scale entered when the chest was laid out."""
    return scene.chest.heart


def _draw_effusion(scene: _Scene, finding: Finding, rng: np.random.Generator) -> Array:
    """Pleural fluid: opaque from the costophrenic angle up to a meniscus that climbs the lateral wall."""
    chest = scene.chest
    low, high = {"small": (0.175, 0.205), "moderate": (0.32, 0.40), "large": (0.55, 0.72)}[finding.size]
    fraction = rng.uniform(low, high)
    mask = np.zeros_like(scene.air)
    across = np.clip((chest.ax - 0.03) / (chest.anatomy.half_width - 0.03), 0.0, 1.0)
    for sign in finding.signs():
        bottom = chest.angle_y(sign)
        height = (fraction * rng.uniform(0.96, 1.04)) * (bottom - chest.anatomy.apex_y)
        meniscus = bottom - height * (0.74 + 0.16 * across**2) - 0.30 * min(height, 0.2) * across**8
        fluid = soft(chest.y - meniscus, 0.03) * scene.on(sign)
        scene.air *= 1.0 - 0.97 * fluid
        scene.vessel_gain *= 1.0 - fluid
        scene.fluid = np.maximum(scene.fluid, fluid)
        mask = np.maximum(mask, fluid * scene.visible)
    return mask


def _draw_pneumothorax(scene: _Scene, finding: Finding, rng: np.random.Generator) -> Array:
    """Free air between chest wall and a visible pleural line, without lung markings."""
    chest = scene.chest
    low, high = {"small": (0.036, 0.046), "moderate": (0.075, 0.092), "large": (0.125, 0.155)}[finding.size]
    depth = rng.uniform(low, high)
    (sign,) = finding.signs()
    bottom = chest.angle_y(sign)
    climb = np.clip((bottom - chest.y) / (bottom - chest.anatomy.apex_y), 0.0, 1.0)
    to_line = chest.wall - depth * (0.25 + 1.1 * climb)
    here = scene.on(sign) * (1.0 - scene.fluid)
    free = soft(-to_line, chest.edge(0.006)) * here
    scene.air = np.where(here > 0, scene.air + free * (1.12 * scene.lung - scene.air), scene.air)
    scene.air *= 1.0 - (1.0 - free) * here * (1.4 * depth)
    scene.vessel_gain *= 1.0 - free
    scene.extra += 0.15 * bump(to_line, chest.edge(0.005)) * here * scene.lung
    return free * scene.visible


def _site(chest: Chest, finding: Finding, rng: np.random.Generator) -> tuple[float, float]:
    """A point in the lateral half of the named zone, clear of heart and diaphragm."""
    (sign,) = finding.signs()
    base = chest.dome_top(sign)
    low, high = {"upper": (-0.25, -0.19), "mid": (-0.10, -0.02), "lower": (base - 0.10, base - 0.05)}[finding.zone]
    y = rng.uniform(low, high)
    return sign * (chest.outer(y) - rng.uniform(0.075, 0.115)), y


def _draw_consolidation(scene: _Scene, finding: Finding, rng: np.random.Generator) -> Array:
    """A lumpy airspace opacity with a few open bronchi."""
    chest = scene.chest
    cx, cy = _site(chest, finding, rng)
    rx, ry = rng.uniform(0.062, 0.085), rng.uniform(0.055, 0.08)
    lumps = _texture(rng, chest, 14)
    radius = norm((chest.x - cx) / rx, (chest.y - cy) / ry) + 0.16 * lumps
    patch = soft(1.0 - radius, 0.55) * scene.on(1 if cx > 0 else -1) * (1.0 - scene.fluid)
    scene.air *= 1.0 - (0.78 + 0.08 * np.clip(lumps, -1, 1)) * patch
    scene.vessel_gain *= 1.0 - 0.8 * patch
    return patch * scene.visible


def _draw_nodule(scene: _Scene, finding: Finding, rng: np.random.Generator) -> Array:
    """A round soft-tissue density of the stated diameter."""
    chest = scene.chest
    cx, cy = _site(chest, finding, rng)
    radius = finding.mm / 2 / FIELD_MM
    disc = soft(radius - norm(chest.x - cx, chest.y - cy), chest.edge(0.006)) * (1.0 - scene.fluid)
    scene.air *= 1.0 - 0.72 * disc
    return disc * scene.visible


def _draw_edema(scene: _Scene, finding: Finding, rng: np.random.Generator) -> Array:
    """Perihilar haze in both lungs with engorged vessels."""
    chest = scene.chest
    strength = {"mild": 0.32, "moderate": 0.50, "severe": 0.70}[finding.size] + rng.uniform(0, 0.06)
    spread = 0.17 + 0.13 * strength
    radius = norm((chest.ax - 0.10) / spread, (chest.y + 0.02) / (1.35 * spread))
    haze = soft(1.0 - radius + 0.12 * _texture(rng, chest, 22), 1.1)
    scene.air *= 1.0 - strength * haze
    scene.vessel_gain *= 1.0 + 0.4 * strength * (1.0 - scene.fluid)
    return haze * scene.visible


def _device_lines(finding: Finding, chest: Chest, rng: np.random.Generator) -> list[tuple[Array, float]]:
    """Centre lines [n, 2] and widths of a device, in body units."""
    jitter = rng.uniform(-1, 1, 2)
    if finding.device == "endotracheal tube":
        tip = CARINA_Y - 0.10 + 0.02 * jitter[0]
        return [(np.array([(0.004, -0.60), (0.002 + 0.003 * jitter[1], -0.42), (0.0, tip)]), 0.010)]
    if finding.device == "nasogastric tube":
        y = np.linspace(-0.6, chest.dome_top(1) + 0.06, 24)
        down = np.stack([0.012 + 0.006 * np.sin(9 * y + jitter[0]), y], -1)
        stomach = np.array([(0.05, y[-1] + 0.05), (0.11, y[-1] + 0.055), (0.15, y[-1] + 0.03)])
        return [(np.concatenate([down, stomach]), 0.007)]
    (sign,) = finding.signs()
    entry = np.array([(0.27, -0.305), (0.20, -0.335), (0.11, -0.322), (0.055, -0.29)]) * (sign, 1)
    cava = np.array([(-0.034, -0.22), (-0.040, -0.14), (-0.042, -0.05 + 0.02 * jitter[0])])
    if finding.device == "central line":
        return [(np.concatenate([entry, cava]), 0.006)]
    ventricle = np.array([(-0.030, 0.05), (0.02, 0.105), (0.085, 0.10 + 0.01 * jitter[1])])
    return [(np.concatenate([entry, cava[:2], ventricle]), 0.006), (ventricle[-2:], 0.010)]


def _draw_device(scene: _Scene, finding: Finding, rng: np.random.Generator) -> Array:
    """A device on the shared hardware canvas, and alone on another for its mask."""
    alone = Canvas(scene.chest.pose, scene.chest.side)
    lines = _device_lines(finding, scene.chest, rng)
    turn = np.linspace(0, 2 * np.pi, 32)
    for canvas in (scene.hardware, alone):
        for points, width in lines:
            canvas.lines(points[None], scene.wider * width, 0.85)
        if finding.device == "pacemaker":
            (sign,) = finding.signs()
            rounded = np.stack([np.sign(np.cos(turn)) * np.abs(np.cos(turn)) ** 0.6 * 0.046, 0.036 * np.sin(turn)], -1)
            canvas.polygons((rounded + np.array([sign * 0.255, -0.255]))[None], 1.0)
    return soft(alone.layer() - 0.25, 0.5)


_DRAWERS = {
    "effusion": _draw_effusion,
    "cardiomegaly": _draw_cardiomegaly,
    "pneumothorax": _draw_pneumothorax,
    "consolidation": _draw_consolidation,
    "nodule": _draw_nodule,
    "edema": _draw_edema,
    "device": _draw_device,
}


def _texture(rng: np.random.Generator, chest: Chest, cells: int) -> Array:
    """Smooth zero-mean noise of about unit variance, float32 [side, side], `cells` blobs across the image."""
    coarse = rng.standard_normal((cells, cells), dtype=np.float32)
    return np.asarray(Image.fromarray(coarse).resize((chest.side, chest.side), Image.Resampling.BICUBIC)) * 1.3


def _grain(rng: np.random.Generator, side: int) -> Array:
    """Quantum noise in [-1, 1], float32 [side, side]: one 256-cell field however large the image."""
    field = Image.frombytes("L", (256, 256), rng.bytes(256 * 256))
    grain = field.resize((side, side), Image.Resampling.BILINEAR, reducing_gap=1.0)
    return np.asarray(grain) * np.float32(1 / 127.5) - 1.0


def _expose(scene: _Scene, rng: np.random.Generator) -> Array:
    """Add up the densities, then apply the display curve, grain and collimation; float32 in [0, 1]."""
    chest = scene.chest
    posterior, anterior, girdle, vessels, airway = (Canvas(chest.pose, chest.side) for _ in range(5))
    draw_ribs(chest, posterior, anterior)
    draw_girdle(chest, girdle)
    draw_vessels(chest, vessels)
    draw_airway(chest, airway)
    torso, fat = chest.torso, chest.anatomy.habitus
    below = soft(-chest.dome, 0.02) * soft(chest.wall + 0.03, 0.05)
    below = np.maximum(below, 0.9 * scene.fluid * chest.cavity)
    density = (0.50 + 0.05 * fat) * torso + 0.15 * below + scene.extra
    density += 0.10 * chest.silhouette * (1.0 - 0.9 * below)
    density -= (0.44 - 0.06 * fat) * scene.air
    bone = posterior.layer(0.12) + anterior.layer(0.07)
    bone += girdle.layer(0.17) * (1.0 - 0.5 * chest.silhouette)
    bone += spine_density(chest) * (0.12 - 0.04 * chest.heart)
    density += bone * (1.0 - 0.5 * below) * torso
    density += vessels.layer(0.19) * scene.vessel_gain * scene.lung - airway.layer(0.10)
    density += _soft_parts(scene, rng)
    density += 0.012 * _texture(rng, chest, 48) * torso
    contrast, brightness = rng.uniform(1.02, 1.22), rng.uniform(-0.03, 0.03)
    shown = 0.56 + brightness + contrast * (density - 0.47)
    shown += 0.035 * _grain(rng, chest.side) * (0.3 + 0.7 * torso)
    shown += scene.hardware.layer(0.9) * (0.98 - shown)
    return np.clip(_collimate(shown, chest, rng), 0.0, 1.0)


def _soft_parts(scene: _Scene, rng: np.random.Generator) -> Array:
    """Hila, breast shadows and the gastric bubble."""
    chest, breast = scene.chest, scene.chest.anatomy.breast
    hilum = norm(chest.ax - 0.068, (chest.y + 0.055) * 0.62)
    added = 0.13 * bump(hilum, 0.05) * scene.lung
    if breast:
        d = norm((chest.ax - 0.21) / 0.15, (chest.y - 0.09) / 0.13)
        added += 0.075 * breast * soft(1.0 - d, 0.18) * soft(chest.y + 0.06, 0.16)
    has_bubble, reach = rng.random() < 0.6, rng.uniform(0.04, 0.065)
    if has_bubble:
        top = chest.dome_top(1) + 0.020
        d = norm((chest.x - 0.145) / reach, (chest.y - top - 0.03) / 0.028)
        added -= 0.17 * soft(1.0 - d, 0.5) * (1.0 - 0.7 * scene.fluid)
    return added


def _collimate(shown: Array, chest: Chest, rng: np.random.Generator) -> Array:
    """Black collimator borders on some images and the side marker at the patient's left shoulder."""
    at = (np.arange(chest.side, dtype=np.float32) + 0.5) / chest.side
    left, right, top, bottom = (rng.uniform(0.0, 0.03, 4) * (rng.random(4) < 0.3)).tolist()
    columns = _between(at, left, 1 - right)
    rows = _between(at, top, 1 - bottom)[:, None]
    shown = shown * columns * rows
    if rng.random() < 0.7:
        u, v, tall = 0.925, rng.uniform(0.06, 0.12), 0.035
        stem = _between(at, u - 0.004, u + 0.004) * _between(at, v, v + tall)[:, None]
        foot = _between(at, u - 0.004, u + 0.020) * _between(at, v + tall - 0.004, v + tall + 0.004)[:, None]
        shown += np.maximum(stem, foot) * (0.97 - shown)
    return shown


def _between(at: Array, low: float, high: float) -> Array:
    """How much of each pixel, centred at `at` in the unit interval, lies between `low` and `high`."""
    side = len(at)
    return np.clip(np.minimum(at + 0.5 / side, high) - np.maximum(at - 0.5 / side, low), 0.0, None) * side


def _average(layer: Array, size: int) -> Array:
    """Average of a float32 layer over each pixel of a [size, size] grid."""
    if layer.shape[0] == size:
        return layer
    # Pillow's BOX takes whole source pixels, which shifts edges when the ratio is not an integer.
    return np.asarray(Image.fromarray(layer.astype(np.float32)).resize((size, size), Image.Resampling.HAMMING))


def _binary(mask: Array) -> Array:
    """Soft mask to bool; a mark too thin to half-fill any pixel keeps its fullest ones."""
    return mask > 0.5 * min(1.0, max(float(mask.max()), 1e-3))


def bounding_box(mask: Array) -> tuple[int, int, int, int]:
    """The half-open box (x0, y0, x1, y1) of a mask's pixels."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not rows.size:
        return (0, 0, 0, 0)
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
