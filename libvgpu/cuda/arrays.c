/* SPDX-License-Identifier: Apache-2.0
 *
 * Arrays and mipmapped arrays: charged by their elements, and for what the driver adds for tiling: that it does not say
 * before, so it is measured at once (footprint.h).
 */
#include "cuda/footprint.h"
#include "cuda/memory.h"

#include <stddef.h>

static uint64_t element_bytes(CUarray_format format, unsigned int channels) {
    switch (format) {
    case CU_AD_FORMAT_UNSIGNED_INT8:
    case CU_AD_FORMAT_SIGNED_INT8:
        return channels;
    case CU_AD_FORMAT_UNSIGNED_INT16:
    case CU_AD_FORMAT_SIGNED_INT16:
    case CU_AD_FORMAT_HALF:
        return 2ull * channels;
    default: /* 32 bits, and the block formats at their largest: rather too much than too little */
        return 4ull * (channels > 0 ? channels : 1);
    }
}

static uint64_t at_least_one(uint64_t value) {
    return value > 0 ? value : 1;
}

static uint64_t level_bytes(const CUDA_ARRAY3D_DESCRIPTOR *desc, unsigned int level) {
    uint64_t width = at_least_one(desc->Width >> level), height = at_least_one(desc->Height >> level);
    bool layers = desc->Flags & (CUDA_ARRAY3D_LAYERED | CUDA_ARRAY3D_CUBEMAP);
    uint64_t depth = at_least_one(layers ? desc->Depth : desc->Depth >> level), bytes;
    if (__builtin_mul_overflow(width, height, &bytes) || __builtin_mul_overflow(bytes, depth, &bytes) ||
        __builtin_mul_overflow(bytes, element_bytes(desc->Format, desc->NumChannels), &bytes))
        return UINT64_MAX;
    return bytes;
}

static uint64_t array_bytes(const CUDA_ARRAY3D_DESCRIPTOR *desc, unsigned int levels) {
    if (desc == NULL || desc->Flags & (CUDA_ARRAY3D_SPARSE | CUDA_ARRAY3D_DEFERRED_MAPPING))
        return 0; /* holds no memory of its own: what is mapped into it comes from cuMemCreate */
    uint64_t sum = 0;
    for (unsigned int level = 0; level < levels && level < 32; level++)
        if (__builtin_add_overflow(sum, level_bytes(desc, level), &sum))
            return UINT64_MAX;
    return sum;
}

/* The tiles may take more than the elements did: then there is room for them, or the array is destroyed again. */
#define TILED(taking, kind, handle, destroy)                                                                           \
    do {                                                                                                               \
        result = vgpu__taken(&(taking), result, kind, result == CUDA_SUCCESS ? (uintptr_t)*(handle) : 0);              \
        if (result != CUDA_SUCCESS || (taking).device == NULL)                                                         \
            return result;                                                                                             \
        CUresult room = vgpu__footprint_grown((taking).device);                                                        \
        if (room != CUDA_SUCCESS && destroy(*(handle)) == CUDA_SUCCESS)                                                \
            result = room;                                                                                             \
        if (room != CUDA_SUCCESS)                                                                                      \
            vgpu__footprint_settle((taking).device);                                                                   \
        return result;                                                                                                 \
    } while (0)

CUresult cuArrayCreate(CUarray *array, const CUDA_ARRAY_DESCRIPTOR_v1 *desc) {
    struct vgpu__taking taking;
    CUDA_ARRAY3D_DESCRIPTOR full = {0};
    if (desc != NULL)
        full = (CUDA_ARRAY3D_DESCRIPTOR){
            .Width = desc->Width, .Height = desc->Height, .Format = desc->Format, .NumChannels = desc->NumChannels};
    CUresult result = vgpu__take(&taking, desc != NULL ? array_bytes(&full, 1) : 0);
    if (result != CUDA_SUCCESS)
        return result;
    VGPU_CALL(result, cuArrayCreate, array, desc);
    TILED(taking, VGPU_KIND_ARRAY, array, cuArrayDestroy);
}

CUresult cuArray3DCreate(CUarray *array, const CUDA_ARRAY3D_DESCRIPTOR_v1 *desc) {
    struct vgpu__taking taking;
    CUDA_ARRAY3D_DESCRIPTOR full = {0};
    if (desc != NULL)
        full = (CUDA_ARRAY3D_DESCRIPTOR){.Width = desc->Width,
                                         .Height = desc->Height,
                                         .Depth = desc->Depth,
                                         .Format = desc->Format,
                                         .NumChannels = desc->NumChannels,
                                         .Flags = desc->Flags};
    CUresult result = vgpu__take(&taking, desc != NULL ? array_bytes(&full, 1) : 0);
    if (result != CUDA_SUCCESS)
        return result;
    VGPU_CALL(result, cuArray3DCreate, array, desc);
    TILED(taking, VGPU_KIND_ARRAY, array, cuArrayDestroy);
}

CUresult cuArrayCreate_v2(CUarray *array, const CUDA_ARRAY_DESCRIPTOR *desc) {
    struct vgpu__taking taking;
    CUDA_ARRAY3D_DESCRIPTOR full = {0};
    if (desc != NULL)
        full = (CUDA_ARRAY3D_DESCRIPTOR){
            .Width = desc->Width, .Height = desc->Height, .Format = desc->Format, .NumChannels = desc->NumChannels};
    CUresult result = vgpu__take(&taking, desc != NULL ? array_bytes(&full, 1) : 0);
    if (result != CUDA_SUCCESS)
        return result;
    VGPU_CALL(result, cuArrayCreate_v2, array, desc);
    TILED(taking, VGPU_KIND_ARRAY, array, cuArrayDestroy);
}

CUresult cuArray3DCreate_v2(CUarray *array, const CUDA_ARRAY3D_DESCRIPTOR *desc) {
    struct vgpu__taking taking;
    CUresult result = vgpu__take(&taking, array_bytes(desc, 1));
    if (result != CUDA_SUCCESS)
        return result;
    VGPU_CALL(result, cuArray3DCreate_v2, array, desc);
    TILED(taking, VGPU_KIND_ARRAY, array, cuArrayDestroy);
}

CUresult cuArrayDestroy(CUarray array) {
    CUresult result;
    struct vgpu_charge charge = vgpu__give(VGPU_KIND_ARRAY, (uintptr_t)array);
    VGPU_CALL(result, cuArrayDestroy, array);
    vgpu__given(&charge, result);
    if (result == CUDA_SUCCESS && charge.device != NULL)
        vgpu__footprint_settle(charge.device);
    return result;
}

CUresult cuMipmappedArrayCreate(CUmipmappedArray *mipmap, const CUDA_ARRAY3D_DESCRIPTOR *desc, unsigned int levels) {
    struct vgpu__taking taking;
    CUresult result = vgpu__take(&taking, array_bytes(desc, levels));
    if (result != CUDA_SUCCESS)
        return result;
    VGPU_CALL(result, cuMipmappedArrayCreate, mipmap, desc, levels);
    TILED(taking, VGPU_KIND_MIPMAP, mipmap, cuMipmappedArrayDestroy);
}

CUresult cuMipmappedArrayDestroy(CUmipmappedArray mipmap) {
    CUresult result;
    struct vgpu_charge charge = vgpu__give(VGPU_KIND_MIPMAP, (uintptr_t)mipmap);
    VGPU_CALL(result, cuMipmappedArrayDestroy, mipmap);
    vgpu__given(&charge, result);
    if (result == CUDA_SUCCESS && charge.device != NULL)
        vgpu__footprint_settle(charge.device);
    return result;
}
