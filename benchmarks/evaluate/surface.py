"""Normalised surface distance (NSD) of two masks, weighted by surface area, as published.

S. Nikolov et al., "Deep learning to achieve clinically applicable segmentation of head and neck anatomy
for radiotherapy" (2018), and the code published with it, google-deepmind/surface-distance. Written anew: its
only release on PyPI fails with numpy 2 where one mask is empty, calls what SciPy is about to remove, and
sorts all surface elements in Python.
"""

from __future__ import annotations

import functools
import itertools

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Mask = NDArray[np.bool_]
Spacing = tuple[float, float, float]

# The published marching-cubes table, one neighbourhood of each kind: the corners inside (4 z + 2 y + x), and
# the triangles of the surface between, as normals in eighths of a cell's faces; signs do not change areas.
_KINDS: tuple[tuple[tuple[int, ...], tuple[tuple[int, int, int], ...]], ...] = (
    ((7,), ((1, 1, 1),)),
    ((7, 6), ((2, 2, 0), (2, 2, 0))),
    ((6, 5), ((1, 1, 1), (1, 1, 1))),
    ((7, 6, 5), ((4, 0, 0), (2, 2, 2), (1, 1, 1))),
    ((7, 6, 5, 4), ((4, 0, 0), (4, 0, 0))),
    ((6, 5, 3), ((1, 1, 1), (1, 1, 1), (1, 1, 1))),
    ((7, 6, 5, 3), ((1, 1, 1), (2, 2, 2), (2, 2, 2), (1, 1, 1))),
    ((3, 4), ((1, 1, 1), (1, 1, 1))),
    ((7, 3, 4), ((0, 2, 2), (0, 2, 2), (1, 1, 1))),
    ((7, 6, 4, 3), ((0, 2, 2), (2, 0, 2), (1, 1, 1), (3, 3, 3))),
    ((6, 5, 4, 3), ((4, 0, 0), (2, 2, 2), (1, 1, 1), (1, 1, 1))),
    ((5, 4, 3, 2), ((2, 2, 0), (2, 2, 0), (2, 2, 0), (2, 2, 0))),
    ((7, 4, 2, 1), ((1, 1, 1), (1, 1, 1), (1, 1, 1), (1, 1, 1))),
)


def nsd(first: Mask, second: Mask, spacing: Spacing, tolerance: float) -> float:
    """Return the share of both surfaces that lies within `tolerance` of the other surface.

    A surface element lies between the voxels where a 2 x 2 x 2 neighbourhood is neither all inside nor all
    outside. 0 if one of the masks is empty, NaN if both are.

    Args:
        first, second: bool (D, H, W); outside of them everything is background.
        spacing: positive distance between neighbours along each axis, z y x.
        tolerance: in the unit of the spacing.
    """
    element_areas = _element_areas(spacing)
    codes = [_neighbour_codes(mask) for mask in (first, second)]
    borders = [(code != 0) & (code != 255) for code in codes]
    near = total = 0.0
    for code, own, other in zip(codes, borders, borders[::-1], strict=True):
        places = np.nonzero(own)
        areas = element_areas[code[places]]
        total += areas.sum()
        if other.any():
            near += areas[_distances(places, other, spacing) <= tolerance].sum()
    return float(near / total) if total else float("nan")


def _neighbour_codes(mask: Mask) -> NDArray[np.uint8]:
    """Return which of the 8 voxels round each voxel corner are inside, bit 4 z + 2 y + x; uint8."""
    padded = np.pad(mask, 1).view(np.uint8)
    codes = np.zeros([side + 1 for side in mask.shape], np.uint8)
    depth, height, width = codes.shape
    for bit, (z, y, x) in enumerate(itertools.product((0, 1), repeat=3)):
        codes |= padded[z : z + depth, y : y + height, x : x + width] << np.uint8(bit)
    return codes


@functools.lru_cache(maxsize=64)
def _element_areas(spacing: Spacing) -> NDArray[np.float64]:
    """Return the area of the surface element of each neighbour code, float64 (256,)."""
    z, y, x = spacing
    faces = np.array([y * x, z * x, z * y]) / 8
    areas = np.zeros(256)
    for inside, normals in _KINDS:
        corners = np.array(inside)[:, np.newaxis] >> [2, 1, 0] & 1
        for order in map(list, itertools.permutations(range(3))):
            area = np.linalg.norm(np.array(normals)[:, order] * faces, axis=1).sum()
            for flips in itertools.product((0, 1), repeat=3):
                numbers = (corners[:, order] ^ flips) @ [4, 2, 1]
                code = sum(1 << number for number in numbers.tolist())
                areas[code] = areas[255 - code] = area
    return areas


def _distances(places: tuple[NDArray[np.intp], ...], border: Mask, spacing: Spacing) -> NDArray[np.float64]:
    """Return how far each of `places` is from the nearest true element of `border`."""
    # Only where the nearest element lies: the distances of all voxels would take five times the memory.
    nearest = ndimage.distance_transform_edt(
        ~border, sampling=spacing, return_distances=False, return_indices=True
    )
    offsets = [(nearest[axis][places] - places[axis]) * length for axis, length in enumerate(spacing)]
    return np.sqrt(np.sum(np.square(offsets), axis=0))
