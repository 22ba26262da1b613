/* SPDX-License-Identifier: Apache-2.0 */
/* The linker API: it takes one PTX text and gives it back as the linked image. */
#include "driver.h"

#include <stdlib.h>
#include <string.h>

struct CUlinkState_st {
    char *image;
    size_t size;
};

CUresult stub_cuLinkCreate_v2(unsigned count, CUjit_option *options, void **values, CUlinkState *state) {
    CUcontext context;
    TRY(current_context(&context));
    REQUIRE(state && (count == 0 || (options && values)), CUDA_ERROR_INVALID_VALUE);
    *state = handle_take(HANDLE_LINK, sizeof **state);
    return *state ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

CUresult stub_cuLinkAddData_v2(CUlinkState state, CUjitInputType type, void *data, size_t size, const char *name,
                               unsigned count, CUjit_option *options, void **values) {
    (void)type, (void)name, (void)count, (void)options, (void)values;
    REQUIRE(handle_lives(state) && data && size, CUDA_ERROR_INVALID_VALUE);
    char *more = realloc(state->image, state->size + size + 1);
    REQUIRE(more, CUDA_ERROR_OUT_OF_MEMORY);
    memcpy(more + state->size, data, size);
    state->image = more;
    state->size += size;
    while (state->size > 0 && state->image[state->size - 1] == 0)
        state->size--; /* texts come with their zero */
    state->image[state->size] = 0;
    return CUDA_SUCCESS;
}

CUresult stub_cuLinkComplete(CUlinkState state, void **image, size_t *size) {
    REQUIRE(handle_lives(state) && state->image && image, CUDA_ERROR_INVALID_VALUE);
    *image = state->image;
    if (size)
        *size = state->size + 1;
    return CUDA_SUCCESS;
}

CUresult stub_cuLinkDestroy(CUlinkState state) {
    REQUIRE(handle_lives(state), CUDA_ERROR_INVALID_HANDLE);
    free(state->image);
    handle_give(state);
    return CUDA_SUCCESS;
}
