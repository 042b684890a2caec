"""Distances between the surfaces of two masks, weighted by surface area, as published.

S. Nikolov et al., "Deep learning to achieve clinically applicable segmentation of head and neck anatomy
for radiotherapy" (2018), and the code published with it, google-deepmind/surface-distance. Written anew: the
package on PyPI (0.1) fails with numpy 2 as soon as one mask is empty.

Axis order is that of the arrays everywhere; lengths are in the unit of the spacing (mm, or pixels with a
spacing of 1).
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

Mask = npt.NDArray[np.bool_]
Corner = tuple[int, int, int]

_CORNERS: tuple[Corner, ...] = tuple((x, y, z) for x in (0, 1) for y in (0, 1) for z in (0, 1))


@dataclass(frozen=True, eq=False)
class SurfaceDistances:
    """The surface elements of two masks: how large each is and how far from the other mask's surface.

    A surface element lies between the pixels where a 2x2 (2x2x2) neighbourhood is neither all inside nor all
    outside. All arrays are float64 (elements,), in no particular order.

    Attributes:
        first_to_second: distance of each element of the first surface to the second; inf if that is empty.
        second_to_first: the other way round.
        first_areas: contour length (2D) or area (3D) of each element of the first surface.
        second_areas: the same for the second.
    """

    first_to_second: npt.NDArray[np.float64]
    second_to_first: npt.NDArray[np.float64]
    first_areas: npt.NDArray[np.float64]
    second_areas: npt.NDArray[np.float64]


def surface_distances(first: Mask, second: Mask, spacing: Sequence[float]) -> SurfaceDistances:
    """Measure the surfaces of two masks against each other.

    Args:
        first: bool (H, W) or (D, H, W).
        second: bool, the same shape.
        spacing: positive distance between neighbours along each axis, in the order of the axes.

    Raises:
        ValueError: shapes differ or are neither 2D nor 3D, or the spacing does not have one length per axis.
    """
    if first.shape != second.shape or first.ndim != len(spacing) or first.ndim not in (2, 3):
        raise ValueError(
            f"masks of shape {first.shape} and {second.shape} with spacing {tuple(spacing)}; "
            "give two 2D or 3D masks of one shape and one length per axis"
        )
    found = ndimage.find_objects((first | second).view(np.uint8))
    if not found:
        nothing = np.empty(0)
        return SurfaceDistances(nothing, nothing, nothing, nothing)
    areas = element_areas(tuple(float(length) for length in spacing))
    codes = [neighbour_codes(mask[found[0]]) for mask in (first, second)]
    borders = [(code != 0) & (code != len(areas) - 1) for code in codes]
    places = [np.nonzero(border) for border in borders]
    return SurfaceDistances(
        first_to_second=_distances(places[0], borders[1], spacing),
        second_to_first=_distances(places[1], borders[0], spacing),
        first_areas=areas[codes[0][places[0]]],
        second_areas=areas[codes[1][places[1]]],
    )


def surface_dice(distances: SurfaceDistances, tolerance: float) -> float:
    """Return the share of both surfaces that lies within `tolerance` of the other surface (NSD).

    `tolerance` is in the unit of the spacing. 0 if one surface is empty, NaN if both are.
    """
    total = distances.first_areas.sum() + distances.second_areas.sum()
    if not total:
        return float("nan")
    near = (
        distances.first_areas[distances.first_to_second <= tolerance].sum()
        + distances.second_areas[distances.second_to_first <= tolerance].sum()
    )
    return float(near / total)


def neighbour_codes(mask: Mask) -> npt.NDArray[np.uint8]:
    """Return which of the 4 (8) pixels round each pixel corner are inside, one bit each.

    The result is one longer than the mask along each axis; outside the mask everything is background.
    Bit i stands for the i-th of the offsets (0, 0), (0, 1), (1, 0), (1, 1), in 3D likewise.
    """
    padded = np.pad(mask, 1).view(np.uint8)
    codes = np.zeros([side + 1 for side in mask.shape], np.uint8)
    for bit, offset in enumerate(itertools.product((0, 1), repeat=mask.ndim)):
        window = tuple(slice(o, o + side) for o, side in zip(offset, codes.shape, strict=True))
        codes |= padded[window] << np.uint8(bit)
    return codes


@functools.lru_cache(maxsize=64)
def element_areas(spacing: tuple[float, ...]) -> npt.NDArray[np.float64]:
    """Return the size of the surface element of each neighbour code: float64 (16,) in 2D, (256,) in 3D.

    The unit is that of `spacing`, in 3D its square. The array is read-only.
    """
    if len(spacing) == 2:
        areas = _contour_lengths(*spacing)
    else:
        x, y, z = spacing
        areas = np.linalg.norm(_triangle_normals() * [y * z, x * z, x * y], axis=2).sum(axis=1)
    areas.flags.writeable = False
    return areas


def _distances(
    places: tuple[npt.NDArray[np.intp], ...], border: Mask, spacing: Sequence[float]
) -> npt.NDArray[np.float64]:
    """Return how far each of `places` is from the nearest true element of `border`."""
    if not border.any():
        return np.full(len(places[0]), np.inf)
    # Only where the nearest element lies: the distances of all voxels would take five times the memory.
    nearest = ndimage.distance_transform_edt(
        ~border, sampling=spacing, return_distances=False, return_indices=True
    )
    squares = np.zeros(len(places[0]))
    for axis, length in enumerate(spacing):
        squares += ((nearest[axis][places] - places[axis]) * float(length)) ** 2
    return np.sqrt(squares)


def _contour_lengths(vertical: float, horizontal: float) -> npt.NDArray[np.float64]:
    """Return the contour length of the 16 neighbourhoods: straight, or half a diagonal round each corner."""
    half_diagonal = 0.5 * np.hypot(vertical, horizontal)
    lengths = np.zeros(16)
    for code in range(1, 15):
        inside = [divmod(bit, 2) for bit in range(4) if code >> bit & 1]
        if len(inside) != 2:
            lengths[code] = half_diagonal
        elif inside[0][0] == inside[1][0]:
            lengths[code] = horizontal
        elif inside[0][1] == inside[1][1]:
            lengths[code] = vertical
        else:
            lengths[code] = 2 * half_diagonal
    return lengths


@functools.cache
def _triangle_normals() -> npt.NDArray[np.float64]:
    """Return the marching-cubes triangles of each neighbour code, as normals whose lengths are the areas.

    float64 (256, 4, 3) for a spacing of 1; a code with fewer than four triangles ends in zeros. Inside and
    outside may be exchanged, as in the original marching cubes: the smaller part is taken as the inside,
    and each of its connected pieces is cut off by a surface of its own.
    """
    normals = np.zeros((256, 4, 3))
    for code in range(1, 255):
        inside = frozenset(corner for bit, corner in enumerate(_CORNERS) if code >> bit & 1)
        if len(inside) > 4:
            inside = frozenset(_CORNERS) - inside
        triangles = np.concatenate([_triangulate(_outline(piece)) for piece in _pieces(inside)])
        normals[code, : len(triangles)] = triangles
    return normals


def _neighbour(corner: Corner, axis: int) -> Corner:
    """Return the corner of the unit cube at the other end of the edge along `axis`."""
    moved = list(corner)
    moved[axis] = 1 - moved[axis]
    return moved[0], moved[1], moved[2]


def _pieces(inside: frozenset[Corner]) -> list[set[Corner]]:
    """Return the parts of `inside` that are connected along the cube's edges."""
    left = set(inside)
    pieces = []
    while left:
        piece, fringe = set(), [left.pop()]
        while fringe:
            corner = fringe.pop()
            piece.add(corner)
            fresh = {_neighbour(corner, axis) for axis in range(3)} & left
            left -= fresh
            fringe.extend(fresh)
        pieces.append(piece)
    return pieces


def _outline(piece: set[Corner]) -> npt.NDArray[np.float64]:
    """Return the polygon, float64 (vertices, 3), through the middles of the edges that leave `piece`.

    Consecutive vertices share a face of the cube. `piece` is connected and has at most four corners, so
    that no face is crossed more than once and there is one polygon.
    """
    cuts = [(c, axis) for c in sorted(piece) for axis in range(3) if _neighbour(c, axis) not in piece]
    partners: dict[tuple[Corner, int], list[tuple[Corner, int]]] = {cut: [] for cut in cuts}
    for axis, side in itertools.product(range(3), (0, 1)):
        on_face = [cut for cut in cuts if cut[1] != axis and cut[0][axis] == side]
        if on_face:
            one, other = on_face
            partners[one].append(other)
            partners[other].append(one)
    ring = [cuts[0], partners[cuts[0]][0]]
    while len(ring) < len(cuts):
        before, last = ring[-2:]
        ring.append(next(cut for cut in partners[last] if cut != before))
    vertices = np.array([corner for corner, _ in ring], np.float64)
    vertices[np.arange(len(ring)), [axis for _, axis in ring]] = 0.5
    return vertices


def _triangulate(polygon: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the normals, float64 (triangles, 3), of a polygon cut into triangles as published.

    The polygon need not be flat, so the cut decides the area. The published table follows this rule: cut
    off every second vertex, beginning where that gives the largest area (all 256 codes were compared).
    """
    best = np.zeros((1, 3))
    for start in range(len(polygon)):
        ring = list(np.roll(polygon, -start, axis=0))
        triangles = []
        ear = 0
        while len(ring) > 3:
            ear = (ear + 1) % len(ring)
            triangles.append((ring[ear - 1], ring[ear], ring[(ear + 1) % len(ring)]))
            del ring[ear]
        triangles.append((ring[0], ring[1], ring[2]))
        normals = np.array([np.cross(b - a, c - a) / 2 for a, b, c in triangles])
        # The margin keeps rounding from choosing among equals.
        if np.linalg.norm(normals, axis=1).sum() > np.linalg.norm(best, axis=1).sum() + 1e-9:
            best = normals
    return best
