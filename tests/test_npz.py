"""The npz reader: what numpy writes is read, what lies or is damaged is refused by name."""

from __future__ import annotations

import io
import pickle
import struct
import subprocess
import sys
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as nps

from litemed.runtime.errors import InputError
from litemed.runtime.npz import MAX_MEMBERS, MAX_VOXELS, NpzReader, write_npz


def read(path: Path, name: str = "imgs") -> np.ndarray:
    with NpzReader(path) as archive:
        return archive.read(name)


def npy(shape: object, descr: str = "|u1", data: bytes = b"", version: bytes = b"\x01\x00") -> bytes:
    """Return an npy member that declares whatever it is told to."""
    header = repr({"descr": descr, "fortran_order": False, "shape": shape}).encode()
    length = struct.pack("<H" if version[0] == 1 else "<I", len(header))
    return b"\x93NUMPY" + version + length + header + data


def archive(path: Path, *members: tuple[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as target:
        for name, data in members:
            target.writestr(name, data)
    return path


class Payload:
    """Creates a file where it is unpickled."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.proof,)


@given(
    array=nps.arrays(
        st.one_of(
            nps.integer_dtypes(), nps.unsigned_integer_dtypes(), nps.floating_dtypes(), nps.boolean_dtypes()
        ),
        nps.array_shapes(min_dims=0, max_dims=4, min_side=0),
    ),
    fortran=st.booleans(),
    compressed=st.booleans(),
)
def test_reads_what_numpy_writes(
    array: np.ndarray, fortran: bool, compressed: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("npz") / "case.npz"
    saved = np.asfortranarray(array) if fortran else array
    (np.savez_compressed if compressed else np.savez)(path, imgs=saved, other=np.arange(3))
    result = read(path)
    np.testing.assert_array_equal(result, saved)
    assert result.dtype == array.dtype.newbyteorder("=")
    assert result.shape == saved.shape
    assert result.flags.c_contiguous


def test_reads_a_header_without_its_data(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", imgs=np.zeros((50, 600, 600), np.uint8))
    tracemalloc.start()
    with NpzReader(tmp_path / "a.npz") as opened:
        header = opened.header("imgs")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (header.shape, header.dtype, header.fortran_order) == ((50, 600, 600), np.uint8, False)
    assert peak < 5_000_000


def test_a_pickle_is_refused_and_not_run(tmp_path: Path) -> None:
    proof = tmp_path / "proof"
    np.savez(tmp_path / "a.npz", imgs=np.array([Payload(proof)], object))
    with pytest.raises(InputError, match=r"a\.npz.*pickled Python objects"):
        read(tmp_path / "a.npz")
    assert not proof.exists()
    # The payload is a live one.
    np.load(tmp_path / "a.npz", allow_pickle=True)["imgs"]
    assert proof.exists()


def test_a_bare_pickle_is_refused_and_not_run(tmp_path: Path) -> None:
    proof = tmp_path / "proof"
    (tmp_path / "a.npz").write_bytes(pickle.dumps(Payload(proof)))
    with pytest.raises(InputError, match="not an npz archive"):
        read(tmp_path / "a.npz")
    assert not proof.exists()


@pytest.mark.parametrize("shape", [(MAX_VOXELS + 1,), (10**6, 10**6), (2**62, 4), (2**64,), (0, 2**64)])
def test_a_header_of_terabytes_is_refused_before_anything_is_allocated(shape: tuple, tmp_path: Path) -> None:
    path = archive(tmp_path / "a.npz", ("imgs.npy", npy(shape, data=b"\0" * 64)))
    tracemalloc.start()
    with pytest.raises(InputError, match=r"a\.npz.*elements"):
        read(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000


def test_a_header_that_declares_more_than_its_member_has_is_refused(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.npz", ("imgs.npy", npy((1000, 1000), data=b"\0" * 64)))
    with pytest.raises(InputError, match="needs 1000000 bytes and has 64"):
        read(path)


def test_a_member_with_bytes_behind_its_array_is_refused(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.npz", ("imgs.npy", npy((2, 2), data=b"\0" * 5)))
    with pytest.raises(InputError, match="needs 4 bytes and has 5"):
        read(path)


def test_a_size_that_deflate_cannot_reach_is_refused(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.npz", ("imgs.npy", npy((2**28,), data=b"\0" * 64)))
    lie = 2**28 + len(npy((2**28,)))
    data = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        struct.pack_into("<L", data, data.index(signature) + offset, lie)
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"more than its .* bytes can hold"):
        read(path)


def test_a_size_that_the_data_do_not_reach_is_refused(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.npz", ("imgs.npy", npy((4000,), data=b"\0" * 64)))
    lie = 4000 + len(npy((4000,)))
    data = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        struct.pack_into("<L", data, data.index(signature) + offset, lie)
    path.write_bytes(data)
    with pytest.raises(InputError, match="not a readable npz"):
        read(path)


def test_changed_data_fail_their_checksum(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", imgs=np.zeros(1000, np.uint8))
    data = bytearray((tmp_path / "a.npz").read_bytes())
    data[600] ^= 1
    (tmp_path / "a.npz").write_bytes(data)
    with pytest.raises(InputError, match="CRC"):
        read(tmp_path / "a.npz")


def test_every_truncation_is_refused_by_name(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", imgs=np.arange(300, dtype=np.uint16), boxes=np.arange(4))
    whole = (tmp_path / "a.npz").read_bytes()
    for length in range(len(whole)):
        (tmp_path / "a.npz").write_bytes(whole[:length])
        with pytest.raises(InputError, match=r"a\.npz"):
            read(tmp_path / "a.npz")


@pytest.mark.parametrize("garbage", [b"\0", b"trailing", b"PK\x05\x06" + b"\0" * 17])
def test_bytes_behind_the_archive_are_refused(garbage: bytes, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", imgs=np.zeros(4))
    with (tmp_path / "a.npz").open("ab") as file:
        file.write(garbage)
    with pytest.raises(InputError, match="bytes behind its end"):
        read(tmp_path / "a.npz")


def test_bytes_before_the_archive_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", imgs=np.zeros(4))
    whole = (tmp_path / "a.npz").read_bytes()
    (tmp_path / "a.npz").write_bytes(b"PKsomething" + whole)
    with pytest.raises(InputError, match="not where it says"):
        read(tmp_path / "a.npz")


@pytest.mark.parametrize("data", [b"", b"PK", b"\x93NUMPY", b"\0" * 100, b"PK\x05\x06" + b"\0" * 18])
def test_what_is_no_archive_or_an_empty_one_is_refused(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_bytes(data)
    with pytest.raises(InputError, match=r"a\.npz"):
        read(tmp_path / "a.npz")


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.npz: cannot be opened: No such file"):
        read(tmp_path / "none.npz")


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be opened"):
        read(tmp_path)


@pytest.mark.parametrize("second", ["imgs.npy", "imgs"])
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_members_of_one_name_are_refused(second: str, tmp_path: Path) -> None:
    path = archive(tmp_path / "a.npz", ("imgs.npy", npy((1,), data=b"a")), (second, npy((1,), data=b"b")))
    with pytest.raises(InputError, match="appears twice"):
        read(path)


def test_an_encrypted_member_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", imgs=np.zeros(4))
    data = bytearray((tmp_path / "a.npz").read_bytes())
    data[data.index(b"PK\x03\x04") + 6] |= 1
    data[data.index(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "a.npz").write_bytes(data)
    with pytest.raises(InputError, match="encrypted"):
        read(tmp_path / "a.npz")


def test_another_compression_is_refused(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.npz", ("imgs.npy", npy((1,), data=b"a")), method=zipfile.ZIP_LZMA)
    with pytest.raises(InputError, match="compressed by method 14"):
        read(path)


def test_an_archive_of_too_many_members_is_refused(tmp_path: Path) -> None:
    members = [(f"{number}.npy", b"") for number in range(MAX_MEMBERS + 1)]
    with pytest.raises(InputError, match=f"declares {MAX_MEMBERS + 1} members"):
        read(archive(tmp_path / "a.npz", *members))


@pytest.mark.parametrize(
    ("member", "message"),
    [
        (b"", "unreadable header"),
        (b"\x93NUMPY\x09\x00", "not an npy of version 1 or 2"),
        (npy((1,), "|O", b"a"), "pickled"),
        (npy((1,), "<U1", b"aaaa"), "no plain numbers"),
        (npy((1,), "<M8[s]", b"a" * 8), "no plain numbers"),
        (npy((1,), "<i3", b"aaa"), "unreadable header"),
        (npy((-1,), data=b"a"), "unreadable header"),
        (npy((True,), data=b"a"), "unreadable header"),
        (npy([1], data=b"a"), "unreadable header"),
        (npy(1, data=b"a"), "unreadable header"),
        (npy((1,) * 9, data=b"a"), "unreadable header"),
        (b"\x93NUMPY\x01\x00\x05\x00(((((", "unreadable header"),
        (b"\x93NUMPY\x01\x00\xe8\x03" + b"-" * 1000, "unreadable header"),
        (b"\x93NUMPY\x01\x00\xff\xff" + b"(" * 65535, "unreadable header"),
        (b"\x93NUMPY\x02\x00\xff\xff\xff\xff", "unreadable header"),
        (b"\x93NUMPY\x01\x00\x02\x00{}", "unreadable header"),
    ],
)
def test_a_header_that_numpy_never_writes_is_refused(member: bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        read(archive(tmp_path / "a.npz", ("imgs.npy", member)))


def test_a_header_of_version_2_is_read(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.npz", ("imgs.npy", npy((2,), data=b"\x05\x06", version=b"\x02\x00")))
    np.testing.assert_array_equal(read(path), [5, 6])


def test_a_missing_array_is_refused_and_the_present_ones_are_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", image=np.zeros(4))
    with pytest.raises(InputError, match="no array 'imgs', only 'image'"):
        read(tmp_path / "a.npz")


WHOLE = io.BytesIO()
np.savez_compressed(WHOLE, imgs=np.arange(64, dtype=np.uint8).reshape(8, 8), boxes=np.array([[1, 2, 5, 6]]))


@settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    changes=st.lists(st.tuples(st.integers(0, len(WHOLE.getvalue()) - 1), st.integers(0, 255)), max_size=6),
    cut=st.tuples(st.integers(0, len(WHOLE.getvalue())), st.integers(0, 40)),
)
def test_a_fuzzed_archive_is_read_whole_or_refused_by_our_own_error(
    changes: list[tuple[int, int]], cut: tuple[int, int], tmp_path: Path
) -> None:
    data = bytearray(WHOLE.getvalue())
    for position, value in changes:
        data[position] = value
    del data[cut[0] : sum(cut)]
    path = tmp_path / "a.npz"
    path.write_bytes(data)
    refusal = f"{path}: "
    try:
        with NpzReader(path) as opened:
            arrays = [opened.read(name) for name in opened.names]
    except InputError as error:
        refusal, arrays = str(error), []
    assert refusal.startswith(f"{path}: ")
    assert "\n" not in refusal
    assert sum(array.size for array in arrays) <= MAX_VOXELS


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(header=st.one_of(st.binary(max_size=300), st.text(st.characters(max_codepoint=255)).map(str.encode)))
def test_a_fuzzed_header_is_refused_by_our_own_error(header: bytes, tmp_path: Path) -> None:
    member = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header
    with pytest.raises(InputError):
        read(archive(tmp_path / "a.npz", ("imgs.npy", member)))


def test_refusals_do_not_hang_on_assertions(tmp_path: Path) -> None:
    archive(tmp_path / "a.npz", ("imgs.npy", npy((2**62, 4))))
    code = (
        "import pathlib, sys\n"
        "from litemed.runtime.errors import InputError\n"
        "from litemed.runtime.npz import NpzReader\n"
        "try:\n    NpzReader(pathlib.Path(sys.argv[1])).read('imgs')\n"
        "except InputError as error:\n    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-O", "-c", code, tmp_path / "a.npz"], capture_output=True, text=True, check=True
    )
    assert "more than" in done.stdout


@given(
    array=nps.arrays(st.sampled_from([np.uint8, np.uint16]), nps.array_shapes(max_dims=3)), flip=st.booleans()
)
def test_numpy_reads_what_is_written_and_the_bytes_are_the_same_each_time(
    array: np.ndarray, flip: bool
) -> None:
    array = array.T if flip else array
    first, second = io.BytesIO(), io.BytesIO()
    write_npz(first, {"segs": array})
    write_npz(second, {"segs": array.copy()})
    assert first.getvalue() == second.getvalue()
    loaded = np.load(io.BytesIO(first.getvalue()), allow_pickle=False)
    assert loaded.files == ["segs"]
    np.testing.assert_array_equal(loaded["segs"], array)
    assert loaded["segs"].dtype == array.dtype


def test_what_is_written_is_read_back_by_the_reader(tmp_path: Path) -> None:
    labels = np.arange(3 * 4 * 5, dtype=np.uint16).reshape(3, 4, 5)
    with (tmp_path / "a.npz").open("wb") as file:
        write_npz(file, {"segs": labels})
    np.testing.assert_array_equal(read(tmp_path / "a.npz", "segs"), labels)
