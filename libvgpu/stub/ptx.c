/* SPDX-License-Identifier: Apache-2.0 */
/* What is read of an image in PTX: its .entry names are the kernels, its .global variables take device memory, its
 * .local ones that of threads. */
#define _GNU_SOURCE
#include "module.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

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

/* The bytes of the variables that each thread has for itself, between two places. */
static unsigned read_local(const char *at, const char *end) {
    size_t sum = 0, bytes;
    while ((at = find_directive(at, ".local")) && (!end || at < end)) {
        char *name = NULL;
        if (read_variable(skip_space(at), &name, &bytes))
            sum += bytes;
        free(name);
    }
    return (unsigned)sum;
}

static bool read_entries(CUmodule module, const char *text) {
    for (const char *at = text; (at = find_directive(at, ".entry"));) {
        char *name = copy_name(skip_space(at));
        CUfunction function = name ? module_add_function(module, name) : NULL;
        free(name);
        if (!function)
            return false;
        function->attributes[CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES] = read_local(at, find_directive(at, ".entry"));
    }
    return true;
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

CUresult ptx_read(CUmodule module, const char *image) {
    REQUIRE(find_directive(image, ".version"), CUDA_ERROR_INVALID_IMAGE);
    REQUIRE(find_directive(image, ".target"), CUDA_ERROR_INVALID_PTX);
    REQUIRE(read_entries(module, image), CUDA_ERROR_INVALID_PTX);
    return read_variables(module, image);
}
