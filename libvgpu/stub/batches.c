/* SPDX-License-Identifier: Apache-2.0
 *
 * Copies and fills by other names: batches and copies with attributes (CUDA 12.8 and later), whose copies are those of
 * copies.c one after the other, and the functions of CUDA 2, whose device addresses have 32 bits.
 */
#include "work.h"

#include <stdint.h>

/* ---- CUDA 12.8 and later ---- */

static CUresult check_attributes(const CUmemcpyAttributes *attributes, const size_t *indices, size_t count,
                                 size_t copies) {
    REQUIRE(attributes && indices && count > 0 && count <= copies && indices[0] == 0, CUDA_ERROR_INVALID_VALUE);
    for (size_t i = 1; i < count; i++)
        REQUIRE(indices[i] > indices[i - 1] && indices[i] < copies, CUDA_ERROR_INVALID_VALUE);
    return CUDA_SUCCESS;
}

CUresult stub_cuMemcpyBatchAsync(CUdeviceptr *to, CUdeviceptr *from, size_t *sizes, size_t count,
                                 CUmemcpyAttributes *attributes, size_t *indices, size_t attribute_count,
                                 size_t *failed, CUstream stream) {
    REQUIRE(to && from && sizes && count > 0 && stream && stream != CU_STREAM_LEGACY, CUDA_ERROR_INVALID_VALUE);
    TRY(check_attributes(attributes, indices, attribute_count, count));
    for (size_t i = 0; i < count; i++) {
        CUresult result =
            sizes[i] > 0 ? copy_linear(to[i], from[i], sizes[i], ANY_TO_ANY, stream, false) : CUDA_ERROR_INVALID_VALUE;
        if (result != CUDA_SUCCESS && failed)
            *failed = i;
        TRY(result);
    }
    return CUDA_SUCCESS;
}

CUresult stub_cuMemcpyBatchAsync_v2(CUdeviceptr *to, CUdeviceptr *from, size_t *sizes, size_t count,
                                    CUmemcpyAttributes *attributes, size_t *indices, size_t attribute_count,
                                    CUstream stream) {
    return stub_cuMemcpyBatchAsync(to, from, sizes, count, attributes, indices, attribute_count, NULL, stream);
}

CUresult stub_cuMemcpyWithAttributesAsync(CUdeviceptr to, CUdeviceptr from, size_t bytes,
                                          CUmemcpyAttributes *attributes, CUstream stream) {
    REQUIRE(attributes, CUDA_ERROR_INVALID_VALUE);
    return copy_linear(to, from, bytes, ANY_TO_ANY, stream, false);
}

static CUarray array_of(const CUmemcpy3DOperand *operand) {
    return operand->type == CU_MEMCPY_OPERAND_TYPE_ARRAY ? operand->op.array.array : NULL;
}

static CUresult copy_operands(const CUDA_MEMCPY3D_BATCH_OP *op, CUstream stream) {
    REQUIRE(op, CUDA_ERROR_INVALID_VALUE);
    CUarray from = array_of(&op->src), to = array_of(&op->dst);
    size_t element = from ? from->element_bytes : to ? to->element_bytes : 1;
    CUDA_MEMCPY3D copy = {
        .srcMemoryType = from ? CU_MEMORYTYPE_ARRAY : CU_MEMORYTYPE_UNIFIED,
        .dstMemoryType = to ? CU_MEMORYTYPE_ARRAY : CU_MEMORYTYPE_UNIFIED,
        .srcArray = from,
        .dstArray = to,
        .WidthInBytes = op->extent.width * element,
        .Height = op->extent.height,
        .Depth = op->extent.depth,
    };
    if (from) {
        copy.srcXInBytes = op->src.op.array.offset.x * element;
        copy.srcY = op->src.op.array.offset.y;
        copy.srcZ = op->src.op.array.offset.z;
    } else {
        copy.srcDevice = op->src.op.ptr.ptr;
        copy.srcPitch = op->src.op.ptr.rowLength * element;
        copy.srcHeight = op->src.op.ptr.layerHeight;
    }
    if (to) {
        copy.dstXInBytes = op->dst.op.array.offset.x * element;
        copy.dstY = op->dst.op.array.offset.y;
        copy.dstZ = op->dst.op.array.offset.z;
    } else {
        copy.dstDevice = op->dst.op.ptr.ptr;
        copy.dstPitch = op->dst.op.ptr.rowLength * element;
        copy.dstHeight = op->dst.op.ptr.layerHeight;
    }
    return copy_3d(&copy, stream, false);
}

CUresult stub_cuMemcpy3DBatchAsync(size_t count, CUDA_MEMCPY3D_BATCH_OP *ops, size_t *failed, unsigned long long flags,
                                   CUstream stream) {
    REQUIRE(ops && count > 0 && flags == 0 && stream && stream != CU_STREAM_LEGACY, CUDA_ERROR_INVALID_VALUE);
    for (size_t i = 0; i < count; i++) {
        CUresult result = copy_operands(&ops[i], stream);
        if (result != CUDA_SUCCESS && failed)
            *failed = i;
        TRY(result);
    }
    return CUDA_SUCCESS;
}

CUresult stub_cuMemcpy3DBatchAsync_v2(size_t count, CUDA_MEMCPY3D_BATCH_OP *ops, unsigned long long flags,
                                      CUstream stream) {
    return stub_cuMemcpy3DBatchAsync(count, ops, NULL, flags, stream);
}

CUresult stub_cuMemcpy3DWithAttributesAsync(CUDA_MEMCPY3D_BATCH_OP *op, unsigned long long flags, CUstream stream) {
    REQUIRE(flags == 0, CUDA_ERROR_INVALID_VALUE);
    return copy_operands(op, stream);
}

CUresult stub_cuFabricCpyBatchAsync(size_t count, CUDA_FABRIC_COPY_BATCH_OP *ops, unsigned long long flags,
                                    CUstream stream) {
    (void)count, (void)ops, (void)flags, (void)stream;
    return CUDA_ERROR_NOT_SUPPORTED; /* without logical endpoints */
}

/* ---- CUDA 2 ---- */

CUresult stub_cuMemcpyDtoD(CUdeviceptr_v1 to, CUdeviceptr_v1 from, unsigned bytes) {
    return stub_cuMemcpyDtoD_v2(to, from, bytes);
}
CUresult stub_cuMemcpyDtoDAsync(CUdeviceptr_v1 to, CUdeviceptr_v1 from, unsigned bytes, CUstream stream) {
    return stub_cuMemcpyDtoDAsync_v2(to, from, bytes, stream);
}
CUresult stub_cuMemcpyDtoA(CUarray to, unsigned offset, CUdeviceptr_v1 from, unsigned bytes) {
    return stub_cuMemcpyDtoA_v2(to, offset, from, bytes);
}
CUresult stub_cuMemcpyAtoD(CUdeviceptr_v1 to, CUarray from, unsigned offset, unsigned bytes) {
    return stub_cuMemcpyAtoD_v2(to, from, offset, bytes);
}
CUresult stub_cuMemcpyAtoA(CUarray to, unsigned to_offset, CUarray from, unsigned from_offset, unsigned bytes) {
    return stub_cuMemcpyAtoA_v2(to, to_offset, from, from_offset, bytes);
}

static CUresult copy_flat(const CUDA_MEMCPY2D_v1 *old, CUstream stream, bool wait) {
    REQUIRE(old, CUDA_ERROR_INVALID_VALUE);
    CUDA_MEMCPY3D copy = {.srcXInBytes = old->srcXInBytes,
                          .srcY = old->srcY,
                          .srcMemoryType = old->srcMemoryType,
                          .srcHost = old->srcHost,
                          .srcDevice = old->srcDevice,
                          .srcArray = old->srcArray,
                          .srcPitch = old->srcPitch,
                          .dstXInBytes = old->dstXInBytes,
                          .dstY = old->dstY,
                          .dstMemoryType = old->dstMemoryType,
                          .dstHost = old->dstHost,
                          .dstDevice = old->dstDevice,
                          .dstArray = old->dstArray,
                          .dstPitch = old->dstPitch,
                          .WidthInBytes = old->WidthInBytes,
                          .Height = old->Height,
                          .Depth = 1};
    return copy_3d(&copy, stream, wait);
}

static CUresult copy_deep(const CUDA_MEMCPY3D_v1 *old, CUstream stream, bool wait) {
    REQUIRE(old, CUDA_ERROR_INVALID_VALUE);
    CUDA_MEMCPY3D copy = {.srcXInBytes = old->srcXInBytes,
                          .srcY = old->srcY,
                          .srcZ = old->srcZ,
                          .srcMemoryType = old->srcMemoryType,
                          .srcHost = old->srcHost,
                          .srcDevice = old->srcDevice,
                          .srcArray = old->srcArray,
                          .srcPitch = old->srcPitch,
                          .srcHeight = old->srcHeight,
                          .dstXInBytes = old->dstXInBytes,
                          .dstY = old->dstY,
                          .dstZ = old->dstZ,
                          .dstMemoryType = old->dstMemoryType,
                          .dstHost = old->dstHost,
                          .dstDevice = old->dstDevice,
                          .dstArray = old->dstArray,
                          .dstPitch = old->dstPitch,
                          .dstHeight = old->dstHeight,
                          .WidthInBytes = old->WidthInBytes,
                          .Height = old->Height,
                          .Depth = old->Depth};
    return copy_3d(&copy, stream, wait);
}

CUresult stub_cuMemcpy2D(const CUDA_MEMCPY2D_v1 *copy) {
    return copy_flat(copy, NULL, true);
}
CUresult stub_cuMemcpy2DUnaligned(const CUDA_MEMCPY2D_v1 *copy) {
    return copy_flat(copy, NULL, true);
}
CUresult stub_cuMemcpy2DAsync(const CUDA_MEMCPY2D_v1 *copy, CUstream stream) {
    return copy_flat(copy, stream, false);
}
CUresult stub_cuMemcpy3D(const CUDA_MEMCPY3D_v1 *copy) {
    return copy_deep(copy, NULL, true);
}
CUresult stub_cuMemcpy3DAsync(const CUDA_MEMCPY3D_v1 *copy, CUstream stream) {
    return copy_deep(copy, stream, false);
}

#define FILL(bits, type)                                                                                               \
    CUresult stub_cuMemsetD##bits(CUdeviceptr_v1 to, type value, unsigned count) {                                     \
        return stub_cuMemsetD##bits##_v2(to, value, count);                                                            \
    }                                                                                                                  \
    CUresult stub_cuMemsetD2D##bits(CUdeviceptr_v1 to, unsigned pitch, type value, unsigned width, unsigned height) {  \
        return stub_cuMemsetD2D##bits##_v2(to, pitch, value, width, height);                                           \
    }

FILL(8, unsigned char)
FILL(16, unsigned short)
FILL(32, unsigned)
