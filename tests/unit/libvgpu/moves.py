"""How each function that fills or copies is called: for test_copies.py and faultscenarios.py.

SETUP goes before a program's calls; MOVES has a call for each function, by the way that its bytes take. The calls move
SIZE bytes between what SETUP makes: device memory `d` and `e`, arrays `a` and `b`, host memory `h`, on a stream or,
the synchronous ones, on none.
"""

SIZE = 256 << 10

SETUP = f"""
SIZE, ROWS = {SIZE}, 256
NOWHERE, ZERO, ONE = Pointer(0), c_ulonglong(0), c_size_t(1)
HOST, DEVICE, ARRAY, UNIFIED = 1, 2, 3, 4

class Flat(ctypes.Structure):  # CUDA_MEMCPY2D_v1
    _fields_ = [(side + name, kind) for side in "sd" for name, kind in (
        ("x", c_uint), ("y", c_uint), ("type", c_uint), ("host", c_void_p), ("device", c_uint), ("array", c_void_p),
        ("pitch", c_uint))] + [("width", c_uint), ("height", c_uint)]

class Deep(ctypes.Structure):  # CUDA_MEMCPY3D_v1
    _fields_ = [(side + name, kind) for side in "sd" for name, kind in (
        ("x", c_uint), ("y", c_uint), ("z", c_uint), ("lod", c_uint), ("type", c_uint), ("host", c_void_p),
        ("device", c_uint), ("array", c_void_p), ("reserved", c_void_p), ("pitch", c_uint), ("height", c_uint))] + [
        ("width", c_uint), ("height", c_uint), ("depth", c_uint)]

def flat(to, to_type, source, from_type):
    # CUDA_MEMCPY2D: x, y, type, host, device, array, pitch of both; width, height
    pitch, rows = (SIZE, 1) if ARRAY in (to_type, from_type) else (SIZE // ROWS, ROWS)
    def end(where, kind):
        where = where.value
        return 0, 0, kind, where * (kind == HOST), where * (kind in (DEVICE, UNIFIED)), where * (kind == ARRAY), pitch
    return (c_ulonglong * 16)(*end(source, from_type), *end(to, to_type), pitch, rows)

def deep(to, to_type, source, from_type):
    # CUDA_MEMCPY3D: x, y, z, level, type, host, device, array, context, pitch, height of both; width, height, depth
    two = list(flat(to, to_type, source, from_type))
    def end(x, y, kind, host, device, array, pitch):
        return x, y, 0, 0, kind, host, device, array, 0, pitch, 0
    return (c_ulonglong * 25)(*end(*two[:7]), *end(*two[7:14]), *two[14:], 1)

def old(kind):
    copy = kind(stype=ARRAY, dtype=ARRAY, sarray=a.value, darray=b.value, width=SIZE, height=1)
    if kind is Deep:
        copy.depth = 1
    return copy

def op(to, source):
    # CUDA_MEMCPY3D_BATCH_OP: type, pointer, row length, layer height, location of both; extent; order and flags
    return (c_ulonglong * 14)(1, source.value, 0, 0, 0, 1, to.value, 0, 0, 0, SIZE // ROWS, ROWS, 1, 1)

def lists(to, source):
    # Of one copy: destinations, sources, sizes, count, attributes, their indices, how many
    return ((Pointer * 1)(to.value), (Pointer * 1)(source.value), (c_size_t * 1)(SIZE), ONE, (c_int * 6)(1),
            (c_size_t * 1)(0), ONE)

def array():
    made = c_void_p()
    check(cuda.cuArrayCreate_v2(byref(made), (c_ulonglong * 3)(SIZE, 0, 0x0100000001)))
    return made

def ready():
    global d, e, a, b, h, n, page, stream
    d, e, a, b, n, page = alloc(SIZE), alloc(SIZE), array(), array(), c_size_t(SIZE), ctypes.create_string_buffer(SIZE)
    h, stream = Pointer(ctypes.addressof(page)), c_void_p()
    check(cuda.cuStreamCreate(byref(stream), 1))
"""

_FILLS = {
    f"cuMemsetD{'2D' * two}{bits}{version}": (
        f"d, {'c_size_t(SIZE // ROWS), ' * two}0, "
        f"c_size_t(SIZE // {'ROWS // ' * two}{bits // 8}){', c_size_t(ROWS)' * two}{', stream' * (version == 'Async')}"
    )
    for two in (False, True)
    for bits in (8, 16, 32)
    for version in ("_v2", "Async")
}
_COPIES = {
    "cuMemcpyDtoD_v2": "d, e, n",
    "cuMemcpyDtoDAsync_v2": "d, e, n, stream",
    "cuMemcpyPeer": "d, context, e, context, n",
    "cuMemcpyPeerAsync": "d, context, e, context, n, stream",
    "cuMemcpyDtoA_v2": "a, ZERO, d, n",
    "cuMemcpyAtoD_v2": "d, a, ZERO, n",
    "cuMemcpyAtoA_v2": "a, ZERO, b, ZERO, n",
}
_FORMS = {
    "cuMemcpy2D_v2": "flat({})",
    "cuMemcpy2DUnaligned_v2": "flat({})",
    "cuMemcpy2DAsync_v2": "flat({}), stream",
    "cuMemcpy3D_v2": "deep({})",
    "cuMemcpy3DAsync_v2": "deep({}), stream",
    "cuMemcpy3DPeer": "deep({})",
    "cuMemcpy3DPeerAsync": "deep({}), stream",
}
_ANY = {
    "cuMemcpy": "{0}, {1}, n",
    "cuMemcpyAsync": "{0}, {1}, n, stream",
    "cuMemcpyWithAttributesAsync": "{0}, {1}, n, (c_int * 6)(1), stream",
    "cuMemcpyBatchAsync": "*lists({0}, {1}), None, stream",
    "cuMemcpyBatchAsync_v2": "*lists({0}, {1}), stream",
    "cuMemcpy3DBatchAsync": "ONE, op({0}, {1}), None, ZERO, stream",
    "cuMemcpy3DBatchAsync_v2": "ONE, op({0}, {1}), ZERO, stream",
    "cuMemcpy3DWithAttributesAsync": "op({0}, {1}), ZERO, stream",
}
_OLD = {
    "cuMemcpyAtoA": "a, 0, b, 0, SIZE",
    "cuMemcpy2D": "byref(old(Flat))",
    "cuMemcpy2DUnaligned": "byref(old(Flat))",
    "cuMemcpy2DAsync": "byref(old(Flat)), stream",
    "cuMemcpy3D": "byref(old(Deep))",
    "cuMemcpy3DAsync": "byref(old(Deep)), stream",
}
REFUSED = {
    "cuMemcpyDtoD": "32, 64, SIZE",
    "cuMemcpyDtoDAsync": "32, 64, SIZE, stream",
    "cuMemcpyDtoA": "a, 0, 32, SIZE",
    "cuMemcpyAtoD": "32, a, 0, SIZE",
    **{f"cuMemsetD{bits}": "32, 0, SIZE" for bits in (8, 16, 32)},
    **{f"cuMemsetD2D{bits}": "32, 1024, 0, 16, 16" for bits in (8, 16, 32)},
    "cuFabricCpyBatchAsync": "ONE, None, ZERO, stream",
    "cuFabricCpyBatchAsync_ptsz": "ONE, None, ZERO, stream",
}
"""Calls of CUDA 2 with addresses of 32 bits, where the simulated card has no memory, and of what it does not have."""


def _twin(function: str) -> str:
    asynchronous = "Async" in function
    return function + ("_ptsz" if asynchronous else "_ptds")


def _with_twins(calls: dict[str, str]) -> dict[str, str]:
    return {name: arguments for function, arguments in calls.items() for name in (function, _twin(function))}


MOVES = {
    "fills": _with_twins(_FILLS),
    "copies": _with_twins(_COPIES),
    "copies of boxes": _with_twins({name: form.format("d, DEVICE, e, DEVICE") for name, form in _FORMS.items()}),
    "copies of boxes to arrays": _with_twins(
        {name: form.format("a, ARRAY, d, UNIFIED") for name, form in _FORMS.items()}
    ),
    "copies by address": _with_twins({name: form.format("d", "e") for name, form in _ANY.items()}),
    "copies of CUDA 2": _OLD,
}
"""By kind of call: the arguments of each function for a move that stays on the device."""

LINKED = {
    "from the host": _with_twins(
        {
            **{name: form.format("d, DEVICE, h, HOST") for name, form in _FORMS.items()},
            **{name: form.format("d", "h") for name, form in _ANY.items()},
            "cuMemcpyHtoD_v2": "d, h, n",
            "cuMemcpyHtoDAsync_v2": "d, h, n, stream",
        }
    ),
    "to the host": _with_twins(
        {
            **{name: form.format("h, UNIFIED, d, DEVICE") for name, form in _FORMS.items()},
            **{name: form.format("h", "d") for name, form in _ANY.items()},
            "cuMemcpyDtoH_v2": "h, d, n",
            "cuMemcpyDtoHAsync_v2": "h, d, n, stream",
        }
    ),
}
"""The same for moves to and from the host."""
