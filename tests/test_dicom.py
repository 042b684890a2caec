"""DICOM as scanners write it: stacked by position, rescaled slice by slice, or refused with a reason."""

import contextlib
import itertools
import pathlib
import re
import warnings

import highdicom
import nibabel
import numpy as np
import pydicom
import pydicom.data
import pytest
from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset

from litemed.runtime.errors import InputError, LitemedError, OutputError
from litemed.runtime.inputs.dicom import Dicom, looks_like_dicom
from litemed.runtime.inputs.nifti import Nifti

SHIPPED = pathlib.Path(pydicom.data.__file__).parent
AXIAL = ((1, 0, 0), (0, 1, 0))
UNITS = [tuple(sign * row) for row in np.eye(3) for sign in (1, -1)]
# Each of the 48 ways in which rows, columns and slices can lie along the patient's axes.
ALONG_AXES = [
    (axes, 2.5 * sign * np.cross(*axes))
    for axes in itertools.product(UNITS, UNITS)
    for sign in (1, -1)
    if np.dot(*axes) == 0
]


def dataset_of(pixels, storage=uid.CTImageStorage, **elements):
    """A dataset of pixels (rows, columns), of which the elements can be replaced, or left out by None."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = storage
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = uid.generate_uid()
    dataset.Modality, dataset.SeriesInstanceUID, dataset.SeriesDescription = "CT", "1.2.3", "Thorax"
    dataset.Rows, dataset.Columns = pixels.shape[-2:]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = pixels.dtype.itemsize * 8
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    dataset.PixelData = pixels.tobytes()
    for name, value in elements.items():
        setattr(dataset, name, value)
    return dataset


def save(dataset, path, **options):
    dataset.save_as(path, enforce_file_format=True, **options)
    return path


def write_series(folder, volume, *, axes=AXIAL, step=(0, 0, 2.5), names=None, **elements):
    """Write a volume (slices, rows, columns); `elements` are one value for all, or a list."""
    folder.mkdir(exist_ok=True)
    names = names or [f"{place}.dcm" for place in range(len(volume))]
    for place, (name, pixels) in enumerate(zip(names, volume, strict=True)):
        given = {key: value[place] if isinstance(value, list) else value for key, value in elements.items()}
        place_mm = [float(part) for part in np.array((-10, 20, 5)) + place * np.array(step)]
        given = {
            "ImagePositionPatient": place_mm,
            "ImageOrientationPatient": [float(part) for part in np.ravel(axes)],
            "PixelSpacing": [0.5, 0.75],
            "SliceThickness": 9,
            "SpacingBetweenSlices": 7,
            "InstanceNumber": place + 1,
        } | given
        save(dataset_of(pixels, **given), folder / name)
    return folder


def refusal(path):
    with pytest.raises(InputError) as caught:
        Dicom.open(path).read()
    assert "\n" not in str(caught.value)
    return str(caught.value).replace(f"{path}: ", "")


@pytest.fixture
def volume():
    return np.random.default_rng(0).integers(-1000, 1000, (5, 6, 4), np.int16)


def test_a_series_is_sorted_by_position_whatever_its_names_and_numbers_say(tmp_path, volume):
    names = ["c", "a", "e", "b", "d"]
    folder = write_series(tmp_path / "s", volume, names=names, InstanceNumber=[3, 1, 2, 5, 4])
    for name in ("DICOMDIR", "notes.txt", ".hidden"):
        (folder / name).write_text("no image")
    dicom = Dicom.open(folder)
    np.testing.assert_array_equal(dicom.read(), volume)
    assert [frame.path.name for frame in dicom.frames] == names
    assert (dicom.spacing, dicom.shape, dicom.modality) == ((2.5, 0.5, 0.75), (4, 6, 5), "CT")
    assert (dicom.passed_over, dicom.is_cine) == (3, False)
    expected = [[-0.75, 0, 0, 10], [0, -0.5, 0, -20], [0, 0, 2.5, 5], [0, 0, 0, 1]]
    np.testing.assert_array_equal(dicom.affine, expected)


OBLIQUE = ((0.6, 0.8, 0), (-0.8, 0.6, 0)), (0, 0, 2.5)
TILTED = AXIAL, (0, 0.5, 2.5)  # of which the affine carries the shear


@pytest.mark.parametrize(("axes", "step"), [*ALONG_AXES, OBLIQUE, TILTED])
def test_a_volume_is_seen_as_from_nifti(tmp_path, volume, axes, step):
    dicom = Dicom.open(write_series(tmp_path / "s", volume, axes=axes, step=step))
    affine, along = np.eye(4), np.cross(*axes) @ step
    affine[:3] = np.column_stack([np.array(axes[0]) * 0.75, np.array(axes[1]) * 0.5, step, (-10, 20, 5)])
    affine[:2] *= -1
    nibabel.save(nibabel.Nifti1Image(volume.transpose(2, 1, 0), affine), tmp_path / "v.nii")
    nifti = Nifti.open(tmp_path / "v.nii")
    np.testing.assert_array_equal(dicom.read(), nifti.read())
    if along < 0:  # slices are stored upwards along their normal
        affine[:, 3] += 4 * affine[:, 2]
        affine[:, 2] *= -1
    np.testing.assert_allclose(dicom.affine, affine, rtol=0, atol=1e-15 if axes is OBLIQUE[0] else 0)
    assert dicom.spacing == pytest.approx((2.5, *nifti.spacing[1:]))


def test_slices_are_rescaled_each_by_its_own_slope(tmp_path, volume):
    slopes, intercepts = [1.0, 0.01, 2.5, 1.0, 3.0], [0.0, -4.0, 1.0, 0.0, 7.0]
    folder = write_series(tmp_path / "s", volume, RescaleSlope=slopes, RescaleIntercept=intercepts)
    expected = volume * np.array(slopes)[:, None, None] + np.array(intercepts)[:, None, None]
    values = Dicom.open(folder).read()
    assert values.dtype == np.float32
    np.testing.assert_array_equal(values, expected.astype(np.float32))


def test_whole_slopes_give_integers(tmp_path, volume):
    stored = (volume + 1024).astype(np.uint16)
    elements = {"BitsStored": 12, "HighBit": 11, "RescaleSlope": 1, "RescaleIntercept": -1024}
    values = Dicom.open(write_series(tmp_path / "s", stored, **elements)).read()
    assert values.dtype == np.int16
    np.testing.assert_array_equal(values, volume)


def test_rounded_positions_are_even(tmp_path, volume):
    rounded = [[0.0, 0.0, round(place * 0.625, 2)] for place in range(5)]
    dicom = Dicom.open(write_series(tmp_path / "s", volume, ImagePositionPatient=rounded))
    assert dicom.spacing == (0.625, 0.5, 0.75)


@pytest.mark.parametrize(
    ("elements", "said"),
    [
        (
            {"ImagePositionPatient": [[0, 0, z] for z in (0, 5, 10, 20, 25)]},
            "slices are missing at one place, between 2.dcm and 3.dcm: 10 mm instead of 5",
        ),
        (
            {"ImagePositionPatient": [[0, 0, z] for z in (0, 1, 2, 3.5, 5)]},
            "uneven spacing of slices, from 1 to 1.5 mm and mostly 1; "
            "the first odd step is between 2.dcm and 3.dcm",
        ),
        (
            {"ImagePositionPatient": [[0, 0, z] for z in (0, 1, 1, 2, 3)]},
            "two slices at one position, 1.dcm and 2.dcm; give a folder of one echo, phase or time",
        ),
        (
            {"ImagePositionPatient": [[x, 0, z] for z, x in enumerate((0, 0, 0, 8, 8))]},
            "slices are shifted within their plane between 2.dcm and 3.dcm",
        ),
        (
            {"SeriesInstanceUID": ["1", "2", "1", "1", "2"], "SeriesDescription": list("abaab")},
            "2 series: a (CT, 3 files); b (CT, 2 files); give each a folder of its own",
        ),
        ({"SOPInstanceUID": "1.2"}, "0.dcm and 1.dcm are the same image"),
        (
            {"ImageOrientationPatient": [[1, 0, 0, 0, 1, 0]] * 4 + [[1, 0, 0, 0, 0, -1]]},
            "0.dcm and 4.dcm differ in axes: [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]] and "
            "[[1.0, 0.0, 0.0], [0.0, 0.0, -1.0]]",
        ),
        (
            {"PixelSpacing": [[1, 1]] * 4 + [[1, 2]]},
            "0.dcm and 4.dcm differ in spacing: [1.0, 1.0] and [1.0, 2.0]",
        ),
        ({"PixelSpacing": None}, "gives positions of its slices, but no PixelSpacing"),
        (
            {"ImagePositionPatient": [[0, 0, 1]] * 4 + [None]},
            "0.dcm and 4.dcm: only one of them gives its position",
        ),
    ],
)
def test_what_is_no_even_stack_is_refused_with_its_files(tmp_path, volume, elements, said):
    assert refusal(write_series(tmp_path / "s", volume, **elements)) == said


def test_slices_of_another_size_are_refused(tmp_path, volume):
    folder = write_series(tmp_path / "s", volume)
    write_series(folder, volume[:1, :3], names=["z"])
    assert refusal(folder) == "slices differ in size or colour, 0.dcm of 6 x 4 and z of 3 x 4"


def test_a_folder_without_images_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    assert refusal(tmp_path) == "has no DICOM image in it, but 1 other files"


@pytest.mark.parametrize("encoding", ["implicit", "explicit", "big"])
def test_a_file_without_preamble_is_read(tmp_path, volume, encoding):
    big = encoding == "big"
    dataset = dataset_of(volume[0].astype(">i2" if big else "<i2"))
    with (tmp_path / "bare").open("wb") as file:
        del dataset.file_meta
        dataset.save_as(file, implicit_vr=encoding == "implicit", little_endian=not big)
    assert (tmp_path / "bare").read_bytes()[128:132] != b"DICM"
    np.testing.assert_array_equal(Dicom.open(tmp_path / "bare").read(), volume[0])


@pytest.mark.parametrize("modality", ["DX", "CT"])
def test_monochrome1_is_turned_round_but_for_physical_values(tmp_path, modality):
    pixels = np.array([[0, 1], [4000, 4095]], np.uint16)
    elements = {"PhotometricInterpretation": "MONOCHROME1", "BitsStored": 12, "HighBit": 11}
    path = save(
        dataset_of(pixels, uid.DigitalXRayImageStorageForPresentation, Modality=modality, **elements),
        tmp_path / "x.dcm",
    )
    expected = {"DX": 4095 - pixels, "CT": pixels}[modality]
    np.testing.assert_array_equal(Dicom.open(path).read(), expected)


def colour(pixels, **elements):
    dataset = dataset_of(pixels[..., 0], uid.UltrasoundMultiFrameImageStorage, Modality="US", **elements)
    dataset.SamplesPerPixel, dataset.PlanarConfiguration = 3, 0
    dataset.PixelData = pixels.tobytes()
    return dataset


def test_a_colour_clip_is_frames_without_spacing(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (3, 6, 4, 3), np.uint8)
    elements = {"PhotometricInterpretation": "RGB", "NumberOfFrames": 3, "ImagePositionPatient": [0, 0, 0]}
    dicom = Dicom.open(save(colour(pixels, **elements), tmp_path / "clip.dcm"))
    np.testing.assert_array_equal(dicom.read(), pixels)
    assert (dicom.is_cine, dicom.spacing, dicom.affine, dicom.modality) == (True, None, None, "US")


def test_colours_are_r_g_b_of_8_bits(tmp_path):
    grey = np.full((4, 6, 3), (77, 128, 128), np.uint8)  # Y Cb Cr
    path = save(colour(grey, PhotometricInterpretation="YBR_FULL"), tmp_path / "ybr.dcm")
    np.testing.assert_array_equal(Dicom.open(path).read(), np.full((4, 6, 3), 77))
    deep = np.full((4, 6, 3), (0x1234, 0, 0xFFFF), np.uint16)
    path = save(colour(deep, PhotometricInterpretation="RGB"), tmp_path / "deep.dcm")
    np.testing.assert_array_equal(Dicom.open(path).read(), np.full((4, 6, 3), (0x12, 0, 0xFF)))


def test_a_colour_series_is_turned_as_a_grey_one(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (3, 6, 4, 3), np.uint8)
    (tmp_path / "s").mkdir()
    for place, image in enumerate(pixels):
        given = {"ImageOrientationPatient": [-1, 0, 0, 0, -1, 0], "PixelSpacing": [1, 1]}
        given |= {"ImagePositionPatient": [0, 0, place], "PhotometricInterpretation": "RGB"}
        save(colour(image, **given), tmp_path / "s" / str(place))
    np.testing.assert_array_equal(Dicom.open(tmp_path / "s").read(), pixels[:, ::-1, ::-1])


@pytest.fixture
def labels():
    """A label map of objects 1 and 3 of four; the first and the last slice are empty."""
    labels = np.zeros((5, 6, 4), np.uint8)
    labels[1:3, :3, 1:], labels[3, 4:] = 1, 3
    return labels


EMPTY = ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "ReferringPhysicianName", "StudyID")
PATIENT = dict.fromkeys((*EMPTY, "StudyDate", "StudyTime", "AccessionNumber"), "")
PATIENT |= {"StudyInstanceUID": "1.2.840.1.2", "FrameOfReferenceUID": "1.2.840.1.4"}


def write_seg(dicom, labels, path):
    """Write a SEG of four objects and return it as highdicom reads it."""
    with path.open("wb") as file:
        dicom.write_labels(labels, file, 4)
    found = highdicom.seg.segread(path)
    assert [one.SegmentLabel for one in found.SegmentSequence] == ["box 1", "box 2", "box 3", "box 4"]
    assert found.NumberOfFrames == 4 * dicom.shape[2]  # with those that are empty
    return found


@pytest.mark.parametrize("step", [(0, 0, -2.5), (0, 0.5, 2.5)])
def test_a_seg_lies_where_its_sources_do(tmp_path, volume, labels, step):
    axes = ((-1, 0, 0), (0, -1, 0))
    dicom = Dicom.open(write_series(tmp_path / "s", volume, axes=axes, step=step, **PATIENT))
    seg = write_seg(dicom, labels, tmp_path / "seg.dcm")
    uids = {file.path: file.uid for file in dicom.files}
    sources = [uids[frame.path] for frame in dicom.frames]
    found = seg.get_pixels_by_source_instance(sources, combine_segments=True)
    np.testing.assert_array_equal(found, dicom.view.store(labels).swapaxes(0, 2))
    places = [frame.position.tolist() for frame in dicom.frames]
    at = [
        frame.PlanePositionSequence[0].ImagePositionPatient for frame in seg.PerFrameFunctionalGroupsSequence
    ]
    assert sorted(map(list, at)) == sorted(places * 4)
    # The images say 7.
    assert seg.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].SpacingBetweenSlices == 2.5


def test_a_seg_of_frames_refers_to_them(tmp_path, volume, labels):
    dataset = enhanced(volume, [2, 0, 4, 1, 3])
    dataset.update(
        {name: value for name, value in dataset_of(volume, **PATIENT).items() if name not in dataset}
    )
    dicom = Dicom.open(save(dataset, tmp_path / "enhanced.dcm"))
    seg = write_seg(dicom, labels, tmp_path / "seg.dcm")
    numbers = [frame.index + 1 for frame in dicom.frames]
    found = seg.get_pixels_by_source_frame(dicom.files[0].uid, numbers, combine_segments=True)
    np.testing.assert_array_equal(found, labels)


def test_a_single_image_has_a_seg_and_a_clip_has_none(tmp_path, labels):
    dicom = Dicom.open(SHIPPED / "test_files/CT_small.dcm")
    mask = np.zeros((128, 128), np.uint8)
    mask[10:20, 30:70] = 4
    seg = write_seg(dicom, mask, tmp_path / "seg.dcm")
    found = seg.get_pixels_by_source_instance([dicom.files[0].uid], combine_segments=True)
    np.testing.assert_array_equal(found[0], mask)
    clip = Dicom.open(SHIPPED / "test_files/examples_ybr_color.dcm")
    with pytest.raises(OutputError, match="without a place of their own"):
        clip.write_labels(labels, None, 4)


def enhanced(volume, order):
    """A multi-frame file whose frames come in an order of its slices, each with a slope of its own."""
    dataset = dataset_of(volume[order], uid.EnhancedMRImageStorage, Modality="MR", NumberOfFrames=len(order))
    shared, measures, orientation = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, orientation.ImageOrientationPatient = [0.5, 0.75], [1, 0, 0, 0, 1, 0]
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [orientation]
    dataset.SharedFunctionalGroupsSequence, dataset.PerFrameFunctionalGroupsSequence = [shared], []
    for place in order:
        frame, position, scale = Dataset(), Dataset(), Dataset()
        position.ImagePositionPatient = [0, 0, place * 3]
        scale.RescaleSlope, scale.RescaleIntercept = place + 1, -place
        frame.PlanePositionSequence, frame.PixelValueTransformationSequence = [position], [scale]
        dataset.PerFrameFunctionalGroupsSequence.append(frame)
    return dataset


def test_frames_are_stacked_by_their_functional_groups(tmp_path, volume):
    path = save(enhanced(volume, [2, 0, 4, 1, 3]), tmp_path / "enhanced.dcm")
    dicom = Dicom.open(path)
    place = np.arange(5)[:, None, None]
    np.testing.assert_array_equal(dicom.read(), volume * (place + 1) - place)
    assert (dicom.spacing, dicom.modality) == ((3, 0.5, 0.75), "MR")
    assert [frame.index for frame in dicom.frames] == [1, 3, 0, 4, 2]
    path = save(enhanced(volume, [0, 1, 2, 4]), tmp_path / "gap.dcm")
    assert refusal(path).endswith("between gap.dcm (frame 3) and gap.dcm (frame 4): 6 mm instead of 3")


def test_slices_at_one_place_are_a_clip(tmp_path, volume):
    dicom = Dicom.open(write_series(tmp_path / "s", volume, step=(0, 0, 0), InstanceNumber=[2, 1, 3, 5, 4]))
    np.testing.assert_array_equal(dicom.read(), volume[[1, 0, 2, 4, 3]])
    assert dicom.is_cine


def test_the_window_is_told_and_not_applied(tmp_path, volume):
    path = save(dataset_of(volume[0], WindowCenter=[40, 1], WindowWidth=[400, 2]), tmp_path / "w.dcm")
    dicom = Dicom.open(path)
    assert (dicom.window.level, dicom.window.width) == (40, 400)
    np.testing.assert_array_equal(dicom.read(), volume[0])


@pytest.mark.parametrize(
    ("elements", "said"),
    [
        ({"Rows": 60000, "Columns": 60000}, "header declares 1 frames of 60000 x 60000, more than"),
        ({"NumberOfFrames": 200}, "header declares 200 frames of 6 x 4, more than the file holds"),
        ({"SOPClassUID": uid.EncapsulatedPDFStorage}, "Encapsulated PDF Storage, which is no image"),
        ({"RescaleSlope": 0}, "rescale slope and intercept are (0.0, 0.0); give finite numbers"),
        ({"PhotometricInterpretation": "HSV"}, "1 samples of 'HSV', which are not read"),
        ({"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]}, "is no pair of unit vectors"),
    ],
)
def test_headers_are_refused_unread(tmp_path, volume, elements, said):
    path = save(dataset_of(volume[0], **elements), tmp_path / "x.dcm")
    with pytest.raises(InputError, match=re.escape(said)):
        Dicom.open(path)


def test_a_missing_plugin_is_named(monkeypatch):
    path = SHIPPED / "test_files/MR_small_jpeg_ls_lossless.dcm"
    decoder = pydicom.pixels.get_decoder(uid.JPEGLSLossless)
    monkeypatch.setattr(decoder, "_available", {})
    monkeypatch.setattr(decoder, "_unavailable", {"pyjpegls": ("pyjpegls>=1.2",)})
    assert "compressed as JPEG-LS Lossless" in refusal(path)
    assert "install pyjpegls - requires pyjpegls>=1.2" in refusal(path)


# Files with pixels that pydicom ships and that are refused, and why; all others with pixels are read.
REFUSED = {
    "JPEG-lossy.dcm": "its pixels cannot be read",  # pydicom's list says so: only GDCM reads it
    "JPEG2000-embedded-sequence-delimiter.dcm": "a compressed frame of (1024, 3722445056)",
    "MR_truncated.dcm": "its pixels cannot be read (The number of bytes of pixel data is less than expected",
    **dict.fromkeys(("meta_missing_tsyntax.dcm", "nested_priv_SQ.dcm"), "DICOM without pixels"),  # of no size
    **dict.fromkeys(("liver_1frame.dcm", "liver_expb_1frame.dcm"), "Segmentation Storage, which is no image"),
    **dict.fromkeys(
        ("rtdose.dcm", "rtdose_1frame.dcm", "rtdose_expb.dcm", "rtdose_expb_1frame.dcm", "rtdose_rle.dcm"),
        "RT Dose Storage, which is no image",
    ),
    **dict.fromkeys(("rtdose_rle_1frame.dcm", "badVR.dcm"), "RT Dose Storage, which is no image"),
}


def shipped():
    """The files of pydicom's package that have pixels."""
    for path in sorted(SHIPPED.rglob("*")):
        if path.is_file() and (path.suffix == ".dcm" or looks_like_dicom(path)):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                dataset = pydicom.dcmread(path, force=True)
            if "PixelData" in dataset:
                yield path


def test_every_image_that_pydicom_ships_is_read_or_refused(capfd):
    refused, read = {}, 0
    for path in shipped():
        try:
            values = Dicom.open(path).read()
            assert values.size
            read += 1
        except InputError as error:
            refused[path.name] = str(error)
    assert refused.keys() == REFUSED.keys()
    assert all(REFUSED[name] in error for name, error in refused.items())
    assert read > 80
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("name", ["CT_small", "MR_small_RLE", "SC_rgb_jpeg_dcmtk", "MR_small_jp2klossless"])
def test_damage_gives_the_projects_errors_only(tmp_path, name):
    whole = (SHIPPED / f"test_files/{name}.dcm").read_bytes()
    random = np.random.default_rng(0)
    for _ in range(60):
        damaged = bytearray(whole[: random.integers(len(whole)) if random.random() < 0.3 else None])
        for place in random.integers(0, max(len(damaged), 1), random.integers(1, 20)) if damaged else ():
            damaged[place % 2000 % len(damaged)] = random.integers(256)
        (tmp_path / "x").write_bytes(damaged)
        with contextlib.suppress(LitemedError):
            Dicom.open(tmp_path / "x").read()


@pytest.mark.parametrize(
    ("name", "marker", "at"),
    [
        ("MR_small_jp2klossless", b"\xff\x4f\xff\x51", 8),
        ("SC_rgb_jpeg", b"\xff\xc0\0\x11", 5),
        ("MR_small_jpeg_ls_lossless", b"\xff\xf7\0\x0b", 5),
    ],
)
def test_a_codestream_larger_than_the_header_says_is_refused_undecoded(tmp_path, name, marker, at):
    data = bytearray((SHIPPED / f"test_files/{name}.dcm").read_bytes())
    side = (60_000).to_bytes(4 if at == 8 else 2, "big")
    place = data.index(marker) + at
    data[place : place + 2 * len(side)] = side * 2
    (tmp_path / "bomb.dcm").write_bytes(data)
    assert refusal(tmp_path / "bomb.dcm").startswith("a compressed frame of (60000, 60000), not")
