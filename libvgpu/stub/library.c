/* SPDX-License-Identifier: Apache-2.0 */
/* Libraries and their kernels. */
#include "module.h"

#include <stdlib.h>

/* A library is one module, loaded into the context that is current when it is loaded. What is behind its handles ends
 * with that context, and may come again as another's: then the turn is another. */
struct CUlib_st {
    CUmodule module;
    uint64_t turn;
    struct CUkern_st *kernels;
};

struct CUkern_st {
    enum handle_tag tag;
    CUlibrary library;
    CUfunction function;
    uint64_t turn;
    struct CUkern_st *next;
};

_Static_assert(sizeof(struct CUkern_st) <= sizeof(struct CUfunc_st), "their handles are one kind");

static CUmodule module_of(CUlibrary library) {
    return handle_lives(library) && handle_turn(library->module) == library->turn ? library->module : NULL;
}

CUresult stub_cuLibraryLoadData(CUlibrary *out, const void *code, CUjit_option *jit_options, void **jit_values,
                                unsigned jit_count, CUlibraryOption *options, void **values, unsigned count) {
    (void)jit_options, (void)jit_values, (void)jit_count, (void)options, (void)values, (void)count;
    CUcontext context;
    TRY(current_context(&context));
    REQUIRE(out && code, CUDA_ERROR_INVALID_VALUE);
    CUlibrary library = handle_take(HANDLE_LIBRARY, sizeof *library);
    REQUIRE(library, CUDA_ERROR_OUT_OF_MEMORY);
    CUresult result = module_load(context, code, &library->module);
    if (result != CUDA_SUCCESS) {
        handle_give(library);
        return result;
    }
    library->turn = handle_turn(library->module);
    *out = library;
    return CUDA_SUCCESS;
}

CUresult stub_cuLibraryLoadFromFile(CUlibrary *out, const char *path, CUjit_option *jit_options, void **jit_values,
                                    unsigned jit_count, CUlibraryOption *options, void **values, unsigned count) {
    char *text;
    TRY(image_read(path, &text));
    CUresult result = stub_cuLibraryLoadData(out, text, jit_options, jit_values, jit_count, options, values, count);
    free(text);
    return result;
}

CUresult stub_cuLibraryUnload(CUlibrary library) {
    REQUIRE(module_of(library), CUDA_ERROR_INVALID_HANDLE);
    TRY(stub_cuModuleUnload(library->module));
    while (library->kernels) {
        CUkernel kernel = library->kernels;
        library->kernels = kernel->next;
        handle_give(kernel);
    }
    handle_give(library);
    return CUDA_SUCCESS;
}

CUresult stub_cuLibraryGetKernel(CUkernel *out, CUlibrary library, const char *name) {
    REQUIRE(out && module_of(library), CUDA_ERROR_INVALID_VALUE);
    CUfunction function;
    TRY(module_find_function(library->module, name, &function));
    CUkernel kernel = library->kernels;
    while (kernel && kernel->function != function)
        kernel = kernel->next;
    if (!kernel) {
        kernel = handle_take(HANDLE_FUNCTION, sizeof *function);
        REQUIRE(kernel, CUDA_ERROR_OUT_OF_MEMORY);
        *kernel = (struct CUkern_st){TAG_KERNEL, library, function, handle_turn(function), library->kernels};
        library->kernels = kernel;
    }
    *out = kernel;
    return CUDA_SUCCESS;
}

CUresult stub_cuLibraryEnumerateKernels(CUkernel *kernels, unsigned count, CUlibrary library) {
    REQUIRE(kernels && module_of(library), CUDA_ERROR_INVALID_VALUE);
    for (CUfunction function = library->module->functions; function && count > 0; function = function->next, count--)
        TRY(stub_cuLibraryGetKernel(kernels++, library, function->name));
    return CUDA_SUCCESS;
}

CUresult stub_cuLibraryGetModule(CUmodule *module, CUlibrary library) {
    REQUIRE(module && module_of(library), CUDA_ERROR_INVALID_VALUE);
    *module = library->module;
    return CUDA_SUCCESS;
}

CUresult stub_cuLibraryGetGlobal(CUdeviceptr *dptr, size_t *bytes, CUlibrary library, const char *name) {
    REQUIRE(module_of(library), CUDA_ERROR_INVALID_HANDLE);
    return stub_cuModuleGetGlobal_v2(dptr, bytes, library->module, name);
}

CUresult stub_cuLibraryGetKernelCount(unsigned *count, CUlibrary library) {
    REQUIRE(module_of(library), CUDA_ERROR_INVALID_HANDLE);
    return stub_cuModuleGetFunctionCount(count, library->module);
}

CUresult stub_cuKernelGetFunction(CUfunction *function, CUkernel kernel) {
    REQUIRE(function, CUDA_ERROR_INVALID_VALUE);
    *function = function_of(kernel);
    return *function ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}

CUresult stub_cuKernelGetLibrary(CUlibrary *library, CUkernel kernel) {
    REQUIRE(library, CUDA_ERROR_INVALID_VALUE);
    REQUIRE(function_of(kernel), CUDA_ERROR_INVALID_HANDLE);
    *library = kernel->library;
    return CUDA_SUCCESS;
}

CUresult stub_cuKernelGetName(const char **name, CUkernel kernel) {
    REQUIRE(name, CUDA_ERROR_INVALID_VALUE);
    REQUIRE(function_of(kernel), CUDA_ERROR_INVALID_HANDLE);
    *name = kernel->function->name;
    return CUDA_SUCCESS;
}

/* The API lets a launch take a CUkernel where it takes a CUfunction: both begin with what they are. */
CUfunction function_of(const void *handle) {
    if (!handle_lives(handle))
        return NULL;
    if (*(const enum handle_tag *)handle == TAG_FUNCTION)
        return (CUfunction)handle;
    const struct CUkern_st *kernel = handle;
    return handle_turn(kernel->function) == kernel->turn ? kernel->function : NULL;
}

CUresult stub_cuKernelGetAttribute(int *value, CUfunction_attribute attribute, CUkernel kernel, CUdevice device) {
    (void)device;
    return stub_cuFuncGetAttribute(value, attribute, function_of(kernel));
}

CUresult stub_cuKernelSetAttribute(CUfunction_attribute attribute, int value, CUkernel kernel, CUdevice device) {
    (void)device;
    return stub_cuFuncSetAttribute(function_of(kernel), attribute, value);
}

CUresult stub_cuKernelSetCacheConfig(CUkernel kernel, int config, CUdevice device) {
    (void)config, (void)device;
    return function_of(kernel) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}
