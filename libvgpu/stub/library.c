/* SPDX-License-Identifier: Apache-2.0 */
/* Libraries and their kernels. */
#include "module.h"

#include <stdlib.h>

/* A library is one module, loaded into the context that is current when it is loaded. */
struct CUlib_st {
    CUmodule module;
    struct CUkern_st *kernels;
};

struct CUkern_st {
    enum handle_tag tag;
    CUlibrary library;
    CUfunction function;
    char *name;
    struct CUkern_st *next;
};

CUresult stub_cuLibraryLoadData(CUlibrary *out, const void *code, CUjit_option *jit_options, void **jit_values,
                                unsigned jit_count, CUlibraryOption *options, void **values, unsigned count) {
    (void)jit_options, (void)jit_values, (void)jit_count, (void)options, (void)values, (void)count;
    CUcontext context;
    TRY(current_context(&context));
    REQUIRE(out && code, CUDA_ERROR_INVALID_VALUE);
    CUlibrary library = calloc(1, sizeof *library);
    REQUIRE(library, CUDA_ERROR_OUT_OF_MEMORY);
    CUresult result = module_load(context, code, &library->module);
    if (result != CUDA_SUCCESS) {
        free(library);
        return result;
    }
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
    REQUIRE(library && !library->module->gone, CUDA_ERROR_INVALID_HANDLE);
    return stub_cuModuleUnload(library->module);
}

CUresult stub_cuLibraryGetKernel(CUkernel *out, CUlibrary library, const char *name) {
    REQUIRE(out && library, CUDA_ERROR_INVALID_VALUE);
    CUfunction function;
    TRY(module_find_function(library->module, name, &function));
    CUkernel kernel = library->kernels;
    while (kernel && kernel->function != function)
        kernel = kernel->next;
    if (!kernel) {
        kernel = calloc(1, sizeof *kernel);
        REQUIRE(kernel, CUDA_ERROR_OUT_OF_MEMORY);
        *kernel = (struct CUkern_st){TAG_KERNEL, library, function, function->name, library->kernels};
        library->kernels = kernel;
    }
    *out = kernel;
    return CUDA_SUCCESS;
}

CUresult stub_cuLibraryEnumerateKernels(CUkernel *kernels, unsigned count, CUlibrary library) {
    REQUIRE(kernels && library, CUDA_ERROR_INVALID_VALUE);
    for (CUfunction function = library->module->functions; function && count > 0; function = function->next, count--)
        TRY(stub_cuLibraryGetKernel(kernels++, library, function->name));
    return CUDA_SUCCESS;
}

CUresult stub_cuLibraryGetModule(CUmodule *module, CUlibrary library) {
    REQUIRE(module && library, CUDA_ERROR_INVALID_VALUE);
    *module = library->module;
    return CUDA_SUCCESS;
}

CUresult stub_cuLibraryGetGlobal(CUdeviceptr *dptr, size_t *bytes, CUlibrary library, const char *name) {
    REQUIRE(library, CUDA_ERROR_INVALID_HANDLE);
    return stub_cuModuleGetGlobal_v2(dptr, bytes, library->module, name);
}

CUresult stub_cuLibraryGetKernelCount(unsigned *count, CUlibrary library) {
    REQUIRE(library, CUDA_ERROR_INVALID_HANDLE);
    return stub_cuModuleGetFunctionCount(count, library->module);
}

CUresult stub_cuKernelGetFunction(CUfunction *function, CUkernel kernel) {
    REQUIRE(function, CUDA_ERROR_INVALID_VALUE);
    REQUIRE(kernel, CUDA_ERROR_INVALID_HANDLE);
    *function = kernel->function;
    return CUDA_SUCCESS;
}

CUresult stub_cuKernelGetLibrary(CUlibrary *library, CUkernel kernel) {
    REQUIRE(library, CUDA_ERROR_INVALID_VALUE);
    REQUIRE(kernel, CUDA_ERROR_INVALID_HANDLE);
    *library = kernel->library;
    return CUDA_SUCCESS;
}

CUresult stub_cuKernelGetName(const char **name, CUkernel kernel) {
    REQUIRE(name, CUDA_ERROR_INVALID_VALUE);
    REQUIRE(kernel, CUDA_ERROR_INVALID_HANDLE);
    *name = kernel->name;
    return CUDA_SUCCESS;
}

/* The API lets a launch take a CUkernel where it takes a CUfunction: both begin with what they are. */
CUfunction function_of(const void *handle) {
    if (!handle)
        return NULL;
    const enum handle_tag *tag = handle;
    if (*tag == TAG_KERNEL)
        return ((const struct CUkern_st *)handle)->function;
    return *tag == TAG_FUNCTION ? (CUfunction)handle : NULL;
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
    return kernel ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}
