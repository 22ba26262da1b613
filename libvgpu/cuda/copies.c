/* SPDX-License-Identifier: Apache-2.0
 *
 * Fills, and copies that stay on devices, in all their forms: the device's memory and multiprocessors do them, so they
 * are paid like kernels (launch.h), by one estimate for each way to move bytes and each doubling of them. Copies to and
 * from the host go through unpaid (passed.def); where a call leaves open what it is, the pointers tell.
 */
#include "cuda/launch.h"

#include <stddef.h>

/* Ways to move bytes that may take different times for as many of them. */
enum way { FILL = 1, COPY, COPY_WITH_ARRAY, COPY_BOX, COPY_BATCH, COPY_FABRIC };

/* What one call moves; no bytes: nothing that is to be paid. */
struct load {
    enum way way;
    uint64_t bytes, rows; /* narrow rows take longer */
};

static uint64_t times(uint64_t a, uint64_t b) {
    uint64_t product;
    return __builtin_mul_overflow(a, b, &product) ? UINT64_MAX : product;
}

static struct load line(enum way way, uint64_t bytes) {
    return (struct load){way, bytes, 1};
}

static struct load box(enum way way, uint64_t width, uint64_t height, uint64_t depth) {
    uint64_t rows = times(height, depth);
    return (struct load){way, times(width, rows), rows};
}

static CUresult begin(struct vgpu__launch *launch, const struct load *load, CUstream stream) {
    uint64_t log2_rows = load->rows > 0 ? 64 - (uint64_t)__builtin_clzll(load->rows) : 0;
    uintptr_t handle = (uintptr_t)load->way | (uintptr_t)log2_rows << 4; /* below all addresses of functions */
    *launch = (struct vgpu__launch){0};
    if (load->bytes == 0)
        return CUDA_SUCCESS;
    return vgpu__launch_begin_copy(launch, vgpu__launch_key((const void *)handle, load->bytes), stream);
}

/* Of a batch that fails, the driver may have begun a part: it is measured, and paid, as one that does not. */
static void end(struct vgpu__launch *launch, const struct load *load, CUresult result) {
    bool batch = load->way == COPY_BATCH || load->way == COPY_FABRIC;
    vgpu__launch_end(launch, batch && result != CUDA_ERROR_NOT_SUPPORTED ? CUDA_SUCCESS : result);
}

/* One hook. */
#define UNWRAPPED(...) __VA_ARGS__
#define MOVE(symbol, parameters, arguments, what, stream)                                                              \
    CUresult symbol parameters {                                                                                       \
        if (VGPU_BY_DRIVER())                                                                                          \
            return VGPU_REAL(symbol) arguments;                                                                        \
        struct vgpu__launch launch;                                                                                    \
        struct load load = what;                                                                                       \
        CUresult result = begin(&launch, &load, stream);                                                               \
        if (result != CUDA_SUCCESS)                                                                                    \
            return result;                                                                                             \
        VGPU_CALL(result, symbol, UNWRAPPED arguments);                                                                \
        end(&launch, &load, result);                                                                                   \
        return result;                                                                                                 \
    }
/* Synchronous and asynchronous ones, with their twins. */
#define MOVE_PTDS(symbol, parameters, arguments, what)                                                                 \
    MOVE(symbol, parameters, arguments, what, NULL)                                                                    \
    MOVE(symbol##_ptds, parameters, arguments, what, CU_STREAM_PER_THREAD)
#define MOVE_PTSZ(symbol, parameters, arguments, what)                                                                 \
    MOVE(symbol, parameters, arguments, what, hStream)                                                                 \
    MOVE(symbol##_ptsz, parameters, arguments, what, vgpu__per_thread(hStream))

/* ---- Fills ---- */

#define FILLS(bits, type)                                                                                              \
    MOVE_PTDS(cuMemsetD##bits##_v2, (CUdeviceptr to, type value, size_t count), (to, value, count),                    \
              line(FILL, times(count, bits / 8)))                                                                      \
    MOVE_PTSZ(cuMemsetD##bits##Async, (CUdeviceptr to, type value, size_t count, CUstream hStream),                    \
              (to, value, count, hStream), line(FILL, times(count, bits / 8)))                                         \
    MOVE_PTDS(cuMemsetD2D##bits##_v2, (CUdeviceptr to, size_t pitch, type value, size_t width, size_t height),         \
              (to, pitch, value, width, height), box(FILL, times(width, bits / 8), height, 1))                         \
    MOVE_PTSZ(cuMemsetD2D##bits##Async,                                                                                \
              (CUdeviceptr to, size_t pitch, type value, size_t width, size_t height, CUstream hStream),               \
              (to, pitch, value, width, height, hStream), box(FILL, times(width, bits / 8), height, 1))                \
    MOVE(cuMemsetD##bits, (CUdeviceptr_v1 to, type value, unsigned int count), (to, value, count),                     \
         line(FILL, times(count, bits / 8)), NULL)                                                                     \
    MOVE(cuMemsetD2D##bits,                                                                                            \
         (CUdeviceptr_v1 to, unsigned int pitch, type value, unsigned int width, unsigned int height),                 \
         (to, pitch, value, width, height), box(FILL, times(width, bits / 8), height, 1), NULL)

FILLS(8, unsigned char)
FILLS(16, unsigned short)
FILLS(32, unsigned int)

/* ---- Copies between addresses ---- */

/* An address that the driver does not know is the program's own memory. In a signal handler the driver is not asked,
 * since what was interrupted may hold its locks: then the copy is paid. */
static bool on_host(CUdeviceptr address) {
    CUmemorytype type = 0;
    CUresult result;
    if (vgpu__inside > 0)
        return false;
    VGPU_CALL(result, cuPointerGetAttribute, &type, CU_POINTER_ATTRIBUTE_MEMORY_TYPE, address);
    return result == CUDA_ERROR_INVALID_VALUE || (result == CUDA_SUCCESS && type == CU_MEMORYTYPE_HOST);
}

static struct load between(CUdeviceptr to, CUdeviceptr from, uint64_t bytes) {
    return line(COPY, on_host(from) || on_host(to) ? 0 : bytes);
}

MOVE_PTDS(cuMemcpy, (CUdeviceptr to, CUdeviceptr from, size_t bytes), (to, from, bytes), between(to, from, bytes))
MOVE_PTSZ(cuMemcpyAsync, (CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream hStream), (to, from, bytes, hStream),
          between(to, from, bytes))
MOVE_PTSZ(cuMemcpyWithAttributesAsync,
          (CUdeviceptr to, CUdeviceptr from, size_t bytes, CUmemcpyAttributes *attributes, CUstream hStream),
          (to, from, bytes, attributes, hStream), between(to, from, bytes))
MOVE_PTDS(cuMemcpyDtoD_v2, (CUdeviceptr to, CUdeviceptr from, size_t bytes), (to, from, bytes), line(COPY, bytes))
MOVE_PTSZ(cuMemcpyDtoDAsync_v2, (CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream hStream),
          (to, from, bytes, hStream), line(COPY, bytes))
MOVE(cuMemcpyDtoD, (CUdeviceptr_v1 to, CUdeviceptr_v1 from, unsigned int bytes), (to, from, bytes), line(COPY, bytes),
     NULL)
MOVE(cuMemcpyDtoDAsync, (CUdeviceptr_v1 to, CUdeviceptr_v1 from, unsigned int bytes, CUstream hStream),
     (to, from, bytes, hStream), line(COPY, bytes), hStream)

/* Between two devices too, or between two contexts of one. */
MOVE_PTDS(cuMemcpyPeer, (CUdeviceptr to, CUcontext there, CUdeviceptr from, CUcontext here, size_t bytes),
          (to, there, from, here, bytes), line(COPY, bytes))
MOVE_PTSZ(cuMemcpyPeerAsync,
          (CUdeviceptr to, CUcontext there, CUdeviceptr from, CUcontext here, size_t bytes, CUstream hStream),
          (to, there, from, here, bytes, hStream), line(COPY, bytes))

/* ---- Copies to, from and between arrays ---- */

MOVE_PTDS(cuMemcpyDtoA_v2, (CUarray to, size_t to_at, CUdeviceptr from, size_t bytes), (to, to_at, from, bytes),
          line(COPY_WITH_ARRAY, bytes))
MOVE_PTDS(cuMemcpyAtoD_v2, (CUdeviceptr to, CUarray from, size_t from_at, size_t bytes), (to, from, from_at, bytes),
          line(COPY_WITH_ARRAY, bytes))
MOVE_PTDS(cuMemcpyAtoA_v2, (CUarray to, size_t to_at, CUarray from, size_t from_at, size_t bytes),
          (to, to_at, from, from_at, bytes), line(COPY_WITH_ARRAY, bytes))
MOVE(cuMemcpyDtoA, (CUarray to, unsigned int to_at, CUdeviceptr_v1 from, unsigned int bytes), (to, to_at, from, bytes),
     line(COPY_WITH_ARRAY, bytes), NULL)
MOVE(cuMemcpyAtoD, (CUdeviceptr_v1 to, CUarray from, unsigned int from_at, unsigned int bytes),
     (to, from, from_at, bytes), line(COPY_WITH_ARRAY, bytes), NULL)
MOVE(cuMemcpyAtoA, (CUarray to, unsigned int to_at, CUarray from, unsigned int from_at, unsigned int bytes),
     (to, to_at, from, from_at, bytes), line(COPY_WITH_ARRAY, bytes), NULL)

/* ---- Copies in two and three dimensions: the call says what lies where, or that the addresses do ---- */

static bool end_on_host(CUmemorytype type, CUdeviceptr address) {
    return type == CU_MEMORYTYPE_HOST || (type == CU_MEMORYTYPE_UNIFIED && on_host(address));
}

#define STAYS(copy)                                                                                                    \
    ((copy) != NULL && !end_on_host((copy)->srcMemoryType, (copy)->srcDevice) &&                                       \
     !end_on_host((copy)->dstMemoryType, (copy)->dstDevice))
#define FLAT(copy) STAYS(copy) ? box(COPY_BOX, (copy)->WidthInBytes, (copy)->Height, 1) : line(COPY_BOX, 0)
#define DEEP(copy) STAYS(copy) ? box(COPY_BOX, (copy)->WidthInBytes, (copy)->Height, (copy)->Depth) : line(COPY_BOX, 0)

MOVE_PTDS(cuMemcpy2D_v2, (const CUDA_MEMCPY2D *copy), (copy), FLAT(copy))
MOVE_PTDS(cuMemcpy2DUnaligned_v2, (const CUDA_MEMCPY2D *copy), (copy), FLAT(copy))
MOVE_PTSZ(cuMemcpy2DAsync_v2, (const CUDA_MEMCPY2D *copy, CUstream hStream), (copy, hStream), FLAT(copy))
MOVE_PTDS(cuMemcpy3D_v2, (const CUDA_MEMCPY3D *copy), (copy), DEEP(copy))
MOVE_PTSZ(cuMemcpy3DAsync_v2, (const CUDA_MEMCPY3D *copy, CUstream hStream), (copy, hStream), DEEP(copy))
MOVE_PTDS(cuMemcpy3DPeer, (const CUDA_MEMCPY3D_PEER *copy), (copy), DEEP(copy))
MOVE_PTSZ(cuMemcpy3DPeerAsync, (const CUDA_MEMCPY3D_PEER *copy, CUstream hStream), (copy, hStream), DEEP(copy))
MOVE(cuMemcpy2D, (const CUDA_MEMCPY2D_v1 *copy), (copy), FLAT(copy), NULL)
MOVE(cuMemcpy2DUnaligned, (const CUDA_MEMCPY2D_v1 *copy), (copy), FLAT(copy), NULL)
MOVE(cuMemcpy2DAsync, (const CUDA_MEMCPY2D_v1 *copy, CUstream hStream), (copy, hStream), FLAT(copy), hStream)
MOVE(cuMemcpy3D, (const CUDA_MEMCPY3D_v1 *copy), (copy), DEEP(copy), NULL)
MOVE(cuMemcpy3DAsync, (const CUDA_MEMCPY3D_v1 *copy, CUstream hStream), (copy, hStream), DEEP(copy), hStream)

static bool operand_on_host(const CUmemcpy3DOperand *operand) {
    return operand->type != CU_MEMCPY_OPERAND_TYPE_ARRAY && on_host(operand->op.ptr.ptr);
}

/* Extents are in elements where there is an array: few, which is the same to the estimate. */
static struct load of_operands(const CUDA_MEMCPY3D_BATCH_OP *op) {
    if (op == NULL || operand_on_host(&op->src) || operand_on_host(&op->dst))
        return line(COPY_BOX, 0);
    return box(COPY_BOX, op->extent.width, op->extent.height, op->extent.depth);
}

MOVE_PTSZ(cuMemcpy3DWithAttributesAsync, (CUDA_MEMCPY3D_BATCH_OP * op, unsigned long long flags, CUstream hStream),
          (op, flags, hStream), of_operands(op))

/* ---- Batches: paid as a whole where one of the copies stays on devices ---- */

static struct load of_batch(const CUdeviceptr *to, const CUdeviceptr *from, const size_t *sizes, size_t count) {
    uint64_t bytes = 0;
    bool stays = false;
    if (to == NULL || from == NULL || sizes == NULL)
        return line(COPY_BATCH, 0);
    for (size_t i = 0; i < count; i++) {
        stays = stays || !(on_host(from[i]) || on_host(to[i]));
        bytes += sizes[i];
    }
    return (struct load){COPY_BATCH, stays ? bytes : 0, count};
}

static struct load of_boxes(const CUDA_MEMCPY3D_BATCH_OP *ops, size_t count) {
    uint64_t bytes = 0;
    bool stays = false;
    for (size_t i = 0; ops != NULL && i < count; i++) {
        stays = stays || of_operands(&ops[i]).bytes > 0;
        bytes += box(COPY_BATCH, ops[i].extent.width, ops[i].extent.height, ops[i].extent.depth).bytes;
    }
    return (struct load){COPY_BATCH, stays ? bytes : 0, count};
}

MOVE_PTSZ(cuMemcpyBatchAsync,
          (CUdeviceptr * to, CUdeviceptr *from, size_t *sizes, size_t count, CUmemcpyAttributes *attributes,
           size_t *indices, size_t attribute_count, size_t *failed, CUstream hStream),
          (to, from, sizes, count, attributes, indices, attribute_count, failed, hStream),
          of_batch(to, from, sizes, count))
MOVE_PTSZ(cuMemcpyBatchAsync_v2,
          (CUdeviceptr * to, CUdeviceptr *from, size_t *sizes, size_t count, CUmemcpyAttributes *attributes,
           size_t *indices, size_t attribute_count, CUstream hStream),
          (to, from, sizes, count, attributes, indices, attribute_count, hStream), of_batch(to, from, sizes, count))
MOVE_PTSZ(cuMemcpy3DBatchAsync,
          (size_t count, CUDA_MEMCPY3D_BATCH_OP *ops, size_t *failed, unsigned long long flags, CUstream hStream),
          (count, ops, failed, flags, hStream), of_boxes(ops, count))
MOVE_PTSZ(cuMemcpy3DBatchAsync_v2,
          (size_t count, CUDA_MEMCPY3D_BATCH_OP *ops, unsigned long long flags, CUstream hStream),
          (count, ops, flags, hStream), of_boxes(ops, count))

/* Copies over a fabric may be copies on one device too; how large they are, we do not look up. */
MOVE_PTSZ(cuFabricCpyBatchAsync,
          (size_t count, CUDA_FABRIC_COPY_BATCH_OP *ops, unsigned long long flags, CUstream hStream),
          (count, ops, flags, hStream), line(COPY_FABRIC, count))
