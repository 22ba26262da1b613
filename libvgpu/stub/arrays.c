/* SPDX-License-Identifier: Apache-2.0 */
/* CUDA arrays and mipmapped arrays: device memory behind an opaque handle. They take the bytes of their elements, in
 * whole tiles. */
#include "work.h"

bool array_lives(CUarray array) {
    return array && handle_lives(array->mipmap ? (void *)array->mipmap : array);
}

struct CUmipmappedArray_st {
    struct allocation *allocation;
    CUDA_ARRAY3D_DESCRIPTOR desc;
    unsigned count;
    struct CUarray_st levels[32];
};

static size_t format_bytes(CUarray_format format) {
    switch (format) {
    case CU_AD_FORMAT_UNSIGNED_INT8:
    case CU_AD_FORMAT_SIGNED_INT8:
        return 1;
    case CU_AD_FORMAT_UNSIGNED_INT16:
    case CU_AD_FORMAT_SIGNED_INT16:
    case CU_AD_FORMAT_HALF:
        return 2;
    case CU_AD_FORMAT_UNSIGNED_INT32:
    case CU_AD_FORMAT_SIGNED_INT32:
    case CU_AD_FORMAT_FLOAT:
        return 4;
    default:
        return 0;
    }
}

/* Works out rows and bytes; the array has no memory yet. */
static CUresult describe(CUarray array, const CUDA_ARRAY3D_DESCRIPTOR *desc, size_t *bytes) {
    REQUIRE(desc && desc->Width && format_bytes(desc->Format), CUDA_ERROR_INVALID_VALUE);
    REQUIRE(desc->NumChannels == 1 || desc->NumChannels == 2 || desc->NumChannels == 4, CUDA_ERROR_INVALID_VALUE);
    REQUIRE(!(desc->Flags & CUDA_ARRAY3D_SPARSE), CUDA_ERROR_NOT_SUPPORTED);
    array->desc = *desc;
    array->element_bytes = format_bytes(desc->Format) * desc->NumChannels;
    array->pitch = desc->Width * array->element_bytes;
    *bytes = array->pitch * (desc->Height ? desc->Height : 1) * (desc->Depth ? desc->Depth : 1);
    return CUDA_SUCCESS;
}

static uint64_t tiled(CUcontext context, uint64_t bytes) {
    uint64_t tile = context->device->card.shared->array_tile_bytes;
    return tile > 1 ? (bytes + tile - 1) / tile * tile : bytes;
}

CUresult stub_cuArray3DCreate_v2(CUarray *out, const CUDA_ARRAY3D_DESCRIPTOR *desc) {
    CUcontext context;
    struct CUarray_st array = {0};
    size_t bytes;
    TRY(current_context(&context));
    REQUIRE(out, CUDA_ERROR_INVALID_VALUE);
    TRY(describe(&array, desc, &bytes));
    TRY(allocation_make(ALLOCATION_ARRAY, context, bytes, tiled(context, bytes), &array.allocation));
    *out = handle_take(HANDLE_ARRAY, sizeof **out);
    if (!*out) {
        allocation_drop(array.allocation);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    array.context = context;
    array.allocation->array = *out;
    **out = array;
    return CUDA_SUCCESS;
}

CUresult stub_cuArrayCreate_v2(CUarray *out, const CUDA_ARRAY_DESCRIPTOR *desc) {
    REQUIRE(desc, CUDA_ERROR_INVALID_VALUE);
    CUDA_ARRAY3D_DESCRIPTOR wide = {desc->Width, desc->Height, 0, desc->Format, desc->NumChannels, 0};
    return stub_cuArray3DCreate_v2(out, &wide);
}

/* The calls of CUDA 2 differ in the width of their numbers only. */
CUresult stub_cuArrayCreate(CUarray *out, const CUDA_ARRAY_DESCRIPTOR_v1 *desc) {
    REQUIRE(desc, CUDA_ERROR_INVALID_VALUE);
    CUDA_ARRAY3D_DESCRIPTOR wide = {desc->Width, desc->Height, 0, desc->Format, desc->NumChannels, 0};
    return stub_cuArray3DCreate_v2(out, &wide);
}

CUresult stub_cuArray3DCreate(CUarray *out, const CUDA_ARRAY3D_DESCRIPTOR_v1 *desc) {
    REQUIRE(desc, CUDA_ERROR_INVALID_VALUE);
    CUDA_ARRAY3D_DESCRIPTOR wide = {desc->Width,  desc->Height,      desc->Depth,
                                    desc->Format, desc->NumChannels, desc->Flags};
    return stub_cuArray3DCreate_v2(out, &wide);
}

CUresult stub_cuArray3DGetDescriptor_v2(CUDA_ARRAY3D_DESCRIPTOR *desc, CUarray array) {
    REQUIRE(desc, CUDA_ERROR_INVALID_VALUE);
    REQUIRE(array_lives(array), CUDA_ERROR_INVALID_HANDLE);
    *desc = array->desc;
    return CUDA_SUCCESS;
}

CUresult stub_cuArrayGetDescriptor_v2(CUDA_ARRAY_DESCRIPTOR *desc, CUarray array) {
    REQUIRE(desc, CUDA_ERROR_INVALID_VALUE);
    REQUIRE(array_lives(array), CUDA_ERROR_INVALID_HANDLE);
    *desc = (CUDA_ARRAY_DESCRIPTOR){array->desc.Width, array->desc.Height, array->desc.Format, array->desc.NumChannels};
    return CUDA_SUCCESS;
}

CUresult stub_cuArrayGetMemoryRequirements(CUDA_ARRAY_MEMORY_REQUIREMENTS *needs, CUarray array, CUdevice device) {
    (void)device;
    REQUIRE(needs, CUDA_ERROR_INVALID_VALUE);
    REQUIRE(array_lives(array), CUDA_ERROR_INVALID_HANDLE);
    *needs = (CUDA_ARRAY_MEMORY_REQUIREMENTS){.size = array->allocation->size, .alignment = PITCH_ALIGNMENT};
    return CUDA_SUCCESS;
}

CUresult stub_cuArrayDestroy(CUarray array) {
    REQUIRE(driver.ready, CUDA_ERROR_NOT_INITIALIZED);
    REQUIRE(array_lives(array) && !array->mipmap, CUDA_ERROR_INVALID_HANDLE);
    queue_wait_context(array->context);
    allocation_drop(array->allocation);
    handle_give(array);
    return CUDA_SUCCESS;
}

/* ---- Mipmaps ---- */

static size_t half(size_t extent) {
    return extent > 1 ? extent / 2 : extent;
}

CUresult stub_cuMipmappedArrayCreate(CUmipmappedArray *out, const CUDA_ARRAY3D_DESCRIPTOR *desc, unsigned levels) {
    CUcontext context;
    TRY(current_context(&context));
    REQUIRE(out && desc && levels > 0 && levels <= 32, CUDA_ERROR_INVALID_VALUE);
    CUmipmappedArray mipmap = handle_take(HANDLE_MIPMAP, sizeof *mipmap);
    REQUIRE(mipmap, CUDA_ERROR_OUT_OF_MEMORY);
    CUDA_ARRAY3D_DESCRIPTOR level = mipmap->desc = *desc;
    CUresult result = CUDA_SUCCESS;
    size_t total = 0, bytes;
    for (unsigned i = 0; i < levels && result == CUDA_SUCCESS; i++) {
        mipmap->levels[i].offset = total;
        mipmap->levels[i].mipmap = mipmap;
        mipmap->levels[i].context = context;
        result = describe(&mipmap->levels[i], &level, &bytes);
        total += bytes;
        mipmap->count++;
        if (level.Width == 1 && level.Height <= 1 && level.Depth <= 1)
            break; /* as far as halving goes */
        level.Width = half(level.Width);
        level.Height = half(level.Height);
        if (!(desc->Flags & CUDA_ARRAY3D_LAYERED))
            level.Depth = half(level.Depth);
    }
    if (result == CUDA_SUCCESS)
        result = allocation_make(ALLOCATION_ARRAY, context, total, tiled(context, total), &mipmap->allocation);
    if (result != CUDA_SUCCESS) {
        handle_give(mipmap);
        return result;
    }
    for (unsigned i = 0; i < mipmap->count; i++)
        mipmap->levels[i].allocation = mipmap->allocation;
    mipmap->allocation->array = mipmap;
    *out = mipmap;
    return CUDA_SUCCESS;
}

CUresult stub_cuMipmappedArrayGetLevel(CUarray *array, CUmipmappedArray mipmap, unsigned level) {
    REQUIRE(array, CUDA_ERROR_INVALID_VALUE);
    REQUIRE(handle_lives(mipmap), CUDA_ERROR_INVALID_HANDLE);
    REQUIRE(level < mipmap->count, CUDA_ERROR_INVALID_VALUE);
    *array = &mipmap->levels[level];
    return CUDA_SUCCESS;
}

CUresult stub_cuMipmappedArrayGetMemoryRequirements(CUDA_ARRAY_MEMORY_REQUIREMENTS *needs, CUmipmappedArray mipmap,
                                                    CUdevice device) {
    REQUIRE(handle_lives(mipmap), CUDA_ERROR_INVALID_HANDLE);
    return stub_cuArrayGetMemoryRequirements(needs, &mipmap->levels[0], device);
}

CUresult stub_cuMipmappedArrayDestroy(CUmipmappedArray mipmap) {
    REQUIRE(driver.ready, CUDA_ERROR_NOT_INITIALIZED);
    REQUIRE(handle_lives(mipmap), CUDA_ERROR_INVALID_HANDLE);
    queue_wait_context(mipmap->levels[0].context);
    allocation_drop(mipmap->allocation);
    handle_give(mipmap);
    return CUDA_SUCCESS;
}
