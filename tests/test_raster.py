"""NRRD and MetaImage in and out, as SimpleITK reads and writes them: every orientation, to the last bit."""

import itertools
import json
import re
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nibabel.orientations import axcodes2ornt, ornt_transform
from test_nifti import LPS, ORIENTATIONS, ball, oriented

import litemed.runtime
from litemed.runtime.errors import InputError
from litemed.runtime.folder import run_cases
from litemed.runtime.inputs.cases import read_case
from litemed.runtime.inputs.files import case_name
from litemed.runtime.inputs.volumes import VOLUMES

FLIP = np.diag([-1.0, -1.0, 1.0, 1.0])


def header(
    path: Path, affine: np.ndarray, shape: tuple[int, ...], data: str = "", kind: str = "short"
) -> str:
    """Return a header as Slicer (NRRD) or ITK (MetaImage) writes it; `affine` is to right, front and top."""
    lps = FLIP @ affine
    if path.suffix in (".nrrd", ".nhdr"):
        colour = len(shape) == 4
        axes = " ".join(f"({','.join(f'{float(x)!r}' for x in lps[:3, axis])})" for axis in range(3))
        lines = [
            *("NRRD0004", "# by hand", f"type: {kind}", f"dimension: {len(shape)}"),
            *("space: left-posterior-superior", f"sizes: {' '.join(map(str, shape))}"),
            f"space directions: {'none ' * colour}{axes}",
            *(f"kinds: {'vector ' * colour}domain domain domain", "endian: little", "encoding: raw"),
            f"space origin: ({','.join(f'{float(x)!r}' for x in lps[:3, 3])})",
            *('space units: "mm" "mm" "mm"', "Segment0_Name:=liver: left"),
            *([f"data file: {data}"] if data else []),
        ]
        return "\n".join(lines) + "\n\n"
    lengths = np.linalg.norm(lps[:3, :3], axis=0)
    fields = {
        **{"ObjectType": "Image", "NDims": 3, "BinaryData": "True", "BinaryDataByteOrderMSB": "False"},
        **{"CompressedData": "False", "Comment": "by hand"},
        "TransformMatrix": " ".join(f"{float(x)!r}" for x in (lps[:3, :3] / lengths).T.ravel()),
        "Offset": " ".join(f"{float(x)!r}" for x in lps[:3, 3]),
        **{"CenterOfRotation": "0 0 0", "AnatomicalOrientation": "RAI"},
        "ElementSpacing": " ".join(f"{float(x)!r}" for x in lengths),
        "DimSize": " ".join(map(str, shape[-3:])),
        **({"ElementNumberOfChannels": 3} if len(shape) == 4 else {}),
        "ElementType": {"short": "MET_SHORT", "uint8": "MET_UCHAR"}[kind],
        "ElementDataFile": data or "LOCAL",
    }
    return "".join(f"{key} = {value}\n" for key, value in fields.items())


def write(path: Path, stored: np.ndarray, affine: np.ndarray = LPS, boxes=((1, 1, 1, 3, 3, 2),)) -> Path:
    """Write a volume stored as (i, j, k), or (3, i, j, k), with its sidecar; some have voxels apart."""
    apart = {".nhdr": f"{path.stem}.raw", ".mhd": f"{path.stem}.raw"}.get(path.suffix, "")
    kind = {"int16": "short", "uint8": "uint8"}[str(stored.dtype)]
    text, values = header(path, affine, stored.shape, apart, kind).encode(), stored.tobytes(order="F")
    path.write_bytes(text + (b"" if apart else values))
    if apart:
        path.with_name(apart).write_bytes(values)
    path.with_name(f"{case_name(path)}.json").write_text(json.dumps({"boxes": boxes}))
    return path


def geometry(path: Path) -> set[str]:
    """Return the lines of a header that say where voxels lie."""
    names = (
        "space|space directions|space origin|space units|sizes|kinds|TransformMatrix|Offset|CenterOfRotation"
    )
    names += "|AnatomicalOrientation|ElementSpacing|DimSize"
    lines = path.read_bytes().decode("latin1").splitlines()
    return {line for line in lines if re.match(rf"({names})( =|:)", line)}


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(ORIENTATIONS),
    st.tuples(st.floats(-0.6, 0.6), st.floats(-0.6, 0.6)),
    st.sampled_from([".nrrd", ".nhdr", ".mha", ".mhd"]),
    st.tuples(st.integers(4, 9), st.integers(4, 9), st.integers(1, 6)),
)
def test_every_orientation_goes_there_and_back_and_is_seen_as_the_same_nifti(
    tmp_path_factory, codes, angles, suffix, shape
):
    folder = tmp_path_factory.mktemp("there")
    stored = np.random.default_rng(0).integers(-9, 999, shape, np.int16)
    affine = oriented(codes, angles, shape)
    path = write(folder / f"MR_a{suffix}", stored, affine)
    found = VOLUMES[suffix].open(path)
    nibabel.save(nibabel.Nifti1Image(stored, affine), folder / "same.nii")
    same = VOLUMES[".nii"].open(folder / "same.nii")
    assert found.view == same.view
    assert (found.read() == same.read()).all()
    assert found.spacing == pytest.approx(same.spacing, rel=1e-5)
    target = folder / f"labels{ {'.nhdr': '.nrrd', '.mhd': '.mha'}.get(suffix, suffix) }"
    with target.open("wb") as file:
        found.write_labels((found.read() > 500).astype(np.uint16), file)
    labels = VOLUMES[suffix].open(target)
    assert (labels.read() == (found.read() > 500)).all()
    assert labels.affine_mm.tobytes() == found.affine_mm.tobytes()
    assert len(geometry(path)) >= 6
    assert geometry(target) == geometry(path)


READ_BY_ITK = """
import sys, SimpleITK as sitk
for name in sys.argv[1:]:
    image = sitk.ReadImage(name)
    print([image.GetSize(), image.GetSpacing(), image.GetOrigin(), image.GetDirection(),
           sitk.GetArrayFromImage(image).astype(int).sum().item()])
"""


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
def test_label_maps_lie_where_itk_finds_the_image(tmp_path, box_bundle, suffix):
    pytest.importorskip("SimpleITK")
    segmenter = litemed.runtime.load(box_bundle, engine="onnxruntime", threads=1)
    change = ornt_transform(axcodes2ornt(tuple("LPS")), axcodes2ornt(tuple("RAI")))
    image = nibabel.orientations.apply_orientation(ball(), change)
    affine = oriented("RAI", (0.2, -0.1), (40, 44, 12))
    path = write(tmp_path / f"CT_a{suffix}", image, affine, [[14, 7, 2, 34, 27, 8]])
    (report,) = run_cases([path], tmp_path / "segs", segmenter)
    assert (report.status, report.intensity) == ("done", "CT, level 50, width 400")
    result = tmp_path / "segs" / path.name
    # In a process of its own, for it brings a C++ runtime that others here need not bear.
    told = subprocess.run(
        [sys.executable, "-c", READ_BY_ITK, path, result], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    given_, labels = map(json.loads, (line.replace("(", "[").replace(")", "]") for line in told))
    assert labels[:4] == given_[:4]
    assert labels[4] > 100


@pytest.mark.parametrize("suffix", [".nrrd", ".nhdr", ".mha", ".mhd"])
def test_colours_are_read_and_their_label_map_has_none(tmp_path, suffix):
    stored = np.random.default_rng(0).integers(0, 256, (3, 8, 9, 5), np.uint8)
    case = read_case(path := write(tmp_path / f"a{suffix}", stored))
    assert case.image.shape == (5, 9, 8, 3)
    assert (case.image == stored.transpose(3, 2, 1, 0)).all()
    assert case.shape == (5, 9, 8)
    target = tmp_path / f"l{ {'.nhdr': '.nrrd', '.mhd': '.mha'}.get(suffix, suffix) }"
    with target.open("wb") as file:
        case.origin.write_labels(np.ones((5, 9, 8), np.uint8), file)
    labels = VOLUMES[suffix].open(target)
    assert (labels.shape, labels.colour) == ((8, 9, 5), False)
    assert labels.affine_mm.tobytes() == VOLUMES[suffix].open(path).affine_mm.tobytes()


@pytest.mark.parametrize(
    ("suffix", "old", "new", "said"),
    [
        (".nrrd", "sizes: 8 9 5", "sizes: 8000000 9000 5", "sizes declares"),
        (".nrrd", "sizes: 8 9 5", "sizes: 8 9 4", "bytes for voxels"),
        (".nrrd", "type: short", "type: short\nbyte skip: -1", "skips"),
        (".nrrd", "space origin: (", "space origin: (nan,", "NRRD"),
        (".nhdr", "data file: a.raw", "data file: ../a.raw", "in the same folder"),
        (".nhdr", "data file: a.raw", "data file: link.raw", "symbolic link"),
        (".mha", "DimSize = 8 9 5", "DimSize = 8000000 9000 5", "DimSize declares"),
    ],
)
def test_what_cannot_be_used_is_one_line_that_names_the_file(tmp_path, suffix, old, new, said):
    path = write(tmp_path / f"MR_a{suffix}", np.ones((8, 9, 5), np.int16))
    path.with_suffix(".raw").rename(tmp_path / "a.raw") if suffix in (".nhdr", ".mhd") else None
    (tmp_path / "link.raw").symlink_to(tmp_path / "a.raw")
    text = path.read_bytes().replace(b"MR_a.raw", b"a.raw")
    path.write_bytes(text)
    read_case(path)
    assert old.encode() in text
    path.write_bytes(text.replace(old.encode(), new.encode(), 1))
    with pytest.raises(InputError, match=said) as error:
        read_case(path)
    assert str(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)


def test_deflated_voxels_that_are_more_or_fewer_than_declared_are_refused(tmp_path):
    for suffix, small in itertools.product((".nrrd", ".mha"), (4, 6)):
        path = write(tmp_path / f"MR_a{suffix}", np.ones((8, 9, 5), np.int16))
        stored = VOLUMES[suffix].open(path)
        with path.open("wb") as file:
            stored.write_labels(np.ones((5, 9, 8), np.uint8), file)
        assert VOLUMES[suffix].open(path).read().sum() == 360
        path.write_bytes(re.sub(rb"(sizes: |DimSize = )8 9 5", rb"\g<1>8 9 %d" % small, path.read_bytes()))
        with pytest.raises(InputError, match="fewer or more voxels"):
            VOLUMES[suffix].open(path).read()


def test_the_byte_order_is_that_of_the_header(tmp_path):
    stored = np.random.default_rng(0).integers(-999, 999, (8, 9, 5), np.int16)
    for suffix, old, new in (
        (".nrrd", b"endian: little", b"endian: big"),
        (".mha", b"ByteOrderMSB = False", b"ByteOrderMSB = True"),
    ):
        path = write(tmp_path / f"MR_a{suffix}", stored)
        text = path.read_bytes()[: -stored.nbytes].replace(old, new)
        path.write_bytes(text + stored.astype(">i2").tobytes(order="F"))
        assert (VOLUMES[suffix].open(path).read() == stored.transpose(2, 1, 0)).all()


def test_without_a_place_of_the_patient_voxels_are_seen_as_stored(tmp_path):
    text = "NRRD0001\ntype: uchar\ndimension: 3\nsizes: 4 5 6\nencoding: raw\n"
    for more, spacing in (("", None), ("spacings: 1 2 3\n", (3, 2, 1)), ("spacings: nan 2 3\n", None)):
        (tmp_path / "a.nrrd").write_bytes((text + more + "\n").encode() + bytes(range(120)))
        found = VOLUMES[".nrrd"].open(tmp_path / "a.nrrd")
        assert (found.read() == np.arange(120, dtype=np.uint8).reshape(6, 5, 4)).all()
        assert found.spacing == spacing
