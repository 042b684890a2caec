"""Draw three cases to try the model on: an abdominal CT, a fundus photograph, a breast ultrasound picture.

    python -m litemed.benchmarks.demo OUT

writes them to OUT/cases and their truth to OUT/gts, in the challenge's npz layout. They stand in for images
that cannot be shipped and show whether an installation works; real images alone can judge a model.
"""

import math
import pathlib

import click
import cv2
import numpy as np
from numpy.typing import NDArray

from litemed.benchmarks.phantoms import Phantom, boxes_of

Plane = NDArray[np.float32]
Points = NDArray[np.float64]

_FINE = 4  # Outlines are filled on a grid so many times finer than pixels: edges get their partial volume.


def _ellipse(x: float, y: float, rx: float, ry: float) -> Points:
    """Return the outline of an ellipse, (48, 2) x y in pixels."""
    angle = np.linspace(0, 2 * math.pi, 48, endpoint=False)
    return np.stack([x + np.cos(angle) * rx, y + np.sin(angle) * ry], axis=1)


def _smooth(*xy: float) -> Points:
    """Return a smooth closed outline, (P, 2), near corners x, y, x, y ..., cut off four times (Chaikin)."""
    points = np.array(xy, np.float64).reshape(-1, 2)
    for _ in range(4):
        after = np.roll(points, -1, axis=0)
        points = np.stack([0.75 * points + 0.25 * after, 0.25 * points + 0.75 * after], 1).reshape(-1, 2)
    return points


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
_TISSUE = (
    (30, _ellipse(160, 128, 148, 104)),  # skin
    (-105, _ellipse(160, 128, 146, 102)),  # fat
    (58, _ellipse(160, 126, 134, 90)),  # wall
    (-98, _ellipse(160, 124, 125, 82)),  # fat within
    (56, _ellipse(126, 194, 28, 15)),  # muscles beside the spine
    (56, _ellipse(194, 194, 28, 15)),
    (480, _ellipse(160, 162, 24, 16)),  # vertebra
    (430, _smooth(146, 174, 174, 174, 178, 190, 164, 198, 163, 216, 157, 216, 156, 198, 142, 190)),
    (158, _ellipse(147, 138, 10, 6.5)),  # vena cava
    (72, _smooth(186, 66, 214, 56, 248, 64, 256, 88, 240, 108, 212, 112, 196, 96)),  # stomach, and its air
    (-950, _smooth(197, 70, 214, 61, 242, 67, 246, 78, 196, 78)),
)
_LIVER = _smooth(
    38, 128, 40, 92, 62, 62, 100, 46, 150, 44, 184, 54, 150, 78, 124, 116, 112, 136, 64, 172, 48, 160
)
_SPLEEN = _smooth(262, 92, 280, 112, 282, 140, 270, 166, 254, 166, 256, 146, 262, 128, 254, 108)
# The objects: HU, outline in the middle slice, length as a multiple of the volume's.
_ORGANS = (
    (112, _LIVER, 3.0),
    (126, _SPLEEN, 1.8),
    (178, _BEAN, 1.6),
    (178, np.array([320, 0]) + _BEAN * [-1, 1], 1.7),
    (215, _ellipse(167, 137, 9, 9), 99.0),
)


def draw_ct() -> Phantom:
    """Draw an abdominal CT (5, 256, 320) in a soft-tissue window, slices 8 mm apart.

    Labels: 1 liver, 2 spleen, 3 right kidney, 4 left kidney, 5 aorta.
    """
    rng = np.random.default_rng(0)
    shape = (256, 320)
    image = np.empty((5, *shape), np.uint8)
    labels = np.zeros(image.shape, np.uint16)
    background = np.full(shape, -1000, np.float32)
    for value, outline in _TISSUE:
        _blend(background, _cover(shape, outline), value)
    for z, position in enumerate(np.linspace(-1, 1, len(image)).tolist()):
        hounsfield = background.copy()
        for label, (value, outline, length) in enumerate(_ORGANS, start=1):
            middle = outline.mean(axis=0)
            share = _cover(shape, middle + (outline - middle) * math.sqrt(1 - (position / length) ** 2))
            _blend(hounsfield, share, value)
            labels[z][share > 0.5] = label
        noisy = _blur(hounsfield, 0.7) + 13 * _grain(rng, shape, 0.8) + 4 * _grain(rng, shape, 5)
        image[z] = np.clip((noisy + 160) / 400 * 255, 0, 255)  # from -160 to 240 HU
    return Phantom(image, labels, boxes_of(labels, len(_ORGANS)), (8.0, 1.25, 1.25))


def draw_fundus() -> Phantom:
    """Draw a fundus photograph of a right eye (512, 512, 3).

    Labels: 1 rim of the optic disc, 2 its cup. The cup's box lies within that of the whole disc.
    """
    rng = np.random.default_rng(0)
    shape = (512, 512)
    y, x = np.mgrid[:512, :512].astype(np.float32)
    light = 1 - 1.1 * ((x / 512 - 0.5) ** 2 + (y / 512 - 0.5) ** 2) + 0.03 * _grain(rng, shape, 13)
    light -= 0.30 * np.exp(-((x - 184) ** 2 + (y - 271) ** 2) / 1570)  # macula
    colour = light[..., None] * np.array([196, 92, 44], np.float32)
    disc = _cover(shape, _ellipse(358, 246, 45, 50))
    cup = _cover(shape, _ellipse(352, 248, 23, 26.5))
    soft = _blur(disc, 2.5)
    _blend(colour, soft, (236, 170, 96))
    _blend(colour, _blur(cup, 2.3), (252, 226, 168))
    vessels = np.zeros(shape, np.float32)
    for side in (-1, 1):
        for reach, width in ((150, 5), (130, 3)):
            long, short = (0, side * 150, 1.0, width), (180, 180 - side * 80, 1.0, width)
            cv2.ellipse(vessels, (358 - reach, 246), (reach, reach), 0, *long, cv2.LINE_AA)
            cv2.ellipse(vessels, (433, 246), (75, reach), 0, *short, cv2.LINE_AA)
    _blend(colour, (0.8 - 0.65 * soft) * _blur(vessels, 0.7), (125, 36, 25))
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
    # Skin, fat, glandular tissue, fascia, muscle, ribs' front.
    layers = ([0, 12, 16, 72, 90, 222, 234, 284, 320], [0.8, 0.8, 0.18, 0.18, 0.4, 0.4, 0.24, 0.24, 0.14])
    echo = np.interp(depth, *layers) + 0.05 * _grain(rng, shape, 16, 5)
    outline = _smooth(140, 138, 172, 110, 214, 106, 250, 130, 256, 158, 224, 186, 178, 190, 148, 168)
    mass = _cover(shape, outline)
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
        phantom.write(out / "cases" / f"{name}.npz")
        phantom.write(out / "gts" / f"{name}.npz", truth=True)
        click.echo(f"{out / 'cases' / name}.npz: {phantom.image.shape}, {len(phantom.boxes)} boxes")


if __name__ == "__main__":
    main()
