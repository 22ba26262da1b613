/* SPDX-License-Identifier: Apache-2.0
 *
 * Modules, libraries, functions. An image is PTX text: its .entry names are the kernels, its .global variables take
 * device memory. Compiled images (ELF, fatbin) are accepted without being read: any kernel name is found in them.
 */
#define _GNU_SOURCE
#include "driver.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct variable {
    char *name;
    struct allocation *allocation;
    struct variable *next;
};

struct CUmod_st {
    CUcontext context;
    bool opaque; /* a compiled image */
    bool gone;
    CUfunction functions;
    struct variable *variables;
    uint64_t charged;
    struct CUmod_st *next;
};

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

/* ---- PTX ---- */

static const char *skip_space(const char *at) {
    while (isspace((unsigned char)*at))
        at++;
    return at;
}

static bool name_char(char c) {
    return isalnum((unsigned char)c) || c == '_' || c == '$' || c == '%';
}

/* The next place of a directive (".entry") as a word of its own. */
static const char *find_directive(const char *text, const char *directive) {
    size_t length = strlen(directive);
    for (const char *at = text; (at = strstr(at, directive)); at += length)
        if (!name_char(at[length]) && (at == text || !name_char(at[-1])))
            return at + length;
    return NULL;
}

static char *copy_name(const char *at) {
    size_t length = 0;
    while (name_char(at[length]))
        length++;
    return length ? strndup(at, length) : NULL;
}

static CUfunction add_function(CUmodule module, const char *name) {
    CUfunction function = calloc(1, sizeof *function);
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

static bool read_entries(CUmodule module, const char *text) {
    for (const char *at = text; (at = find_directive(at, ".entry"));) {
        char *name = copy_name(skip_space(at));
        if (!name || !add_function(module, name)) {
            free(name);
            return false;
        }
        free(name);
    }
    return true;
}

/* ".global .align 8 .b8 table[4096];" and ".global .u32 counter;": name and bytes. */
static bool read_variable(const char *at, char **name, size_t *bytes) {
    static const struct {
        const char *type;
        size_t bytes;
    } types[] = {{".b8", 1},  {".u8", 1},  {".s8", 1},  {".b16", 2}, {".u16", 2}, {".s16", 2}, {".f16", 2}, {".b32", 4},
                 {".u32", 4}, {".s32", 4}, {".f32", 4}, {".b64", 8}, {".u64", 8}, {".s64", 8}, {".f64", 8}};
    size_t element = 0;
    at = skip_space(at);
    while (*at == '.' || isdigit((unsigned char)*at)) {
        size_t length = 1;
        while (name_char(at[length]))
            length++;
        for (size_t i = 0; i < sizeof types / sizeof *types; i++)
            if (strlen(types[i].type) == length && strncmp(types[i].type, at, length) == 0)
                element = types[i].bytes;
        at = skip_space(at + length);
    }
    *name = copy_name(at);
    if (!*name)
        return false;
    at = skip_space(at + strlen(*name));
    *bytes = element * (*at == '[' ? strtoull(at + 1, NULL, 0) : 1);
    return *bytes > 0;
}

static CUresult read_variables(CUmodule module, const char *text) {
    for (const char *at = text; (at = find_directive(at, ".global"));) {
        char *name = NULL;
        size_t bytes;
        const char *line = skip_space(at);
        if (*line != '.' || !read_variable(line, &name, &bytes)) {
            free(name);
            continue;
        }
        struct variable *variable = calloc(1, sizeof *variable);
        CUresult result = variable
                              ? allocation_make(ALLOCATION_ARRAY, module->context, bytes, bytes, &variable->allocation)
                              : CUDA_ERROR_OUT_OF_MEMORY;
        if (result != CUDA_SUCCESS) {
            free(name);
            free(variable);
            return result;
        }
        variable->name = name;
        variable->next = module->variables;
        module->variables = variable;
    }
    return CUDA_SUCCESS;
}

/* ---- Loading ---- */

static void module_free(CUmodule module) {
    while (module->variables) {
        struct variable *variable = module->variables;
        module->variables = variable->next;
        allocation_drop(variable->allocation);
        free(variable->name);
        free(variable);
    }
    device_credit(module->context->device, module->charged);
    module->charged = 0;
    module->gone = true; /* kept: functions of it may still be in somebody's hands */
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
    REQUIRE(find_directive(image, ".version"), CUDA_ERROR_INVALID_IMAGE);
    REQUIRE(find_directive(image, ".target"), CUDA_ERROR_INVALID_PTX);
    REQUIRE(read_entries(module, image), CUDA_ERROR_INVALID_PTX);
    return read_variables(module, image);
}

CUresult module_charge(CUmodule module, uint64_t bytes) {
    REQUIRE(device_charge(module->context->device, bytes), CUDA_ERROR_OUT_OF_MEMORY);
    __atomic_fetch_add(&module->charged, bytes, __ATOMIC_RELAXED);
    return CUDA_SUCCESS;
}

static CUresult module_load(CUcontext context, const char *image, CUmodule *out) {
    REQUIRE(image, CUDA_ERROR_INVALID_VALUE);
    uint64_t charge = context->device->card.shared->module_bytes;
    REQUIRE(device_charge(context->device, charge), CUDA_ERROR_OUT_OF_MEMORY);
    CUmodule module = calloc(1, sizeof *module);
    if (!module) {
        device_credit(context->device, charge);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    module->context = context;
    module->charged = charge;
    CUresult result = module_fill(module, image);
    if (result != CUDA_SUCCESS) {
        module_free(module);
        free(module);
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

static CUresult read_file(const char *path, char **text) {
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
    TRY(read_file(path, &text));
    CUresult result = module_load(context, text, module);
    free(text);
    return result;
}

CUresult stub_cuModuleUnload(CUmodule module) {
    CUcontext context;
    TRY(current_context(&context));
    REQUIRE(module && !module->gone, CUDA_ERROR_INVALID_HANDLE);
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
    for (CUmodule module = context->modules; module; module = module->next) {
        module->variables = NULL;
        module_free(module);
    }
    context->modules = NULL;
}

CUresult stub_cuModuleGetLoadingMode(int *mode) {
    REQUIRE(mode, CUDA_ERROR_INVALID_VALUE);
    *mode = 2; /* lazy */
    return CUDA_SUCCESS;
}

/* ---- What is in them ---- */

static CUresult find_function(CUmodule module, const char *name, CUfunction *out) {
    REQUIRE(out && name, CUDA_ERROR_INVALID_VALUE);
    REQUIRE(module && !module->gone, CUDA_ERROR_INVALID_HANDLE);
    CUfunction function = module->functions;
    while (function && strcmp(function->name, name) != 0)
        function = function->next;
    if (!function && module->opaque)
        function = add_function(module, name);
    REQUIRE(function, CUDA_ERROR_NOT_FOUND);
    *out = function;
    return CUDA_SUCCESS;
}

CUresult stub_cuModuleGetFunction(CUfunction *function, CUmodule module, const char *name) {
    CUcontext context;
    TRY(current_context(&context));
    return find_function(module, name, function);
}

static unsigned count_functions(CUmodule module) {
    unsigned count = 0;
    for (CUfunction function = module->functions; function; function = function->next)
        count++;
    return count;
}

CUresult stub_cuModuleGetFunctionCount(unsigned *count, CUmodule module) {
    REQUIRE(count, CUDA_ERROR_INVALID_VALUE);
    REQUIRE(module && !module->gone, CUDA_ERROR_INVALID_HANDLE);
    *count = count_functions(module);
    return CUDA_SUCCESS;
}

CUresult stub_cuModuleGetGlobal_v2(CUdeviceptr *dptr, size_t *bytes, CUmodule module, const char *name) {
    REQUIRE(name && (dptr || bytes), CUDA_ERROR_INVALID_VALUE);
    REQUIRE(module && !module->gone, CUDA_ERROR_INVALID_HANDLE);
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

/* ---- Libraries ---- */

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
    TRY(read_file(path, &text));
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
    TRY(find_function(library->module, name, &function));
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
