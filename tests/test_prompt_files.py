"""Boxes of other tools: the same objects give the same boxes, and the same label map, from every format."""

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from test_nifti import ORIENTATIONS, oriented
from test_nifti import write as write_nifti
from test_run_cli import invoke

from litemed.runtime.errors import InputError, UsageError
from litemed.runtime.inputs.cases import read_case
from litemed.runtime.prompts.extents import Given, Grid, Margin, boxes_of, parse_margin
from litemed.runtime.prompts.source import BoxSource
from litemed.runtime.report import load_report

# First and last pixel of each object, x y and in a volume z; the last one is a single pixel wide.
OBJECTS = [((2, 3), (20, 30)), ((25, 5), (36, 9)), ((40, 31), (40, 38))]
SOLIDS = [((2, 3, 1), (12, 14, 3)), ((14, 2, 0), (16, 8, 4)), ((9, 16, 2), (9, 18, 2))]
SIZE, SHAPE = (48, 40), (18, 20, 6)


def mask(objects, shape) -> np.ndarray:
    """Labels 1, 2, ... on pixels stored as x y or x y z."""
    labels = np.zeros(shape, np.uint8)
    for label, (first, last) in enumerate(objects, 1):
        labels[tuple(slice(a, b + 1) for a, b in zip(first, last, strict=True))] = label
    return labels


def rows(objects) -> list[list[int]]:
    return [[*first, *last] for first, last in objects]


def table(objects, case: str, units: str = "") -> str:
    names = ("x0", "y0", "z0", "x1", "y1", "z1") if len(objects[0][0]) == 3 else ("x0", "y0", "x1", "y1")
    lines = [f"label,case,{','.join(names)}" + ",units" * bool(units)]
    lines += [f'"a, b",{case},{",".join(map(str, row))}' + f",{units}" * bool(units) for row in rows(objects)]
    return "\n".join(lines) + "\n"


def coco(objects, name: str) -> str:
    boxes = [(*first, *(np.subtract(last, first) + 1).tolist()) for first, last in objects]
    image = {"id": 7, "file_name": f"somewhere/{name}.png", "width": SIZE[0], "height": SIZE[1]}
    annotations = [{"id": i, "image_id": 7, "category_id": 1, "bbox": box} for i, box in enumerate(boxes)]
    return json.dumps({"images": [image], "annotations": annotations, "categories": []})


def labelme(objects, name: str) -> str:
    shapes = []
    for place, ((x0, y0), (x1, y1)) in enumerate(objects):
        points = (
            [[x1 + 1, y0], [x0, y1 + 1]] if place else [[x0, (y0 + y1) / 2], [x0 + 3, y0], [x1 + 1, y1 + 1]]
        )
        shapes.append({"label": "o", "shape_type": "rectangle" if place else "polygon", "points": points})
    return json.dumps({"version": "5", "imagePath": f"..\\{name}.png", "shapes": shapes})


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "cases" / "photo.png"
    path.parent.mkdir()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, SIZE[::-1], np.uint8)).save(path)
    return path


def png(path: Path, labels: np.ndarray) -> Path:
    Image.fromarray(labels.T).save(path)
    return path


def test_all_formats_give_one_label_map_of_a_picture(picture, box_bundle, tmp_path):
    files = {
        "boxes.csv": table(OBJECTS, "photo"),
        "boxes.jsonl": json.dumps({"case": "photo.png", "boxes": rows(OBJECTS)}) + "\n\n",
        "coco.json": coco(OBJECTS, "photo"),
        "labelme.json": labelme(OBJECTS, "photo"),
        "own.json": json.dumps({"boxes": rows(OBJECTS)}),
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    png(tmp_path / "mask.png", mask(OBJECTS, SIZE))
    one = mask([*OBJECTS[:1]], SIZE) + mask(OBJECTS[1:], SIZE) * 0
    np.maximum(one, mask(OBJECTS, SIZE) > 0, out=one)
    png(tmp_path / "parts.png", one)  # one label of three parts, the upper ones first
    (tmp_path / "folder").mkdir()
    png(tmp_path / "folder" / "photo.png", mask(OBJECTS, SIZE))
    expected = [[2, 3, 20, 30], [25, 5, 36, 9], [40, 31, 41, 38]]
    results = []
    for name in (*files, "mask.png", "parts.png", "folder"):
        source = BoxSource(tmp_path / name, components=name == "parts.png")
        case = read_case(picture, prompts=source)
        assert case.boxes.xyxy.tolist() == expected, name
        out = tmp_path / "out" / name
        more = ["--components"] if name == "parts.png" else []
        done = invoke(picture, "-o", out, "--prompts", tmp_path / name, "--model", box_bundle, *more)
        assert done.exit_code == 0, done.output
        results.append((out / "photo.npz").read_bytes())
    assert len(set(results)) == 1


@settings(max_examples=48, deadline=None)
@given(st.sampled_from(ORIENTATIONS), st.tuples(st.floats(-0.6, 0.6), st.floats(-0.6, 0.6)))
def test_all_formats_give_the_same_boxes_of_a_volume(tmp_path_factory, codes, angles):
    folder = tmp_path_factory.mktemp("volume")
    affine = oriented(codes, angles, SHAPE)
    values = np.random.default_rng(0).integers(0, 999, SHAPE, np.int16)
    path = write_nifti(folder / "MR_head.nii.gz", values, affine)
    placed = nibabel.load(path).affine
    write_nifti(folder / "mask.nii", mask(SOLIDS, SHAPE), affine)
    (folder / "px.csv").write_text(table(SOLIDS, "MR_head.nii.gz"))
    markups, spacing = [], np.linalg.norm(placed[:3, :3], axis=0)
    for first, last in SOLIDS:
        centre = placed @ [*np.add(first, last) / 2, 1]
        turned = np.diag([-1, -1, 1]) @ placed[:3, :3] / spacing
        markups.append(
            {
                "type": "ROI",
                "coordinateSystem": "LPS",
                "center": (centre[:3] * [-1, -1, 1]).tolist(),
                "size": ((np.subtract(last, first) + 1) * spacing).tolist(),
                "orientation": turned.ravel().tolist(),
            }
        )
    (folder / "roi.mrk.json").write_text(json.dumps({"markups": markups}))
    found = [
        read_case(path, prompts=BoxSource(folder / name)) for name in ("px.csv", "mask.nii", "roi.mrk.json")
    ]
    seen = nibabel.load(folder / "mask.nii").get_fdata()
    for case in found:
        np.testing.assert_array_equal(case.boxes.xyxy, found[0].boxes.xyxy)
        np.testing.assert_array_equal(case.boxes.z, found[0].boxes.z)
    shown = found[0].origin.view.show(seen)
    for label, ((x0, y0, x1, y1), (z0, z1)) in enumerate(
        zip(found[0].boxes.xyxy.tolist(), found[0].boxes.z.tolist(), strict=True), 1
    ):
        z, y, x = np.nonzero(shown == label)
        assert [x.min(), y.min(), z.min(), z.max()] == [x0, y0, z0, z1]
        assert [x1, y1] == [max(x.max(), x.min() + 1), max(y.max(), y.min() + 1)]


@pytest.mark.parametrize("units", ["RAS", "LPS"])
def test_millimetres_are_of_the_patient_and_corners_may_come_in_any_order(tmp_path, units):
    path = write_nifti(tmp_path / "CT_a.nii", np.zeros(SHAPE, np.int16))  # x and y run to the left and back
    low, high = np.diag([-0.7, -0.8, 2.5]) @ [3, 4, 1], np.diag([-0.7, -0.8, 2.5]) @ [8, 9, 2]
    corners = np.array([low, high]) * ([1, 1, 1] if units == "RAS" else [-1, -1, 1])
    line = {"case": "CT_a", "boxes": [corners.ravel().tolist()], "units": units}
    (tmp_path / "b.jsonl").write_text(json.dumps(line))
    boxes = boxes_of(BoxSource(tmp_path / "b.jsonl")._rows(path), Grid(SHAPE, np.diag([-0.7, -0.8, 2.5, 1])),
                     Margin(), "x")  # fmt: skip
    assert (boxes.xyxy.tolist(), boxes.z.tolist()) == ([[3, 4, 8, 9]], [[1, 2]])


@settings(max_examples=300, deadline=None)
@given(
    st.tuples(st.integers(0, 40), st.integers(0, 40), st.integers(0, 40)),
    st.tuples(st.integers(0, 20), st.integers(0, 20), st.integers(0, 20)),
    st.floats(-3, 3),
    st.floats(0.05, 20),
    st.sampled_from(["index", "edge", "RAS", "LPS"]),
    st.floats(-0.4, 0.4),
)
def test_no_box_of_whole_pixels_moves_on_a_round_trip(first, size, angle, scale, frame, off):
    first, last = np.array(first), np.add(first, size)
    turned = (
        np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]]) * scale
    )
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = turned, (12.3, -4, 5)
    outer = np.array([first - 0.5, last + 0.5])  # the edges of the pixels, drawn less than half a pixel off
    corners = np.array(np.meshgrid(*outer.T)).reshape(3, -1).T * (1 + 0 * off) + off * (
        1 if frame != "index" else 0
    )
    if frame == "index":
        corners = np.array([first, last], float)
    elif frame == "edge":
        corners = corners + 0.5
    else:
        corners = (corners @ turned.T + affine[:3, 3]) * ([1, 1, 1] if frame == "RAS" else [-1, -1, 1])
    boxes = boxes_of([Given(corners, frame, "a")], Grid((64, 64, 64), affine), Margin(), "x")
    assert boxes.xyxy.tolist() == [[*first[:2].tolist(), *last[:2].tolist()]]
    assert boxes.z.tolist() == [[first[2], last[2]]]


@pytest.mark.parametrize(
    ("frame", "ends", "expected"),
    [
        ("edge", (2, 5), (2, 4)), ("edge", (2.4, 5), (2, 4)), ("edge", (2.6, 5), (3, 4)),
        ("edge", (2.2, 2.3), (2, 2)), ("edge", (2.9, 3.3), (3, 3)), ("edge", (2.6, 2.6), (2, 2)),
        ("index", (2, 5), (2, 5)), ("index", (2.2, 4.9), (3, 4)), ("index", (2.1, 2.4), (2, 2)),
        ("index", (2.6, 2.7), (3, 3)), ("index", (2.0004, 4.9996), (2, 5)),
    ],
)  # fmt: skip
def test_the_rule_for_fractions(frame, ends, expected):
    low, high = ends
    boxes = boxes_of([Given(np.array([[low, 1], [high, 4]]), frame, "a")], Grid((9, 9)), Margin(), "x")
    assert tuple(boxes.xyxy[0, [0, 2]].tolist()) == expected


def test_margins(picture, tmp_path):
    (tmp_path / "b.csv").write_text(table(OBJECTS, "photo"))
    case = read_case(picture, prompts=BoxSource(tmp_path / "b.csv", parse_margin("3")))
    assert case.boxes.xyxy.tolist() == [[0, 0, 23, 33], [22, 2, 39, 12], [37, 28, 43, 39]]
    assert case.boxes.clipped == (1, 3)
    with pytest.raises(InputError, match="no spacing for a margin in mm"):
        read_case(picture, prompts=BoxSource(tmp_path / "b.csv", parse_margin("3mm")))
    grid = Grid((50, 50, 50), None, (0.7, 0.8, 2.5))
    boxes = boxes_of(
        [Given(np.array([[10, 10, 10], [20, 20, 20.0]]), "index", "a")], grid, parse_margin("2mm"), "x"
    )
    assert (boxes.xyxy.tolist(), boxes.z.tolist()) == ([[7, 8, 23, 22]], [[9, 21]])
    head = "NRRD0004\ntype: uint8\ndimension: 3\nsizes: 8 9 5\nspacings: 0.5 1 2.5\nencoding: raw\n\n"
    scan = tmp_path / "MR_a.nrrd"  # which has spacing, and no place in the patient
    scan.write_bytes(head.encode() + bytes(range(200)) + bytes(160))
    (tmp_path / "a.csv").write_text("case,x0,y0,x1,y1,z0,z1\nMR_a,3,3,4,4,2,2\n")
    boxes = read_case(scan, prompts=BoxSource(tmp_path / "a.csv", parse_margin("1.5mm"))).boxes
    assert (boxes.xyxy.tolist(), boxes.z.tolist()) == ([[0, 1, 7, 6]], [[1, 3]])
    for text in ("-1", "x", "1.5", "nan", "infmm", "mm", "2000"):
        with pytest.raises(UsageError, match="give whole pixels, or mm"):
            parse_margin(text)


def test_boxes_on_single_slices_of_a_volume(tmp_path):
    np.savez(tmp_path / "v.npz", imgs=np.zeros((6, 20, 18), np.uint8), spacing=[2.5, 0.8, 0.7])
    (tmp_path / "b.csv").write_text("case,x0,y0,x1,y1,z,z0,z1\nv,1,2,9,8,4,,\nv,1,2,9,8,,0,3\n")
    case = read_case(tmp_path / "v.npz", prompts=BoxSource(tmp_path / "b.csv"))
    assert case.boxes.z.tolist() == [[4, 4], [0, 3]]
    assert case.boxes.xyxy.tolist() == [[1, 2, 9, 8]] * 2
    assert case.boxes.on_slice.tolist() == [True, False]
    case = read_case(tmp_path / "v.npz", prompts=BoxSource(str(tmp_path / "b.csv"), parse_margin("2")))
    assert case.boxes.z.tolist() == [[4, 4], [0, 5]]  # the slice stays


def test_only_the_case_whose_boxes_changed_is_segmented_again(picture, box_bundle, tmp_path):
    other = picture.with_name("other.png")
    other.write_bytes(picture.read_bytes())
    file = tmp_path / "b.csv"

    def run(of_other: str) -> list[str]:
        file.write_text(table(OBJECTS, "photo") + f"o,other,{of_other}\no,gone,1,1,5,5\n")
        done = invoke(picture.parent, "-o", tmp_path / "out", "--prompts", file, "--model", box_bundle)
        assert done.exit_code == 0, done.output
        assert f"warning: {file}: names 1 that are no cases here: gone" in done.stderr
        return [report.status for report in load_report(tmp_path / "out" / "report.json")]

    assert run("1,1,9,9") == ["done", "done"]
    assert run("1,1,9,9") == ["skipped", "skipped"]
    assert run("1,1,9,8") == ["done", "skipped"]


def test_what_lies_beside_a_case_is_read_as_a_file_of_prompts(picture, tmp_path):
    beside, table_of_it = picture.with_suffix(".json"), tmp_path / "b.csv"
    edge = [*OBJECTS, ((40, 31), (48, 40))]  # one that ends at width and height, as Boxes.parse takes it
    beside.write_text(json.dumps({"boxes": rows(edge), "note": "left"}))
    table_of_it.write_text(table(edge, "photo"))
    for case in (read_case(picture), read_case(picture, prompts=BoxSource(table_of_it))):
        assert case.boxes.xyxy.tolist() == [
            [2, 3, 20, 30],
            [25, 5, 36, 9],
            [40, 31, 41, 38],
            [40, 31, 48, 40],
        ]
        assert case.boxes.clipped == ()
    beside.write_text(labelme(OBJECTS, "photo"))
    assert read_case(picture).boxes.xyxy.tolist() == [[2, 3, 20, 30], [25, 5, 36, 9], [40, 31, 41, 38]]
    beside.write_text(labelme(OBJECTS, "another"))
    with pytest.raises(InputError, match=r"photo\.json: is for cases another, not for photo alone"):
        read_case(picture)


def test_a_flipped_volume_has_one_label_map_whatever_its_boxes_come_from(box_bundle, tmp_path):
    affine = oriented("RAI", (0.2, -0.3), SHAPE)
    path = write_nifti(
        tmp_path / "MR_head.nii.gz", np.random.default_rng(0).integers(0, 999, SHAPE, np.int16), affine
    )
    write_nifti(tmp_path / "mask.nii", mask(SOLIDS, SHAPE), affine)
    (tmp_path / "px.csv").write_text(table(SOLIDS, "MR_head"))
    sidecar = path.with_name("MR_head.json")
    sidecar.write_text(json.dumps({"boxes": rows(SOLIDS), "units": "px"}))
    results = []
    for name in (None, "mask.nii", "px.csv"):
        out = tmp_path / "out" / str(name)
        given = [] if name is None else ["--prompts", tmp_path / name]
        done = invoke(path, "-o", out, "--model", box_bundle, *given)
        assert done.exit_code == 0, done.output
        results.append((out / "MR_head.nii.gz").read_bytes())
    assert len(set(results)) == 1
    along = np.diag([-0.7, -0.8, 2.5, 1.0])  # where axes run along the patient's, two corners say all
    write_nifti(path, np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE), along)
    ends = [[*(along[:3, :3] @ first), *(along[:3, :3] @ last)] for first, last in SOLIDS]
    found = []
    for units, sign in (("RAS", 1), ("LPS", [-1, -1, 1] * 2), ("px", 0)):
        numbers = (np.array(ends) * sign).tolist() if units != "px" else rows(SOLIDS)
        sidecar.write_text(json.dumps({"boxes": numbers, "units": units}))
        found.append(read_case(path).boxes)
    for boxes in found:
        assert boxes.xyxy.tolist() == found[-1].xyxy.tolist()
        assert boxes.z.tolist() == found[-1].z.tolist() == [[1, 3], [0, 4], [2, 2]]


def test_a_nifti_that_says_no_place_takes_a_mask_of_its_shape_and_no_millimetres(tmp_path):
    scan = write_nifti(tmp_path / "MR_a.nii", np.zeros(SHAPE, np.uint8), codes=(0, 0))
    labels = write_nifti(tmp_path / "m.nii", mask(SOLIDS, SHAPE))
    assert read_case(scan, prompts=BoxSource(labels)).boxes.z.tolist() == [[1, 3], [0, 4], [2, 2]]
    scan.with_suffix(".json").write_text(json.dumps({"boxes": [[0, 0, 0, 5, 5, 5]], "units": "RAS"}))
    with pytest.raises(InputError, match="in mm of the patient, for which both it and the case must have"):
        read_case(scan)


def test_two_names_of_a_case_and_files_of_none_cost_the_others_nothing(picture, box_bundle, tmp_path):
    picture.with_name("other.png").write_bytes(picture.read_bytes())
    given = ("-o", tmp_path / "out", "--model", box_bundle, "--prompts")
    file = tmp_path / "b.csv"
    file.write_text("case,x0,y0,x1,y1\na/photo.png,1,1,9,9\nb/photo.png,2,2,8,8\nother,1,1,9,9\n")
    done = invoke(picture.parent, *given, file)
    assert (done.exit_code, "1 done, 0 skipped, 1 failed" in done.stdout) == (1, True)
    assert f"{picture}: {file} has two names of case 'photo'" in done.stderr
    coco_file = tmp_path / "coco.json"
    both = [{"id": i, "file_name": f"{folder}/photo.png"} for i, folder in enumerate("ab")]
    coco_file.write_text(json.dumps({"images": both, "annotations": [{"image_id": 0, "bbox": [1, 1, 3, 3]}]}))
    with pytest.raises(InputError, match="has two names of case 'photo'"):
        read_case(picture, prompts=BoxSource(coco_file))
    # Among the cases: none of them is a mask of itself, and what is of no case is told.
    for name in ("photo", "other", "typo"):
        (picture.parent / f"{name}.json").write_text(json.dumps({"boxes": rows(OBJECTS)}))
    done = invoke(picture.parent, *given, picture.parent)
    assert done.exit_code == 0, done.output
    assert f"warning: {picture.parent}: names 1 that are no cases here: typo" in done.stderr


def test_a_mask_of_two_files_counts_with_both(tmp_path):
    (tmp_path / "m.mhd").write_text(
        "ObjectType = Image\nNDims = 3\nDimSize = 4 4 2\nElementType = MET_UCHAR\nElementSpacing = 1 1 1\n"
        "ElementDataFile = m.raw\n"
    )
    hashes = []
    for value in (1, 2):
        (tmp_path / "m.raw").write_bytes(bytes([value]) * 32)
        hashes.append(BoxSource(tmp_path / "m.mhd").sha256(tmp_path / "case.mha"))
    assert hashes[0] != hashes[1]


def test_lines_may_end_as_any_system_ends_them_and_slices_be_written_as_floats(tmp_path):
    np.savez(tmp_path / "v.npz", imgs=np.zeros((6, 20, 18), np.uint8))
    for end in ("\r\n", "\r", "\n"):
        lines = ["case,x0,y0,x1,y1,z,note", 'v,1,2,9,8,4.0,"a\u2028b\x0b"']
        (tmp_path / "b.csv").write_bytes(end.join(lines).encode())
        (tmp_path / "b.jsonl").write_bytes(
            ('{"case": "v", "boxes": [[1, 2, 9, 8]], "z": 4, "note": "a\u2028b"}' + end).encode()
        )
        for name in ("b.csv", "b.jsonl"):
            assert read_case(tmp_path / "v.npz", prompts=BoxSource(tmp_path / name)).boxes.z.tolist() == [
                [4, 4]
            ]
    for z in ("9" * 30, "nan", "1.5", "1e400"):
        (tmp_path / "b.csv").write_text(f"case,x0,y0,x1,y1,z\nv,1,2,9,8,{z}\n")
        with pytest.raises(InputError, match="line 2: not all are numbers"):
            BoxSource(tmp_path / "b.csv")
    (tmp_path / "b.jsonl").write_text('{"case": "v", "boxes": [[1, 2, 9, 8]], "z": ' + "9" * 400 + "}")
    with pytest.raises(InputError, match="line 1: z is no number of a slice"):
        BoxSource(tmp_path / "b.jsonl")


def test_masks_of_noise_are_refused_before_they_take_all_time(tmp_path, monkeypatch):
    np.savez(tmp_path / "v.npz", imgs=np.zeros((4, 20, 20), np.uint8))
    labels = np.zeros((4, 20, 20), np.uint8)
    labels[:, ::2, ::2] = 1
    np.savez(tmp_path / "m.npz", gts=labels)
    source = BoxSource(tmp_path / "m.npz", components=True)
    for limit, fault in (("_MAX_PARTS", "more than 50 parts"), ("_MAX_VISITED", "reach far")):
        with monkeypatch.context() as patch:
            patch.setattr(f"litemed.runtime.prompts.masks.{limit}", 50)
            with pytest.raises(InputError, match=fault):
                read_case(tmp_path / "v.npz", prompts=source)
    assert len(read_case(tmp_path / "v.npz", prompts=source).boxes) == 100


FAULTS = {
    "b.csv": [
        ("x0,y0,x1,y1\n", "the first line must name case"),
        ("case,x0,y0,x1,y1,x0\n", "each once"),
        ("case,x0,y0,x1,y1,z0\nphoto,1,1,2,2,1\n", "only one of z0 and z1"),
        ("case,x0,y0,x1,y1\nphoto,1,1,2\n", "line 2 has 4 values, the first line 5"),
        ("case,x0,y0,x1,y1\nphoto,1,1,b,2\n", "line 2: not all are numbers"),
        ("case,x0,y0,x1,y1\nphoto,nan,1,2,2\n", "line 2: .* needs x0 <= x1"),
        ("case,x0,y0,x1,y1\nphoto,5,1,2,2\n", "line 2: .* needs x0 <= x1"),
        ("case,x0,y0,x1,y1\n,1,1,2,2\n", "line 2 names no case"),
        ("case,x0,y0,x1,y1,Unit\nphoto,1,1,2,2,RAS\n", "a column unit; units is what it must be called"),
        ("case,x0,y0,x1,y1,units\nphoto,1,1,2,2,mm\n", "units 'mm'; give px, RAS, LPS"),
        ("case,x0,y0,x1,y1,units\nphoto,1,1,2,2,RAS\n", "in mm of the patient"),
        ("case,x0,y0,x1,y1,z\nphoto,1,1,2,2,1\n", "has a z, but the case is no volume"),
        ("case,x0,y0,x1,y1\nphoto,1,1,2,2\nphoto.png,1,1,2,2\n", "two names of case 'photo'"),
        ("case,x0,y0,x1,y1\nphoto,48,1,50,2\n", "line 2 lies outside of the image, of 48 x 40 pixels"),
        ("case,x0,y0,x1,y1\nphoto,1,1,1e300,2\n", "not finite, or too large"),
        ("case,x0,y0,x1,y1\nphotos,1,1,2,2\n", "has no boxes for it"),
        ('case,x0,y0,x1,y1\n"photo,1,1,2,2\n', "no sound CSV"),
    ],
    "b.jsonl": [
        ("[]\n", "line 1: is no object with a case"),
        ('{"case": "photo", "boxes": []}\n', "line 1: has no list of boxes"),
        ('{"case": "photo", "boxes": [[1, 1, true, 2]]}', "box 1 is not a list of four or six numbers"),
        ('{"case": "photo", "boxes": [[1, 1, 2, 2, 3]]}', "box 1 is not a list of four or six numbers"),
        ('{"case": "photo", "boxes": [[1, 1, 2, 2]]}\n' * 2, "line 2: a second one of case 'photo'"),
        ('{"case": "photo", "boxes": [[1, 1, 2, 2]], "z": 1.0}', "z is '1.0', not a whole number"),
        ('{"case": "photo", "boxes": [[1, 1, 0, 2, 2, 1]]}', "has a z, but the case is no volume"),
        ('{"case": "photo", "boxes": [[1, 1, 2, 2]], "unit": "RAS"}', "has unit; units is what"),
        ("{", "line 1: "),
    ],
    "b.json": [
        ("{}", "is none of COCO, labelme"),
        ('{"boxes": [], "shapes": []}', "or several"),
        (coco(OBJECTS, "photo").replace('"image_id": 7', '"image_id": 8'), "of image '8', which is not"),
        (coco(OBJECTS, "photo").replace("[2, 3, 19, 28]", "[2, 3, -1, 28]"), "negative side"),
        (coco(OBJECTS, "photo").replace("[2, 3, 19, 28]", "[2, 3, 28]"), "bbox of annotation 1 is not 4"),
        (coco(OBJECTS, "photo").replace("[2, 3, 19, 28]", "[[2, 3, 19, 28]]"), "is not 4 numbers"),
        (coco(OBJECTS, "photo").replace('"image_id": 7', '"image_id": true'), "is of image 'True'"),
        ('{"images": [], "annotations": [null]}', "annotation 1 is no object"),
        ('{"images": {}, "annotations": []}', "images is no list"),
        ('{"imagePath": "photo", "shapes": [{"shape_type": "polygon", "points": [[1, 2], [5]]}]}',
         "points of shape 1 is not points of 2 numbers"),
        (coco(OBJECTS, "photo").replace('"bbox"', '"box"'), "annotation 1 has no bbox"),
        (labelme(OBJECTS, "photo").replace("polygon", "circle"), "shape 1 is a 'circle'"),
        ('{"markups": [{"type": "Fiducial"}]}', "markup 1 is a 'Fiducial'"),
        ('{"markups": [{"type": "ROI", "center": [0, 0, 0], "size": [1, 1, 1]}]}', "in mm of the patient"),
        ('{"markups": [{"type": "ROI", "center": [0, 0, 0], "size": [1, 0, 1]}]}', "has no size"),
    ],
}  # fmt: skip


@pytest.mark.parametrize(("name", "text", "fault"), [(n, *one) for n, all_ in FAULTS.items() for one in all_])
def test_files_that_are_refused(picture, tmp_path, name, text, fault):
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=fault) as error:
        read_case(picture, prompts=BoxSource(tmp_path / name))
    assert str(tmp_path / name) in str(error.value)
    assert "\n" not in str(error.value)


def test_parts_of_a_label_in_a_volume(tmp_path):
    labels = np.zeros((4, 8, 9), np.uint8)
    labels[0, 1:3, 1:3] = labels[1, 3:5, 3:6] = 5  # touch by a corner across slices
    labels[2, 0, 0] = labels[1:4, 6:8, 8] = 5
    labels[3, 0:2, 4:6] = 2
    np.savez(tmp_path / "v.npz", imgs=np.zeros((4, 8, 9), np.uint8))
    np.savez(tmp_path / "m.npz", segs=labels)
    case = read_case(tmp_path / "v.npz", prompts=BoxSource(tmp_path / "m.npz", components=True))
    assert case.boxes.xyxy.tolist() == [[4, 0, 5, 1], [1, 1, 5, 4], [8, 6, 9, 7], [0, 0, 1, 1]]
    assert case.boxes.z.tolist() == [[3, 3], [0, 1], [1, 3], [2, 2]]
    whole = read_case(tmp_path / "v.npz", prompts=BoxSource(tmp_path / "m.npz"))
    assert whole.boxes.xyxy.tolist() == [[4, 0, 5, 1], [0, 0, 8, 7]]


def test_masks_that_are_refused(picture, tmp_path):
    refused = {
        "other pixels": mask([((1, 1), (5, 5))], (30, 40)),
        "no object": np.zeros(SIZE, np.uint8),
    }
    for name, labels in refused.items():
        with pytest.raises(InputError, match=r"mask of shape|has 0 labels"):
            read_case(picture, prompts=BoxSource(png(tmp_path / f"{name}.png", labels)))
    np.savez(tmp_path / "m.npz", gts=np.full(SIZE[::-1], np.inf))
    with pytest.raises(InputError, match="no whole numbers"):
        read_case(picture, prompts=BoxSource(tmp_path / "m.npz"))
    scan = write_nifti(tmp_path / "MR_a.nii", np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE))
    moved = write_nifti(tmp_path / "m.nii", mask(SOLIDS, SHAPE), np.diag([-0.7, -0.8, 2.4, 1.0]))
    with pytest.raises(InputError, match="another affine than its case"):
        read_case(scan, prompts=BoxSource(moved))


def test_folders_and_files_that_do_not_fit_the_cases(picture, box_bundle, tmp_path):
    folder = tmp_path / "prompts"
    folder.mkdir()
    with pytest.raises(InputError, match="has 0 files of boxes for it; give one"):
        read_case(picture, prompts=BoxSource(folder))
    (folder / "photo.json").write_text(labelme(OBJECTS, "another"))
    with pytest.raises(InputError, match="is for cases another, not for photo alone"):
        read_case(picture, prompts=BoxSource(folder))
    png(folder / "photo.png", mask(OBJECTS, SIZE))
    with pytest.raises(InputError, match=r"has 2 files of boxes for it: photo.json, photo.png; give one"):
        read_case(picture, prompts=BoxSource(folder))
    with pytest.raises(UsageError, match="no prompts; give"):
        BoxSource(Path(__file__))
    picture.with_name("other.png").write_bytes(picture.read_bytes())
    given = ("-o", tmp_path / "out", "--model", box_bundle, "--prompts")
    several = invoke(picture.parent, *given, folder / "photo.png")
    assert (several.exit_code, "names no case, but there are 2" in several.stderr) == (2, True)
    without = invoke(picture, *given[:-1], "--margin", "3")
    assert (without.exit_code, "are for --prompts" in without.stderr) == (2, True)
    dry = invoke(picture, *given, folder / "photo.png", "--margin", "2", "--dry-run")
    assert (dry.exit_code, "photo: boxes: 3" in dry.stdout) == (0, True)
