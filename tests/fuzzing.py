"""What the fuzzer changes files with: edits of any bytes, repairs of checksums, and bounds that must hold."""

import contextlib
import io
import re
import struct
import time
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from hypothesis import strategies as st

MOST_SECONDS = 5.0  # of CPU time for a file; most take milliseconds
MOST_BYTES = 160 * 2**20  # in which what the lowered limits allow fits several times

_NUMBERS = [
    0,
    1,
    2,
    3,
    127,
    128,
    255,
    256,
    32767,
    65535,
    2**20,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**62,
    2**64 - 1,
]
_PIECES = [number.to_bytes(size, order) for number in _NUMBERS for size in (1, 2, 4, 8)
           for order in ("little", "big") if number < 256**size]  # fmt: skip


@st.composite
def mutated(draw: st.DrawFn, seeds: Sequence[bytes], words: Sequence[bytes] = ()) -> bytes:
    """Return one of some files with up to five edits: bytes replaced, put in, taken out, moved or cut off.

    What is put in is random, a number at the edge of some type, one of `words`, or a part of another file.
    """
    data = draw(st.sampled_from(seeds))
    pieces = st.binary(min_size=1, max_size=8) | st.sampled_from(_PIECES)
    if words:
        pieces = st.sampled_from(words) | pieces
    for _ in range(draw(st.integers(1, 5))):
        # Headers are where decisions are made: half of the edits are in the first bytes.
        place = draw(st.integers(0, min(len(data), 400)) | st.integers(0, len(data)))
        how = draw(st.sampled_from(["replace", "replace", "insert", "delete", "copy", "splice", "cut"]))
        if how in ("replace", "insert"):
            piece = draw(pieces)
            data = data[:place] + piece + data[place + (len(piece) if how == "replace" else 0) :]
        elif how == "delete":
            data = data[:place] + data[place + draw(st.integers(1, 40)) :]
        elif how == "copy":
            start = draw(st.integers(0, len(data)))
            data = data[:place] + data[start : start + draw(st.integers(1, 200))] + data[place:]
        elif how == "splice":
            data = data[:place] + draw(st.sampled_from(seeds))[place:]
        else:
            data = data[:place]
    return data


def sound_png(data: bytes) -> bytes:
    """Return a PNG with right checksums, as far as its chunks can be told."""
    result, place = data[:8], 8
    while place + 12 <= len(data):
        end = place + 8 + int.from_bytes(data[place : place + 4])
        if end + 4 > len(data):
            break
        result += data[place:end] + struct.pack(">L", zlib.crc32(data[place + 4 : end]))
        place = end + 4
    return result + data[place:]


def rezipped(data: bytes) -> bytes:
    """Return an archive for members that lie one behind the other, each behind a line with its name."""
    stream = io.BytesIO()
    names: set[str] = set()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in re.findall(rb"<<([^>]*)>>\n(.*?)(?=<<|\Z)", data, re.DOTALL):
            text = name.decode("latin1").replace("\0", "_") or "x"
            if text not in names:
                archive.writestr(text, content)
            names.add(text)
    return stream.getvalue()


def unzipped(*archives: bytes) -> list[bytes]:
    """Return what `rezipped` makes these archives of."""
    members = []
    for data in archives:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members.append(
                b"".join(b"<<%s>>\n%s" % (name.encode(), archive.read(name)) for name in archive.namelist())
            )
    return members


@contextlib.contextmanager
def bounded() -> Iterator[None]:
    """Assert that a block takes neither more than `MOST_SECONDS` of CPU time nor `MOST_BYTES` of memory.

    Of memory what was resident at its peak, which Linux tells.
    """
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # the peak is from now on
    before, started = _resident("VmRSS"), time.process_time()
    yield
    assert time.process_time() - started < MOST_SECONDS
    assert _resident("VmHWM") - before < MOST_BYTES


def _resident(field: str) -> int:
    try:
        found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    except OSError:
        return 0
    return 1024 * int(found[1]) if found else 0
