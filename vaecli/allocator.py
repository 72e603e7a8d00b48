"""glibc's allocator, told to keep what a training step frees, because the next step takes it again.

A step frees and takes buffers of 12 MB over and over. By default glibc gives each back to the
kernel and maps it anew, and every page faults again: 48.1 ms a training step in float32 against
32.1 with the memory kept (glibc 2.36; the rest as in `engine.prepare`). The peak stays the same.
"""

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_LARGEST = 2**31 - 1
_THRESHOLDS = (2**30, 2**25)  # bytes; older versions, such as 2.31, refuse more than the second


def keep_freed_memory() -> None:
    """Raise glibc's mmap and trim thresholds in this process; does nothing with another C library.

    It is for the command, not for a library: a notebook's memory is its owner's business.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None and any(mallopt(_M_MMAP_THRESHOLD, size) for size in _THRESHOLDS):  # musl has none
        # Only then: it also stops glibc from raising the other threshold by itself.
        mallopt(_M_TRIM_THRESHOLD, _LARGEST)
