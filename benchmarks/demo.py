"""Draw three cases to try the model on: an abdominal CT, a fundus photograph, a breast ultrasound picture.

    python -m litemed.benchmarks.demo OUT

writes them to OUT/cases and their truth to OUT/gts, in the challenge's npz layout. They stand in for images
that cannot be shipped: schematic anatomy with the grey values, noise and blur of its kind. The masks are
known, so they show whether an installation works; real images alone can judge a model.
"""

from __future__ import annotations

import math
import pathlib

import click
import cv2
import numpy as np
from numpy.typing import NDArray

from litemed.benchmarks.phantoms import Phantom, boxes_of

Plane = NDArray[np.float32]
Points = NDArray[np.float64]

# Outlines are filled on a grid so many times finer than the pixels: edges get their partial volume.
_FINE = 4


def _ellipse(x: float, y: float, rx: float, ry: float, turn: float = 0) -> Points:
    """Return the outline of an ellipse, (48, 2) x y in pixels, turned by so many degrees."""
    angle = np.linspace(0, 2 * math.pi, 48, endpoint=False)
    c, s = math.cos(math.radians(turn)), math.sin(math.radians(turn))
    upright = np.stack([np.cos(angle) * rx, np.sin(angle) * ry], axis=1)
    return np.array([x, y]) + upright @ np.array([[c, s], [-s, c]])


def _smooth(*xy: float) -> Points:
    """Return a smooth closed outline, (P, 2), near corners x, y, x, y ..., cut off four times (Chaikin)."""
    points = np.array(xy, np.float64).reshape(-1, 2)
    for _ in range(4):
        after = np.roll(points, -1, axis=0)
        points = np.stack([0.75 * points + 0.25 * after, 0.25 * points + 0.75 * after], 1).reshape(-1, 2)
    return points


def _mirrored(outline: Points) -> Points:
    """Return the outline on the other side of the body's middle, x = 160."""
    return np.array([320, 0]) + outline * [-1, 1]


def _cover(shape: tuple[int, int], outline: Points) -> Plane:
    """Return which share of each pixel lies inside an outline, (H, W) in [0, 1]."""
    fine = np.zeros((shape[0] * _FINE, shape[1] * _FINE), np.uint8)
    # OpenCV counts in sixteenths, here, from the centre of a pixel.
    cv2.fillPoly(fine, [np.rint((outline * _FINE + (_FINE - 1) / 2) * 16).astype(np.int32)], 255, shift=4)
    share = cv2.resize(fine, shape[::-1], interpolation=cv2.INTER_AREA)
    return share.astype(np.float32) / np.float32(255)


def _blend(picture: Plane, share: Plane, value: float | tuple[int, int, int]) -> None:
    """Paint a value, grey or R G B, over a picture in place, as thickly as `share` (H, W) says."""
    share = share[..., None] if picture.ndim == 3 else share
    picture += share * (np.array(value, np.float32) - picture)


def _blur(plane: Plane, *sigma: float) -> Plane:
    """Blur by so many pixels, along x and y if two are given."""
    return np.asarray(cv2.GaussianBlur(plane, (0, 0), sigma[0], sigmaY=sigma[-1]), np.float32)


def _grain(rng: np.random.Generator, shape: tuple[int, int], *sigma: float) -> Plane:
    """Return noise of mean 0 and deviation 1, (H, W), blurred by so many pixels along x and y."""
    noise = _blur(rng.normal(size=shape).astype(np.float32), *sigma)
    return (noise - noise.mean()) / noise.std()


# Abdominal CT, 320 x 256 pixels of 1.25 mm, in Hounsfield units. The patient's right is on the left.
_BEAN = _smooth(75, 170, 78, 157, 92, 152, 105, 157, 109, 166, 98, 175, 108, 183, 102, 194, 88, 196, 77, 188)
_PAIRED = (  # with what lies opposite
    (60, _smooth(110, 42, 158, 32, 158, 41, 112, 50)),  # straight muscles of the belly
    (56, _ellipse(126, 194, 28, 17, -12)),  # those beside the spine
    (60, _ellipse(133, 166, 9, 13)),
    (330, _smooth(148, 176, 116, 178, 116, 183, 148, 190)),  # transverse processes
    (480, _ellipse(34, 120, 9, 3.6, 97)),  # ribs
    (190, _ellipse(34, 120, 6.5, 1.8, 97)),
    (480, _ellipse(67, 65, 9, 3.6, -38)),
    (190, _ellipse(67, 65, 6.5, 1.8, -38)),
)
_TISSUE = (
    (-80, _smooth(20, 232, 160, 244, 300, 232, 300, 236, 160, 249, 20, 236)),  # table
    (30, _ellipse(160, 128, 148, 104)),  # skin
    (-105, _ellipse(160, 128, 146, 102)),  # fat
    (58, _ellipse(160, 126, 134, 90)),  # wall
    (-98, _ellipse(160, 124, 125, 82)),  # fat within
    *(side for hu, outline in _PAIRED for side in ((hu, outline), (hu, _mirrored(outline)))),
    (
        480,
        _smooth(138, 150, 160, 145, 182, 150, 184, 166, 174, 178, 160, 174, 146, 178, 136, 166),
    ),  # vertebra
    (215, _smooth(141, 153, 160, 148, 179, 153, 181, 165, 172, 175, 160, 171, 148, 175, 139, 165)),
    (430, _smooth(146, 174, 174, 174, 178, 190, 164, 198, 163, 216, 157, 216, 156, 198, 142, 190)),
    (25, _ellipse(160, 183, 9.5, 7.5)),  # canal
    (48, _ellipse(160, 183, 5, 4)),
    (158, _ellipse(147, 138, 10, 6.5, -10)),  # vena cava
    (72, _smooth(186, 66, 214, 56, 248, 64, 256, 88, 240, 108, 212, 112, 196, 96)),  # stomach
    (18, _smooth(191, 69, 214, 60, 245, 67, 252, 88, 238, 104, 213, 108, 200, 95)),
    (-950, _smooth(197, 70, 214, 61, 242, 67, 246, 78, 196, 78)),
    (92, _smooth(150, 112, 172, 104, 200, 114, 236, 122, 234, 132, 204, 128, 176, 122, 152, 126)),  # pancreas
    (68, _ellipse(176, 92, 8, 7)),  # bowel
    (12, _ellipse(176, 92, 5, 4)),
    (66, _ellipse(222, 142, 11, 9)),
    (-60, _ellipse(222, 142, 8, 6)),
    (-900, _ellipse(222, 139, 6, 2.6)),
    (66, _ellipse(128, 122, 10, 7, 40)),
    (25, _ellipse(128, 122, 6, 4, 40)),
)
_LIVER = _smooth(
    *(38, 128, 40, 92, 62, 62, 100, 46, 150, 44, 184, 54, 176, 68),
    *(150, 78, 134, 96, 124, 116, 112, 136, 84, 150, 64, 172, 48, 160),
)
_SPLEEN = _smooth(262, 92, 280, 112, 282, 140, 270, 166, 254, 166, 256, 146, 262, 128, 254, 108)
# The objects: HU, outline in the middle slice, length as a multiple of the volume's.
_ORGANS = (
    (112, _LIVER, 3.0),
    (126, _SPLEEN, 1.8),
    (178, _BEAN, 1.6),
    (178, _mirrored(_BEAN), 1.7),
    (215, _ellipse(167, 137, 9, 9), 99.0),
)
_LIVER_VEINS = ((120, 110, 70, 92), (108, 104, 96, 66), (126, 96, 150, 62), (84, 98, 58, 124))


def draw_ct(depth: int = 8) -> Phantom:
    """Draw an abdominal CT (depth, 256, 320) in a soft-tissue window, slices 5 mm apart.

    Labels: 1 liver, 2 spleen, 3 right kidney, 4 left kidney, 5 aorta.
    """
    rng = np.random.default_rng(0)
    shape = (256, 320)
    image = np.empty((depth, *shape), np.uint8)
    labels = np.zeros(image.shape, np.uint16)
    background = np.full(shape, -1000, np.float32)
    for value, outline in _TISSUE:
        _blend(background, _cover(shape, outline), value)
    for z, position in enumerate(np.linspace(-1, 1, depth).tolist()):
        hounsfield = background.copy()
        for label, (value, outline, length) in enumerate(_ORGANS, start=1):
            middle = outline.mean(axis=0)
            share = _cover(shape, middle + (outline - middle) * math.sqrt(1 - (position / length) ** 2))
            _blend(hounsfield, share, value)
            labels[z][share > 0.5] = label
        for x0, y0, x1, y1 in _LIVER_VEINS:
            shift = round(4 * position)
            vein = np.zeros(shape, np.float32)
            cv2.line(vein, (x0 + shift, y0), (x1 + shift, y1), 1.0, 3)
            _blend(hounsfield, _blur(vein, 1) * (labels[z] == 1), 150)
        noisy = _blur(hounsfield, 0.7) + 13 * _grain(rng, shape, 0.8) + 4 * _grain(rng, shape, 5)
        image[z] = np.clip((noisy + 160) / 400 * 255, 0, 255)  # from -160 to 240 HU
    return Phantom(image, labels, boxes_of(labels, len(_ORGANS)), (5.0, 1.25, 1.25))


def _grow(
    ink: Plane, rng: np.random.Generator, at: Points, heading: float, width: float, bend: float
) -> None:
    """Draw a vessel from x, y in a direction in radians; it tapers, bends by `bend` a step, and branches."""
    while width > 0.9:
        to = at + 5 * np.array([math.cos(heading), math.sin(heading)])
        ends = np.rint(np.stack([at, to]) * 2 * 16).astype(int).tolist()
        cv2.line(ink, ends[0], ends[1], 1.0, round(2 * width), cv2.LINE_AA, shift=4)
        at, width = to, width * 0.988
        heading += bend + rng.normal(0, 0.05)
        bend *= 0.985
        if rng.random() < 0.05 and width > 1.5:
            side = rng.choice([-1, 1])
            _grow(ink, rng, at, heading + side * rng.uniform(0.5, 0.9), width * 0.6, -side * 0.01)
            width *= 0.9


def draw_fundus() -> Phantom:
    """Draw a fundus photograph of a right eye (512, 512, 3).

    Labels: 1 rim of the optic disc, 2 its cup. The cup's box lies within that of the whole disc.
    """
    rng = np.random.default_rng(0)
    shape = (512, 512)
    y, x = np.mgrid[:512, :512].astype(np.float32)
    light = 1 - 1.1 * ((x / 512 - 0.5) ** 2 + (y / 512 - 0.5) ** 2) + 0.03 * _grain(rng, shape, 13)
    light += 0.22 * np.exp(-((x - 358) ** 2 + (y - 246) ** 2) / 13100)
    light -= 0.30 * np.exp(-((x - 184) ** 2 + (y - 271) ** 2) / 1570)  # macula
    light += 0.015 * _grain(rng, shape, 3)
    colour = light[..., None] * np.array([196, 92, 44], np.float32)
    disc = _cover(shape, _ellipse(358, 246, 45, 50, 8))
    cup = _cover(shape, _ellipse(352, 248, 23, 26.5))
    soft = _blur(disc, 2.5)
    _blend(colour, soft, (236, 170, 96))
    _blend(colour, _blur(cup, 2.3), (252, 226, 168))
    for red, width, turn in (((112, 28, 22), 4.4, 0.0), ((156, 52, 32), 3.0, 0.16)):  # veins, arteries
        ink = np.zeros((1024, 1024), np.float32)
        for sign in (-1, 1):
            for heading, bend, share in ((1.815, 0.022, 1.0), (1.29, -0.012, 0.7)):
                start = np.array([373.5, 246 + 4 * sign])
                _grow(ink, rng, start, sign * (heading + turn), width * share, sign * bend)
        vessels = cv2.resize(_blur(ink, 1.2), shape, interpolation=cv2.INTER_AREA)
        _blend(colour, (0.8 - 0.35 * soft) * vessels, red)
    colour = _blur(colour, 0.8) + 3 * _grain(rng, shape, 0.7)[..., None]
    colour *= _blur(_cover(shape, _ellipse(256, 256, 243, 243)), 1.5)[..., None]
    labels = (disc > 0.5).astype(np.uint16) + (cup > 0.5)
    boxes = np.concatenate([boxes_of(np.minimum(labels, 1), 1), boxes_of(labels, 2)[1:]])
    return Phantom(np.clip(colour, 0, 255).astype(np.uint8), labels, boxes)


def draw_ultrasound() -> Phantom:
    """Draw a breast ultrasound picture (320, 400, 3). Label 1: a mass that casts a shadow."""
    rng = np.random.default_rng(0)
    shape = (320, 400)
    y, x = np.mgrid[:320, :400].astype(np.float32)
    depth = y + 6 * np.sin(x / 60 + 1) + 3 * np.sin(x / 23)
    # Skin, fat with septa, glandular tissue, fascia, muscle, ribs' front.
    layers = ([0, 12, 16, 72, 90, 222, 234, 284, 320], [0.8, 0.8, 0.18, 0.18, 0.4, 0.4, 0.24, 0.24, 0.14])
    echo = np.interp(depth, *layers) + 0.05 * _grain(rng, shape, 16, 5)
    echo += 0.35 * np.exp(-(((depth - 230) / 3) ** 2)) + 0.3 * np.exp(-(((depth - 290) / 4) ** 2))
    fibres = np.sin(depth / 3.2 + 0.8 * _grain(rng, shape, 40, 4))
    echo += 0.07 * fibres * ((depth > 234) & (depth < 286))
    for left, top, slope in rng.uniform([0, 30, -0.25], [400, 75, 0.25], (7, 3)):
        echo += 0.22 * np.exp(-(((y - top - slope * (x - left)) / 2) ** 2) - ((x - left) / 60) ** 2)
    angle = np.linspace(0, 2 * math.pi, 72, endpoint=False)
    waves = np.cos(np.arange(3, 9)[:, None] * angle + rng.uniform(0, 2 * math.pi, (6, 1)))
    bumps = 1 + (rng.uniform(0.01, 0.035, (6, 1)) * waves).sum(axis=0)
    mass = _cover(shape, np.array([196, 148]) + (bumps * [58 * np.cos(angle), 40 * np.sin(angle)]).T)
    echo += 0.35 * np.clip(_blur(mass, 7) - mass, 0, 1)  # a bright halo
    soft = _blur(mass, 2)
    _blend(echo, soft, 0.10)
    shadow = _blur(np.maximum.accumulate(mass, axis=0) - mass, 7, 3) * (1 - soft)
    echo *= (1 - 0.72 * shadow * np.exp(-(((x - 196) / 38) ** 4))) * (1.15 - 0.45 * y / 320)
    speckle = np.hypot(_grain(rng, shape, 1.5, 0.9), _grain(rng, shape, 1.5, 0.9)) / 1.25
    grey = np.clip(0.42 * np.log10(np.clip(np.maximum(echo, 0.015) * speckle, 1e-3, None)) + 0.8, 0, 1)
    image = np.repeat(_blur(255 * grey.astype(np.float32) ** 1.5, 0.6).astype(np.uint8)[..., None], 3, axis=2)
    labels = (mass > 0.5).astype(np.uint16)
    return Phantom(image, labels, boxes_of(labels, 1))


DEMO = {"3DBox_CT_abdomen": draw_ct, "2DBox_Fundus_disc": draw_fundus, "2DBox_US_mass": draw_ultrasound}


@click.command()
@click.argument("out", type=click.Path(path_type=pathlib.Path, file_okay=False))
def main(out: pathlib.Path) -> None:
    """Write three drawn cases to OUT/cases and their truth to OUT/gts."""
    for name, draw in DEMO.items():
        phantom = draw()
        phantom.write_case(out / "cases" / f"{name}.npz")
        phantom.write_truth(out / "gts" / f"{name}.npz")
        click.echo(f"{out / 'cases' / name}.npz: {phantom.image.shape}, {len(phantom.boxes)} boxes")


if __name__ == "__main__":
    main()
