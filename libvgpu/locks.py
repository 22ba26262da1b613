"""Who holds a slot of a books file: asks for the open-file-description locks that layout.h describes.

Called by libvgpu.shares. Only asks, never takes one: a lock taken here would look like a living process.
"""

import fcntl
import os
import struct

# struct flock of the 64-bit Linux ABIs: l_type, l_whence, l_start, l_len, l_pid.
_FLOCK = struct.Struct("@hhqqi4x")


def is_held(descriptor: int, offset: int, length: int = 1) -> bool:
    """Return whether any open file description but `descriptor`'s own holds a lock in the given bytes of the file."""
    question = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, offset, length, 0)
    answer = fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, question)
    return bool(_FLOCK.unpack(answer)[0] != fcntl.F_UNLCK)
