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

/* ---- Destroying ---- */

#define DESTROY(kind, symbol, handle)                                                                                  \
    do {                                                                                                               \
        CUresult result;                                                                                               \
        struct vgpu_charge charge = vgpu__give(kind, (uintptr_t)(handle));                                             \
        VGPU_CALL(result, symbol, handle);                                                                             \
        vgpu__given(&charge, result);                                                                                  \
        if (result == CUDA_SUCCESS && charge.device != NULL)                                                           \
            vgpu__footprint_settle(charge.device);                                                                     \
        return result;                                                                                                 \
    } while (0)

static CUresult destroy_array(CUarray array) {
    DESTROY(VGPU_KIND_ARRAY, cuArrayDestroy, array);
}

static CUresult destroy_mipmap(CUmipmappedArray mipmap) {
    DESTROY(VGPU_KIND_MIPMAP, cuMipmappedArrayDestroy, mipmap);
}

CUresult cuArrayDestroy(CUarray array) {
    VGPU_ENTER(cuArrayDestroy, array);
    return destroy_array(array);
}

CUresult cuMipmappedArrayDestroy(CUmipmappedArray mipmap) {
    VGPU_ENTER(cuMipmappedArrayDestroy, mipmap);
    return destroy_mipmap(mipmap);
}

/* ---- Creating ---- */

/* The tiles may take more than the elements did: then there is room for them, or the array is destroyed again. */
#define CREATE(kind, type, handle, bytes, destroy, symbol, ...)                                                        \
    do {                                                                                                               \
        struct vgpu__taking taking;                                                                                    \
        type made = NULL;                                                                                              \
        CUresult result = vgpu__take(&taking, bytes), room;                                                            \
        if (result != CUDA_SUCCESS)                                                                                    \
            return result;                                                                                             \
        vgpu__footprint_begin(taking.device);                                                                          \
        VGPU_CALL(result, symbol, VGPU_OUT(handle, made), __VA_ARGS__);                                                \
        result = vgpu__taken(&taking, result, kind, (uintptr_t)made);                                                  \
        if (result == CUDA_SUCCESS && taking.device != NULL &&                                                         \
            (room = vgpu__footprint_grown(taking.device)) != CUDA_SUCCESS) {                                           \
            if (destroy(made) == CUDA_SUCCESS)                                                                         \
                result = room;                                                                                         \
            vgpu__footprint_settle(taking.device);                                                                     \
        }                                                                                                              \
        vgpu__footprint_end(taking.device);                                                                            \
        if (result == CUDA_SUCCESS)                                                                                    \
            *(handle) = made;                                                                                          \
        return result;                                                                                                 \
    } while (0)

/* What the application describes, as it was when its bytes were counted. */
#define KEPT(type, kept, desc)                                                                                         \
    type kept##_copy, *kept = (desc) != NULL ? &kept##_copy : NULL;                                                    \
    if (kept != NULL)                                                                                                  \
        *kept = *(desc);

/* The older and the flat descriptors say less than the one of cuArray3DCreate_v2. */
#define BYTES_OF(desc, depth, flags)                                                                                   \
    ((desc) == NULL ? 0                                                                                                \
                    : array_bytes(&(CUDA_ARRAY3D_DESCRIPTOR){.Width = (desc)->Width,                                   \
                                                             .Height = (desc)->Height,                                 \
                                                             .Depth = (depth),                                         \
                                                             .Format = (desc)->Format,                                 \
                                                             .NumChannels = (desc)->NumChannels,                       \
                                                             .Flags = (flags)},                                        \
                                  1))

CUresult cuArrayCreate(CUarray *array, const CUDA_ARRAY_DESCRIPTOR_v1 *desc) {
    VGPU_ENTER(cuArrayCreate, array, desc);
    KEPT(CUDA_ARRAY_DESCRIPTOR_v1, kept, desc);
    CREATE(VGPU_KIND_ARRAY, CUarray, array, BYTES_OF(kept, 0, 0), destroy_array, cuArrayCreate, kept);
}

CUresult cuArrayCreate_v2(CUarray *array, const CUDA_ARRAY_DESCRIPTOR *desc) {
    VGPU_ENTER(cuArrayCreate_v2, array, desc);
    KEPT(CUDA_ARRAY_DESCRIPTOR, kept, desc);
    CREATE(VGPU_KIND_ARRAY, CUarray, array, BYTES_OF(kept, 0, 0), destroy_array, cuArrayCreate_v2, kept);
}

CUresult cuArray3DCreate(CUarray *array, const CUDA_ARRAY3D_DESCRIPTOR_v1 *desc) {
    VGPU_ENTER(cuArray3DCreate, array, desc);
    KEPT(CUDA_ARRAY3D_DESCRIPTOR_v1, kept, desc);
    CREATE(VGPU_KIND_ARRAY, CUarray, array, BYTES_OF(kept, kept->Depth, kept->Flags), destroy_array, cuArray3DCreate,
           kept);
}

CUresult cuArray3DCreate_v2(CUarray *array, const CUDA_ARRAY3D_DESCRIPTOR *desc) {
    VGPU_ENTER(cuArray3DCreate_v2, array, desc);
    KEPT(CUDA_ARRAY3D_DESCRIPTOR, kept, desc);
    CREATE(VGPU_KIND_ARRAY, CUarray, array, array_bytes(kept, 1), destroy_array, cuArray3DCreate_v2, kept);
}

CUresult cuMipmappedArrayCreate(CUmipmappedArray *mipmap, const CUDA_ARRAY3D_DESCRIPTOR *desc, unsigned int levels) {
    VGPU_ENTER(cuMipmappedArrayCreate, mipmap, desc, levels);
    KEPT(CUDA_ARRAY3D_DESCRIPTOR, kept, desc);
    CREATE(VGPU_KIND_MIPMAP, CUmipmappedArray, mipmap, array_bytes(kept, levels), destroy_mipmap,
           cuMipmappedArrayCreate, kept, levels);
}
