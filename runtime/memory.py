"""Give memory that was freed back to the system."""

from __future__ import annotations

import ctypes


def trim_heap() -> None:
    """Return what glibc keeps of freed memory to the system; does nothing with another C library.

    Reading and compiling a graph of 28 MB leaves some 40 MiB behind that nothing needs afterwards.
    """
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError, TypeError):  # the last where a library needs a name, as on Windows
        return
