"""The npz reader: what numpy writes is read, what lies or is damaged is refused by name."""

import contextlib
import io
import pickle
import struct
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as nps

from litemed.runtime.errors import InputError
from litemed.runtime.inputs.npz import MAX_MEMBERS, MAX_VOXELS, NpzReader, write_npz

SAME_FOLDER = [HealthCheck.function_scoped_fixture]


def read(path: Path, name: str = "imgs") -> np.ndarray:
    with NpzReader(path) as archive:
        return archive.read(name)


def refusal(path: Path) -> str:
    """The one line with which a file is refused, with next to nothing allocated for it."""
    tracemalloc.start()
    with pytest.raises(InputError) as caught:
        read(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2_000_000
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def npy(shape: object, descr: str = "|u1", data: bytes = b"", version: bytes = b"\x01\x00") -> bytes:
    """Return an npy member that declares whatever it is told to."""
    header = repr({"descr": descr, "fortran_order": False, "shape": shape}).encode()
    length = struct.pack("<H" if version[0] == 1 else "<I", len(header))
    return b"\x93NUMPY" + version + length + header + data


def archive(path: Path, *members: tuple[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as target:
        for member in members:
            target.writestr(*member)
    return path


class Payload:
    """Creates a file where it is unpickled."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.proof,)


@settings(max_examples=50, suppress_health_check=SAME_FOLDER)
@given(
    array=nps.arrays(
        nps.integer_dtypes() | nps.floating_dtypes() | nps.boolean_dtypes(),
        nps.array_shapes(min_dims=0, max_dims=4, min_side=0),
    ),
    fortran=st.booleans(),
    compressed=st.booleans(),
)
def test_reads_what_numpy_writes(array, fortran, compressed, tmp_path):
    saved = np.asfortranarray(array) if fortran else array
    (np.savez_compressed if compressed else np.savez)(tmp_path / "a.npz", imgs=saved, other=np.arange(3))
    result = read(tmp_path / "a.npz")
    np.testing.assert_array_equal(result, saved)
    assert (result.dtype, result.shape) == (array.dtype.newbyteorder("="), saved.shape)
    assert result.flags.c_contiguous


def test_reads_a_header_of_either_version_and_without_its_data(tmp_path):
    member = npy((2,), data=b"\x05\x06", version=b"\x02\x00")
    np.testing.assert_array_equal(read(archive(tmp_path / "b.npz", ("imgs.npy", member))), [5, 6])
    np.savez_compressed(tmp_path / "a.npz", imgs=np.zeros((50, 600, 600), np.uint8))
    tracemalloc.start()
    with NpzReader(tmp_path / "a.npz") as opened:
        assert opened.header("imgs") == (np.uint8, (50, 600, 600))
    assert tracemalloc.get_traced_memory()[1] < 5_000_000
    tracemalloc.stop()


def test_a_pickle_is_refused_and_not_run(tmp_path):
    path, proof = tmp_path / "a.npz", tmp_path / "proof"
    path.write_bytes(pickle.dumps(Payload(proof)))
    assert "not an npz archive" in refusal(path)
    assert "cannot be opened: No such file" in refusal(tmp_path / "none.npz")
    np.savez(path, imgs=np.array([Payload(proof)], object))
    assert "pickled Python objects" in refusal(path)
    assert not proof.exists()
    np.load(path, allow_pickle=True)["imgs"]  # it is a live one
    assert proof.exists()


@pytest.mark.parametrize(
    ("member", "message"),
    [
        *((npy(shape, data=b"\0" * 64), "elements") for shape in [(MAX_VOXELS + 1,), (10**6, 10**6)]),
        *((npy(shape, data=b"\0" * 64), "elements") for shape in [(2**62, 4), (2**64,), (0, 2**64)]),
        (npy((1000, 1000), data=b"\0" * 64), "needs 1000000 bytes and has 64"),
        (npy((1,), "|O", b"a"), "pickled"),
        (npy((1,), "<U1", b"aaaa"), "no plain numbers"),
        (npy((1,), "<M8[s]", b"a" * 8), "no plain numbers"),
        (npy((1,), "i4,i4", b"a" * 8), "no plain numbers"),
        (npy((1,), "<i3", b"aaa"), "unreadable header"),
        *((npy(shape, data=b"a"), "unreadable header") for shape in [(-1,), (True,), [1], 1, (1,) * 9]),
        *(
            (b"\x93NUMPY\x01\x00" + header, "unreadable header")
            for header in [b"\x02\x00{}", b"\x05\x00((((("]
        ),
        *((data, "unreadable header") for data in [b"", b"\x93NUMPY\x09\x00"]),
        (b"\x93NUMPY\x01\x00\xff\xff" + b"(" * 65535, "unreadable header"),
        (b"\x93NUMPY\x02\x00\xff\xff\xff\x0f" + b" " * 30_000_000, "unreadable header"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_header_that_numpy_never_writes_is_refused_before_anything_is_allocated(member, message, tmp_path):
    path = archive(tmp_path / "a.npz", ("imgs.npy", member))
    del member
    assert message in refusal(path)


def with_size(data: bytes, size: int) -> bytes:
    """An archive of one member whose directory declares another size for it."""
    changed = bytearray(data)
    for signature, offset in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        struct.pack_into("<L", changed, data.index(signature) + offset, size)
    return bytes(changed)


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda data: data.replace(b"\0" * 1000, b"\0" * 999 + b"\1"), "CRC"),
        (lambda data: with_size(data, 2**28), "more bytes than"),
        (lambda data: with_size(data, 900), "not a readable npz"),
        *((lambda data, tail=tail: data + tail, "bytes behind its end") for tail in [b"\0", b"trailing"]),
        (lambda data: data + b"PK\x05\x06" + b"\0" * 17, "bytes behind its end"),
        (lambda data: b"PKsomething" + data, "or elsewhere"),
        (lambda data: b"", "empty"),
        (lambda data: b"PK", "truncated"),
        (lambda data: b"\x93NUMPY", "not an npz archive"),
        (lambda data: b"PK\x05\x06" + b"\0" * 18, "no array"),
    ],
)
def test_what_is_no_whole_archive_is_refused(harm, message, tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, imgs=np.zeros(1000, np.uint8))
    path.write_bytes(harm(path.read_bytes()))
    assert message in refusal(path)


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    ("names", "method", "message"),
    [
        (["imgs.npy", "imgs.npy"], zipfile.ZIP_DEFLATED, "appears twice"),
        (["imgs.npy", "imgs"], zipfile.ZIP_DEFLATED, "appears twice"),
        (["imgs.npy"], zipfile.ZIP_LZMA, "compressed in an odd way"),
        ([f"{number}.npy" for number in range(MAX_MEMBERS + 1)], zipfile.ZIP_STORED, "one of over 64"),
        (["image.npy"], zipfile.ZIP_STORED, "no array 'imgs', only image"),
    ],
)
def test_members_that_are_not_as_they_should_be_are_refused(names, method, message, tmp_path):
    members = ((name, npy((1,), data=b"a")) for name in names)
    assert message in refusal(archive(tmp_path / "a.npz", *members, method=method))


WHOLE = io.BytesIO()
np.savez_compressed(WHOLE, imgs=np.arange(64, dtype=np.uint8).reshape(8, 8), boxes=np.array([[1, 2, 5, 6]]))


def test_every_truncation_is_refused_by_name(tmp_path):
    path = tmp_path / "a.npz"
    for length in range(0, len(WHOLE.getvalue()), 7):
        path.write_bytes(WHOLE.getvalue()[:length])
        refusal(path)


@settings(max_examples=50, suppress_health_check=SAME_FOLDER)
@given(
    header=st.binary(max_size=300)
    | st.text("<>|=biufcOVSUmM0123456789,()[]: ", max_size=12).map(lambda descr: npy((3,), descr)[10:])
)
def test_a_fuzzed_header_or_dtype_is_read_or_refused_by_our_own_error(header, tmp_path):
    member = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header
    with contextlib.suppress(InputError):
        assert read(archive(tmp_path / "a.npz", ("imgs.npy", member))).dtype.kind in "biufc"


@settings(max_examples=40, suppress_health_check=SAME_FOLDER)
@given(
    array=nps.arrays(st.sampled_from([np.uint8, np.uint16]), nps.array_shapes(max_dims=3)), flip=st.booleans()
)
def test_what_is_written_reads_the_same_and_its_bytes_are_the_same_each_time(array, flip, tmp_path):
    array, first, second = array.T if flip else array, io.BytesIO(), io.BytesIO()
    write_npz(first, {"segs": array})
    write_npz(second, {"segs": array.copy()})
    assert first.getvalue() == second.getvalue()
    (tmp_path / "a.npz").write_bytes(first.getvalue())
    with np.load(tmp_path / "a.npz", allow_pickle=False) as loaded:
        assert loaded.files == ["segs"]
        for found in (loaded["segs"], read(tmp_path / "a.npz", "segs")):
            np.testing.assert_array_equal(found, array, strict=True)
