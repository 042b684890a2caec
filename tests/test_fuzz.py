"""Every reader takes any bytes: it reads them or raises an error of ours, in bounded time and memory.

For a few seconds here; for longer: LITEMED_FUZZ_SECONDS=600 pytest tests/test_fuzz.py -k npz
"""

import gzip
import hashlib
import io
import json
import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import nibabel
import numpy as np
import pydicom.data
import pytest
import torch
from bundle_edits import edit
from fuzzing import bounded, mutated, rezipped, sound_png, unzipped
from hypothesis import HealthCheck, Phase, given, settings
from PIL import Image
from safetensors.torch import save
from test_raster import write as write_raster

from litemed.models.adapter import FORMAT, read_adapter_header
from litemed.models.peft_adapter import read_peft
from litemed.models.weight_files import check_entries, read_file, tensors_of
from litemed.runtime.bundle import Bundle
from litemed.runtime.engines import open_engine
from litemed.runtime.errors import InputError, LitemedError, OutputError
from litemed.runtime.inputs.cases import read_case
from litemed.runtime.inputs.dicom import Dicom
from litemed.runtime.inputs.pictures import decode_labels, decode_picture
from litemed.runtime.inputs.scaling import Scaling
from litemed.runtime.inputs.volumes import VOLUMES
from litemed.runtime.prompts.extents import Grid
from litemed.runtime.prompts.source import BoxSource
from litemed.runtime.report import Settings as RunSettings
from litemed.runtime.report_files import ReportFile
from litemed.train.config import Config, read_toml, updated
from litemed.train.prepare.labelled_pairs import check_labels, read_pair
from litemed.train.prepare.pipeline import prepare
from litemed.train.prepare.slices import Settings
from litemed.train.prepare.sources import Pair, SourceOptions, find_pairs
from litemed.train.run_files import State, read_state, write_state

SECONDS = float(os.environ.get("LITEMED_FUZZ_SECONDS", 0))
EXAMPLES = 150  # of each reader in a round; there is one round, or as many as the seconds allow
MOST_VOXELS = 2**18  # instead of the limits of the readers, so that files stay small and bounds are narrow

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (12, 16), np.uint8)
RGB = RNG.integers(0, 256, (12, 16, 3), np.uint8)
LABELS = np.zeros((12, 16), np.uint8)
LABELS[2:9, 3:12] = 1
BOXES = b'{"boxes": [[1, 2, 8, 9], [0.0, 0, 3, 4]], "note": "left"}'
JSON_WORDS = [b"null", b"true", b"NaN", b"1e999", b"-1", b"0.5", b"9" * 400, b"[", b"{", b"[]", b"{}", b'"',
              b",", b'"\\u0000"', b'"a": 1', b"\xff", b"[[1, 2, 3, 4]]", b"[" * 2000]  # fmt: skip


@dataclass(frozen=True)
class Reader:
    """Readers of a kind of file, and what to begin with.

    name: what the file is called. read: each takes a file. seeds: files that one of them takes as sound.
    words: what may be put in. sound: repairs checksums, without which most changes would go no further.
    """

    name: str
    read: Callable[[Path], object] | Sequence[Callable[[Path], object]]
    seeds: Sequence[bytes]
    words: Sequence[bytes] = ()
    sound: Callable[[bytes], bytes] = bytes


def picture(image: np.ndarray | Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(stream, kind, **options)
    return stream.getvalue()


def npz(**arrays: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)
    return stream.getvalue()


CASES = [
    npz(imgs=GREY, boxes=np.array([[1, 2, 8, 9]])),
    npz(imgs=np.stack([GREY] * 4), boxes=np.array([[1, 2, 0, 8, 9, 3.0]]), spacing=np.array([2.5, 1, 1])),
    npz(imgs=RGB, gts=LABELS, boxes=np.array([[1, 2, 8, 9]])),
]
PALETTE = Image.fromarray(LABELS, "L")
PALETTE.putpalette([0, 0, 0, 255, 0, 0])
PICTURES: dict[str, list[bytes]] = {
    "png": [
        picture(image, "PNG")
        for image in (GREY, RGB, GREY.astype(np.uint16) * 257, LABELS > 0, PALETTE, np.dstack([RGB, GREY]))
    ],
    "jpg": [
        picture(GREY, "JPEG"),
        *(picture(RGB, "JPEG", progressive=one, exif=exif) for one, exif in ((False, b""), (True, b"Exif"))),
    ],
    "tif": [
        *(
            picture(GREY, "TIFF", compression=how)
            for how in ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg")
        ),
        *(picture(image, "TIFF") for image in (RGB, GREY.astype(np.uint16) * 257, GREY.astype(np.float32))),
        *(picture(image, "TIFF") for image in (PALETTE, np.dstack([RGB, GREY]))),
        *(picture(LABELS > 0, "TIFF", compression=how) for how in ("group3", "group4")),
        picture(RGB, "TIFF", compression="tiff_lzw", big_tiff=True),
    ],
}  # fmt: skip


def read_labelled(path: Path) -> None:
    read_pair(Pair("CT", "s", "c", "train", path, None))


def read_shown(path: Path) -> None:
    path.with_suffix(".json").write_bytes(BOXES)
    assert read_case(path).image.dtype == np.uint8


def read_stored(path: Path) -> None:
    check_labels(decode_labels(path.read_bytes(), str(path)), path)


def read_values(path: Path) -> None:
    decode_picture(path.read_bytes(), str(path))


READ_PICTURE = (read_shown, read_stored, read_values)


def read_sidecar(path: Path) -> None:
    image = path.with_suffix(".png")
    image.write_bytes(PICTURES["png"][0])
    read_case(image)


INDEX = (
    b"modality,image,label,case,split,source,licence_status\nCT,a.nii.gz,b.nii.gz,one,train,here,known\n"
    b'US,c.npz,c.npz,,val,,\nMR,../x.png,/dev/zero,"a ""b""",test,here,\n'
)


def read_index(path: Path) -> None:
    shutil.rmtree(out := path.parent / "out", ignore_errors=True)
    (path.parent / "c.npz").write_bytes(CASES[2])
    for cases in (False, True):
        prepare(find_pairs([path], SourceOptions()), out / str(cases), Settings(cases=cases))


def nifti(dtype: type) -> bytes:
    image = nibabel.nifti1.Nifti1Image(np.stack([LABELS] * 3).astype(dtype), np.diag([2.0, 2, 3, 1]))
    return image.to_bytes()


def read_nifti(path: Path) -> None:
    other = path.with_name("label.nii")
    other.write_bytes(nifti(np.uint8))
    read_pair(Pair("MR", "s", "c", "train", path, other))
    read_pair(Pair("MR", "s", "c", "train", other, path))


def rasters(suffix: str) -> list[bytes]:
    """Return a grey volume, one in colour, and a deflated label map."""
    with TemporaryDirectory() as folder:
        path = Path(folder, f"a{suffix}")
        rgb = np.zeros((3, 5, 6, 4), np.uint8)
        seeds = [write_raster(path, one).read_bytes() for one in (rgb, rgb[0].astype(np.int16))]
        packed = io.BytesIO()
        VOLUMES[suffix].open(path).write_labels(np.ones((4, 6, 5), np.uint8), packed)
        return [*seeds, packed.getvalue()]


def read_shown_volume(path: Path) -> None:
    path.with_suffix(".json").write_bytes(b'{"boxes": [[0, 0, 0, 2, 2, 1]]}')
    read_case(path, Scaling("MR"))


SHIPPED = Path(pydicom.data.__file__).parent / "test_files"
DICOM = [
    (SHIPPED / f"{name}.dcm").read_bytes()
    for name in (
        "MR_small",
        "MR_small_RLE",
        "MR_small_jpeg_ls_lossless",
        "SC_rgb_jpeg_dcmtk",
        "SC_rgb_small_odd",
    )
]


def read_dicom(path: Path) -> None:
    assert Dicom.open(path).read().size


TENSORS = {"a.weight": torch.arange(6.0).reshape(2, 3), "b.count": torch.tensor(3)}


def torch_file(content: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream)
    return stream.getvalue()


def read_weights(path: Path) -> None:
    state, _ = tensors_of(path, read_file(path))
    check_entries(state, TENSORS, str(path))


ABOUT = {"format": FORMAT, "rank": 4, "alpha": 4.0, "targets": ["attn.qkv"], "base": "0", "decoder": None}
ADAPTER = save(TENSORS, {"litemed": json.dumps(ABOUT)})
PEFT = b'{"r": 4, "lora_alpha": 8, "target_modules": ["qkv"], "peft_type": "LORA", "bias": "none"}'


def read_peft_settings(path: Path) -> None:
    tensors = path.with_name("adapter_model.safetensors")
    tensors.write_bytes(save(TENSORS))
    read_peft(tensors, {}, {"a.qkv.weight": torch.zeros(2, 2)})


def right_length(data: bytes) -> bytes:
    """Return a safetensors file whose header has the length that is said, up to the blanks after a brace."""
    end = data.rfind(b"}") + 1
    end += len(data[end:]) - len(data[end:].lstrip(b" "))
    return data if end <= 8 else (end - 8).to_bytes(8, "little") + data[8:]


RECORD = {"path": "a.npz", "sha256": "0" * 64}
OBJECT = {"label": 1, "pixels": 5, "area_mm2": None, "volume_ml": 1.5, "extent": [0, 0, 0, 1, 1, 1],
          "extent_mm": [1, 1, 1.5], "mean": 5.5, "sd": 0, "predicted_iou": None}  # fmt: skip
ENTRY = {"case": "a", "status": "done", "error": None, "warnings": ["w"], "seconds": {"total": 1.5},
         "encodings": 1, "decodings": 1, "inputs": [RECORD], "settings_sha256": "0", "output": RECORD,
         "overlay": None, "objects": [OBJECT]}  # fmt: skip
REPORT = json.dumps({"schema": 2, "cases": [ENTRY]}).encode()
LINE = json.dumps(ENTRY).encode() + b"\n"
RUN = RunSettings("0", "b", "0", "e", "float32", "m")  # type: ignore[arg-type]


def read_report(path: Path) -> None:
    for name in ("report.json", "report.jsonl", "efficiency.csv", "objects.csv"):
        if name != path.name:
            path.with_name(name).unlink(missing_ok=True)
    if ReportFile(path.parent, RUN, {}, overwrite=True).get("a") is None:
        raise OutputError("no entry was read")


def read_training_state(path: Path) -> None:
    read_state(path.parent)


def training_state(folder: Path) -> list[bytes]:
    write_state(folder, State(*({} for _ in State.__dataclass_fields__)))  # type: ignore[arg-type]
    return unzipped((folder / "state.pt").read_bytes())


TOML = b"[run]\nepochs = 3\n[optimizer]\nlr = 1e-4\n"
ONNX_WORDS = [b"Loop", b"If", b"ConstantOfShape", b"Expand", b"location", b"com.microsoft", b"boxes"]


def read_settings(path: Path) -> None:
    updated(Config(), read_toml(path), str(path))


def read_bundle(path: Path) -> None:
    Bundle.open(path.parent)


def read_graph(engine: str) -> Callable[[Path], None]:
    """Return a reader of a graph, whose manifest then says what it is."""

    def read(path: Path) -> None:
        data = path.read_bytes()
        sums = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
        edit(path.parent, lambda manifest: manifest["graphs"][path.stem].update(sums))
        open_engine(engine, Bundle.open(path.parent), 1)

    return read


Make = Callable[[Path], Reader]
PROMPTS = {
    "csv": [b"case,x0,y0,x1,y1,z,units\na,1,2,8,9,,px\nb,0,0,3,4,2,LPS\n"],
    "jsonl": [b'{"case": "a", "boxes": [[1, 2, 8, 9], [0.5, 0, 3, 4]], "units": "px"}\n'],
    "json": [
        b'{"images": [{"id": 1, "file_name": "a.png"}],'
        b' "annotations": [{"image_id": 1, "bbox": [1, 2.5, 8, 4]}]}',
        b'{"imagePath": "a.png", "shapes": [{"shape_type": "rectangle", "points": [[5, 1], [2, 7.5]]}]}',
        b'{"markups": [{"type": "ROI", "center": [-4, -3, 2], "size": [2, 3, 4], "coordinateSystem": "1"}]}',
    ],
}


def read_prompts(path: Path) -> None:
    """Take a file for the boxes of a picture, and of a volume."""
    source, volume = BoxSource(path), Grid((16, 12, 4), np.diag([1.0, 1, 1, 1]), (1.0, 1, 1))
    refused = []
    for grid in (Grid((16, 12)), volume):
        try:
            source.sha256(Path("a.png"))
            source.boxes(Path("a.png"), grid)
        except InputError as error:
            refused.append(error)
    if len(refused) == 2:
        raise refused[0]


READERS: dict[str, Make] = {
    **{
        f"prompts_{kind}": lambda _, kind=kind: Reader(
            f"a.{kind}", read_prompts, PROMPTS[kind], [*JSON_WORDS, b"1e308", b"units", b"\n", b'"z": 2']
        )
        for kind in PROMPTS
    },
    "prompts_mask": lambda _: Reader(
        "mask.png", read_prompts, PICTURES["png"][:1] + PICTURES["png"][3:5], [], sound_png
    ),
    "npz": lambda _: Reader("a.npz", (read_case, read_labelled), CASES),
    "npz_arrays": lambda _: Reader(
        "a.npz", (read_case, read_labelled), unzipped(*CASES), [b"|O", b"<f2", b"<<imgs.npy>>\n"], rezipped
    ),
    "png": lambda _: Reader(
        "a.png", READ_PICTURE, PICTURES["png"], [b"acTL", b"tRNS", b"eXIf", b"PLTE"], sound_png
    ),
    "jpg": lambda _: Reader("a.jpg", READ_PICTURE, PICTURES["jpg"], [b"\xff\xd9", b"\xff\xda", b"\xff\xc0"]),
    "tif": lambda _: Reader("a.tif", READ_PICTURE, PICTURES["tif"]),
    "sidecar": lambda _: Reader("a.json", read_sidecar, [BOXES], JSON_WORDS),
    "index": lambda _: Reader("index.csv", read_index, [INDEX], [b'"', b"\n", b",", b"\0", b"../", b"/"]),
    "nifti": lambda _: Reader("a.nii", read_nifti, [nifti(np.int16), nifti(np.uint8)]),
    "nifti_gz": lambda _: Reader("a.nii.gz", read_nifti, [gzip.compress(nifti(np.uint8))]),
    "nrrd": lambda _: Reader(
        "a.nrrd", read_shown_volume, rasters(".nrrd"), [b"data file: a.nrrd\n", b"none "]
    ),
    "mha": lambda _: Reader("a.mha", read_shown_volume, rasters(".mha"), [b"LOCAL", b"True", b"LIST"]),
    "dicom": lambda _: Reader("a.dcm", read_dicom, DICOM),
    "manifest": lambda folder: Reader(
        "manifest.json", read_bundle, [(folder / "manifest.json").read_bytes()], JSON_WORDS
    ),
    "onnx": lambda folder: Reader(
        "decoder.onnx", read_graph("onnxruntime"), [(folder / "decoder.onnx").read_bytes()], ONNX_WORDS
    ),
    "onnx_openvino": lambda folder: Reader(
        "decoder.onnx", read_graph("openvino"), [(folder / "decoder.onnx").read_bytes()], ONNX_WORDS
    ),
    "safetensors": lambda _: Reader("a.safetensors", read_weights, [save(TENSORS)], JSON_WORDS, right_length),
    "adapter": lambda _: Reader("a.safetensors", read_adapter_header, [ADAPTER], JSON_WORDS, right_length),
    "peft": lambda _: Reader("adapter_config.json", read_peft_settings, [PEFT], JSON_WORDS),
    "pth": lambda _: Reader("a.pth", read_weights, [torch_file(TENSORS), torch_file({"model": TENSORS})]),
    "pth_pickle": lambda _: Reader(
        "a.pth", read_weights, unzipped(torch_file(TENSORS)), [b"cos\nsystem\n", b"R", b"."], rezipped
    ),
    "state": lambda folder: Reader("state.pt", read_training_state, training_state(folder), [], rezipped),
    "report": lambda _: Reader("report.json", read_report, [REPORT], JSON_WORDS),
    "report_log": lambda _: Reader("report.jsonl", read_report, [LINE], JSON_WORDS),
    "settings": lambda _: Reader("a.toml", read_settings, [TOML], [b"[", b"[[", b"=", b"run", b"inf", b"{"]),
}


@pytest.mark.parametrize("kind", READERS)
def test_whatever_a_file_holds_it_is_read_or_refused_by_name(kind, box_bundle, tmp_path, monkeypatch, capfd):
    for module in (
        "runtime.inputs.npz",
        "runtime.inputs.pictures",
        "runtime.inputs.nifti",
        "runtime.inputs.raster",
    ):
        monkeypatch.setattr(f"litemed.{module}.MAX_VOXELS", MOST_VOXELS)
    monkeypatch.setattr("litemed.models.weight_files.MAX_BYTES", 64 * MOST_VOXELS)
    folder = Path(shutil.copytree(box_bundle, tmp_path / "here"))
    reader = READERS[kind](folder)
    path = folder / reader.name
    reads = reader.read if isinstance(reader.read, Sequence) else (reader.read,)

    def outcome(data: bytes) -> list[str]:
        """Return why each reader refuses a file, empty where it does not."""
        path.write_bytes(data)
        refusals = []
        for read in reads:
            try:
                with bounded():
                    read(path)
            except LitemedError as error:
                refusals.append(str(error))
            else:
                refusals.append("")
        assert all("\n" not in refusal and len(refusal) < 3000 for refusal in refusals)
        return refusals

    for seed in reader.seeds:
        assert "" in outcome(reader.sound(seed))

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink],
    )
    @given(data=mutated(reader.seeds, reader.words))
    def fuzz(data: bytes) -> None:
        nonlocal done, refused
        done, refused = done + 1, refused + all(outcome(reader.sound(data)))

    done = refused = 0
    end = time.monotonic() + SECONDS
    while not done or time.monotonic() < end:
        fuzz()
    assert capfd.readouterr() == ("", "")
    assert done > refused
    assert refused
    if SECONDS:
        with capfd.disabled():
            print(f"{kind}: {done} files, {refused} refused")
