"""The shared layout of limits and books as Python sees it: include/vgpu/layout.h, read through cffi in ABI mode.

Called by libvgpu.shares. There is no second description of the layout: what C compiles is what is parsed here.
"""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cffi

HEADER = Path(__file__).parent / "include" / "vgpu" / "layout.h"
_BEGIN = "/* vgpu:cffi-begin */"
_END = "/* vgpu:cffi-end */"


@dataclass(frozen=True)
class Layout:
    """The parsed header."""

    ffi: cffi.FFI
    constants: Any
    """The integer constants of the header, as attributes."""

    def limits(self, buffer: Any = None) -> Any:
        """Return a `struct vgpu_limits *`: over a buffer of its size (which must outlive it), or new and zeroed."""
        return self._view("struct vgpu_limits", buffer)

    def books(self, buffer: Any = None) -> Any:
        """Return a `struct vgpu_books *`: over a buffer of its size (which must outlive it), or new and zeroed."""
        return self._view("struct vgpu_books", buffer)

    def raw(self, view: Any) -> bytes:
        """Return the bytes of a structure given by pointer."""
        return bytes(self.ffi.buffer(view))

    def text(self, field: Any) -> str | None:
        """Return a character array as text; None if its NUL is missing or it is not UTF-8."""
        raw = bytes(self.ffi.buffer(field))
        if b"\0" not in raw:
            return None
        try:
            return raw.split(b"\0", 1)[0].decode()
        except UnicodeDecodeError:
            return None

    def _view(self, kind: str, buffer: Any) -> Any:
        if buffer is None:
            return self.ffi.new(f"{kind} *")
        return self.ffi.from_buffer(f"{kind} *", buffer)


@functools.cache
def layout() -> Layout:
    """Parse the header; once per process, at first use."""
    text = HEADER.read_text(encoding="utf-8")
    declarations = text.split(_BEGIN, 1)[1].split(_END, 1)[0]
    ffi = cffi.FFI()
    ffi.cdef(declarations)
    return Layout(ffi=ffi, constants=ffi.dlopen(None))
