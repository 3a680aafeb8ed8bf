"""The C library's allocator, told what a server of images needs of it.

glibc finds out for itself from which size on a block is worth a system call, and one free of 20 MB
teaches it that 20 MB is not: from then on each thread keeps up to 40 MB that it does not use, and
those of 64 threads add up. Told a size, it learns nothing.
"""

from __future__ import annotations

import ctypes
from typing import Final

# Source: malloc.h of glibc.
_TRIM_THRESHOLD: Final = -1
_MMAP_THRESHOLD: Final = -3

#: Blocks of at least so many bytes go back to the system as soon as they are freed. Getting one
#: anew costs about 0.2 ms for each megabyte.
LARGE_BYTES: Final = 1 << 20
#: What a thread may keep of smaller ones. glibc's own 128 KB would give back, and get anew, the
#: memory of each body of 200 KB.
KEPT_BYTES: Final = 16 << 20


def tune() -> bool:
    """Keep small blocks for the next body, give large ones back; False where there is no glibc."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(_MMAP_THRESHOLD, LARGE_BYTES) and mallopt(_TRIM_THRESHOLD, KEPT_BYTES))
