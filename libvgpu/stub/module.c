/* SPDX-License-Identifier: Apache-2.0
 *
 * Modules and their functions. An image is PTX text (ptx.c), or a compiled one (ELF, fatbin), which is accepted without
 * being read: any kernel name is found in it.
 */
#include "module.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- Loading ---- */

static void module_free(CUmodule module) {
    while (module->variables) {
        struct variable *variable = module->variables;
        module->variables = variable->next;
        allocation_drop(variable->allocation);
        free(variable->name);
        free(variable);
    }
    while (module->functions) {
        CUfunction function = module->functions;
        module->functions = function->next;
        free(function->name);
        handle_give(function);
    }
    device_credit(module->context->device, module->charged);
    handle_give(module);
}

/* Byte by byte: the image may be a shorter text. */
static bool starts_with(const char *image, const unsigned char *magic) {
    return (unsigned char)image[0] == magic[0] && (unsigned char)image[1] == magic[1] &&
           (unsigned char)image[2] == magic[2] && (unsigned char)image[3] == magic[3];
}

static CUresult module_fill(CUmodule module, const char *image) {
    static const unsigned char elf[4] = {0x7f, 'E', 'L', 'F'};
    static const unsigned char fatbin[4] = {0x50, 0xed, 0x55, 0xba}, wrapper[4] = {0xb1, 0x43, 0x62, 0x46};
    if (starts_with(image, elf) || starts_with(image, fatbin) || starts_with(image, wrapper)) {
        module->opaque = true;
        return CUDA_SUCCESS;
    }
    return ptx_read(module, image);
}

CUresult module_charge(CUmodule module, uint64_t bytes) {
    REQUIRE(device_charge(module->context->device, bytes), CUDA_ERROR_OUT_OF_MEMORY);
    __atomic_fetch_add(&module->charged, bytes, __ATOMIC_RELAXED);
    return CUDA_SUCCESS;
}

CUresult module_load(CUcontext context, const char *image, CUmodule *out) {
    REQUIRE(image, CUDA_ERROR_INVALID_VALUE);
    uint64_t charge = context->device->card.shared->module_bytes;
    REQUIRE(device_charge(context->device, charge), CUDA_ERROR_OUT_OF_MEMORY);
    CUmodule module = handle_take(HANDLE_MODULE, sizeof *module);
    if (!module) {
        device_credit(context->device, charge);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    module->context = context;
    module->charged = charge;
    CUresult result = module_fill(module, image);
    if (result != CUDA_SUCCESS) {
        module_free(module);
        return result;
    }
    pthread_mutex_lock(&memory_lock);
    module->next = context->modules;
    context->modules = module;
    pthread_mutex_unlock(&memory_lock);
    *out = module;
    return CUDA_SUCCESS;
}

CUresult stub_cuModuleLoadData(CUmodule *module, const void *image) {
    CUcontext context;
    TRY(current_context(&context));
    REQUIRE(module, CUDA_ERROR_INVALID_VALUE);
    return module_load(context, image, module);
}

CUresult stub_cuModuleLoadDataEx(CUmodule *module, const void *image, unsigned count, CUjit_option *options,
                                 void **values) {
    REQUIRE(count == 0 || (options && values), CUDA_ERROR_INVALID_VALUE);
    if (calls_itself) {
        TRY(((cuModuleLoadData_fn)as_a_program_finds("cuModuleLoadData"))(module, image));
        return CUDA_SUCCESS;
    }
    return stub_cuModuleLoadData(module, image);
}

CUresult stub_cuModuleLoadFatBinary(CUmodule *module, const void *image) {
    return stub_cuModuleLoadData(module, image);
}

CUresult image_read(const char *path, char **text) {
    FILE *file = path ? fopen(path, "re") : NULL;
    REQUIRE(file, CUDA_ERROR_FILE_NOT_FOUND);
    size_t length = 0, room = 0;
    *text = NULL;
    do {
        room = room ? 2 * room : 65536;
        char *more = realloc(*text, room + 1);
        if (!more)
            break;
        *text = more;
        length += fread(*text + length, 1, room - length, file);
    } while (length == room);
    fclose(file);
    REQUIRE(*text, CUDA_ERROR_OUT_OF_MEMORY);
    (*text)[length] = 0;
    return CUDA_SUCCESS;
}

CUresult stub_cuModuleLoad(CUmodule *module, const char *path) {
    CUcontext context;
    char *text;
    TRY(current_context(&context));
    REQUIRE(module, CUDA_ERROR_INVALID_VALUE);
    TRY(image_read(path, &text));
    CUresult result = module_load(context, text, module);
    free(text);
    return result;
}

CUresult stub_cuModuleUnload(CUmodule module) {
    CUcontext context;
    TRY(current_context(&context));
    REQUIRE(handle_lives(module), CUDA_ERROR_INVALID_HANDLE);
    queue_wait_context(module->context);
    pthread_mutex_lock(&memory_lock);
    for (CUmodule *at = &module->context->modules; *at; at = &(*at)->next) {
        if (*at == module) {
            *at = module->next;
            break;
        }
    }
    pthread_mutex_unlock(&memory_lock);
    module_free(module);
    return CUDA_SUCCESS;
}

void modules_unload_all(CUcontext context) {
    /* The variables went with the context's allocations. */
    while (context->modules) {
        CUmodule module = context->modules;
        context->modules = module->next;
        module->variables = NULL;
        module_free(module);
    }
}

CUresult stub_cuModuleGetLoadingMode(int *mode) {
    REQUIRE(mode, CUDA_ERROR_INVALID_VALUE);
    *mode = 2; /* lazy */
    return CUDA_SUCCESS;
}

/* ---- What is in them ---- */

CUfunction module_add_function(CUmodule module, const char *name) {
    CUfunction function = handle_take(HANDLE_FUNCTION, sizeof *function);
    if (!function)
        return NULL;
    function->tag = TAG_FUNCTION;
    function->module = module;
    function->device = module->context->device;
    function->name = strdup(name);
    function->spins = strncmp(name, "spin", 4) == 0;
    function->instant = strncmp(name, "instant", 7) == 0;
    function->attributes[CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK] = 1024;
    function->attributes[CU_FUNC_ATTRIBUTE_NUM_REGS] = 32;
    function->attributes[CU_FUNC_ATTRIBUTE_PTX_VERSION] = 80;
    const struct stub_card *shared = module->context->device->card.shared;
    function->attributes[CU_FUNC_ATTRIBUTE_BINARY_VERSION] = shared->compute_major * 10 + shared->compute_minor;
    function->block[0] = function->block[1] = function->block[2] = 1;
    function->next = module->functions;
    module->functions = function;
    return function;
}

CUresult module_find_function(CUmodule module, const char *name, CUfunction *out) {
    REQUIRE(out && name, CUDA_ERROR_INVALID_VALUE);
    REQUIRE(handle_lives(module), CUDA_ERROR_INVALID_HANDLE);
    CUfunction function = module->functions;
    while (function && strcmp(function->name, name) != 0)
        function = function->next;
    if (!function && module->opaque)
        function = module_add_function(module, name);
    REQUIRE(function, CUDA_ERROR_NOT_FOUND);
    *out = function;
    return CUDA_SUCCESS;
}

CUresult stub_cuModuleGetFunction(CUfunction *function, CUmodule module, const char *name) {
    CUcontext context;
    TRY(current_context(&context));
    return module_find_function(module, name, function);
}

static unsigned count_functions(CUmodule module) {
    unsigned count = 0;
    for (CUfunction function = module->functions; function; function = function->next)
        count++;
    return count;
}

CUresult stub_cuModuleGetFunctionCount(unsigned *count, CUmodule module) {
    REQUIRE(count, CUDA_ERROR_INVALID_VALUE);
    REQUIRE(handle_lives(module), CUDA_ERROR_INVALID_HANDLE);
    *count = count_functions(module);
    return CUDA_SUCCESS;
}

CUresult stub_cuModuleGetGlobal_v2(CUdeviceptr *dptr, size_t *bytes, CUmodule module, const char *name) {
    REQUIRE(name && (dptr || bytes), CUDA_ERROR_INVALID_VALUE);
    REQUIRE(handle_lives(module), CUDA_ERROR_INVALID_HANDLE);
    for (struct variable *variable = module->variables; variable; variable = variable->next) {
        if (strcmp(variable->name, name) != 0)
            continue;
        if (dptr)
            *dptr = variable->allocation->base;
        if (bytes)
            *bytes = variable->allocation->size;
        return CUDA_SUCCESS;
    }
    return CUDA_ERROR_NOT_FOUND;
}

CUresult stub_cuModuleGetGlobal(CUdeviceptr_v1 *dptr, unsigned *bytes, CUmodule module, const char *name) {
    (void)dptr, (void)bytes, (void)module, (void)name;
    return CUDA_ERROR_NOT_SUPPORTED;
}
