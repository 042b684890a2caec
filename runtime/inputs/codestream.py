"""Read from compressed images how large they are, before a decoder believes it and allocates that."""

import struct
from typing import Final

_J2K_START: Final = b"\xff\x4f\xff\x51"  # SOC, and SIZ which must follow
# Start of frame of JPEG, all but DHT, JPG and DAC in its range, and of JPEG-LS.
_FRAME_STARTS: Final = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}
_SCAN_START: Final = 0xDA


def coded_size(data: bytes) -> tuple[int, int] | None:
    """Return rows and columns of a JPEG, JPEG-LS or JPEG 2000 image (or codestream), None if it says none.

    Of several frame headers, which no image of DICOM should have, the largest side each.
    """
    try:
        if (at := data.find(_J2K_START, 0, 4096)) >= 0:
            right, low, left, top = struct.unpack_from(">4I", data, at + 8)
            return low - top, right - left
        at, sizes = 2, []
        while data[at] == 0xFF:
            marker = data[at + 1]
            if marker in _FRAME_STARTS:
                sizes.append(struct.unpack_from(">2H", data, at + 5))
            if marker == _SCAN_START:
                return max(rows for rows, _ in sizes), max(columns for _, columns in sizes)
            # 0xFF may be repeated in front of a marker.
            at += 1 if marker == 0xFF else 2 + struct.unpack_from(">H", data, at + 2)[0]
    except (IndexError, ValueError, struct.error):
        pass
    return None
