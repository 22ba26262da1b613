"""Extended attributes of files on XFS that are more than listxattr(2) can list: it ends at 64 KiB of names.

Called by booksfile for books that a tenant has given so many. XFS lists them part by part to who may administer the
machine, as the node agent may. Source: xfs/libxfs/xfs_fs.h of Linux (the ioctls FD_TO_HANDLE and ATTRLIST_BY_HANDLE).
"""

import fcntl
import itertools
import os
import struct
from pathlib import Path

from libvgpu.layout import layout

_ffi = layout().ffi
# struct xfs_fsop_handlereq: fd, path, oflags, ihandle, ihandlen, ohandle, ohandlen (a pointer).
_HANDLE_REQUEST = struct.Struct("@IPIPIPP")
# Behind it in struct xfs_fsop_attrlist_handlereq: cursor, flags (0: attributes of users), length and place of a buffer.
_LIST_REQUEST = struct.Struct(_HANDLE_REQUEST.format + "4IIIP")
_FD_TO_HANDLE = 3 << 30 | _HANDLE_REQUEST.size << 16 | ord("X") << 8 | 106
_ATTRLIST_BY_HANDLE = 1 << 30 | _LIST_REQUEST.size << 16 | ord("X") << 8 | 122
_HANDLE_BYTES = 64
_BUFFER_BYTES = 1 << 16


def user_attributes(descriptor: int, folder: Path) -> list[bytes]:
    """Return the first part of a file's attributes in the namespace `user.`, with that prefix, in no order.

    Empty where they cannot be had: on other file systems, for those who may not ask.

    Args:
        descriptor: of the file.
        folder: any on the same file system.
    """
    try:
        handle = _handle(descriptor)
        found = bytearray(_BUFFER_BYTES)
        wanted = (0, 0, os.O_RDONLY, _address(handle), len(handle), 0, 0), (0,) * 5, (len(found), _address(found))
        request = bytearray(_LIST_REQUEST.pack(*itertools.chain(*wanted)))
        where = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.ioctl(where, _ATTRLIST_BY_HANDLE, request)
        finally:
            os.close(where)
    except OSError:
        return []
    count, _more = struct.unpack_from("=ii", found)
    offsets = struct.unpack_from(f"={count}i", found, 8)
    # Each entry: the length of the value, and the name with a NUL behind it.
    return [b"user." + bytes(found[at + 4 : found.index(0, at + 4)]) for at in offsets]


def _handle(descriptor: int) -> bytearray:
    handle, length = bytearray(_HANDLE_BYTES), bytearray(struct.pack("=I", _HANDLE_BYTES))
    request = bytearray(_HANDLE_REQUEST.pack(descriptor, 0, os.O_RDONLY, 0, 0, _address(handle), _address(length)))
    fcntl.ioctl(descriptor, _FD_TO_HANDLE, request)
    return handle[: struct.unpack("=I", length)[0]]


def _address(buffer: bytearray) -> int:
    return int(_ffi.cast("uintptr_t", _ffi.from_buffer(buffer)))
