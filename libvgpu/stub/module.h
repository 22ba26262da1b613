/* SPDX-License-Identifier: Apache-2.0
 *
 * The inside of a module, for module.c, ptx.c and library.c.
 */
#ifndef VGPU_STUB_MODULE_H
#define VGPU_STUB_MODULE_H

#include "driver.h"

struct variable {
    char *name;
    struct allocation *allocation;
    struct variable *next;
};

struct CUmod_st {
    CUcontext context;
    bool opaque; /* a compiled image */
    CUfunction functions;
    struct variable *variables;
    uint64_t charged;
    struct CUmod_st *next;
};

/* Adds what a text in PTX defines: kernels, and variables, which take device memory. */
CUresult ptx_read(CUmodule module, const char *image);
/* The whole of a file as a text, which the caller frees. */
CUresult image_read(const char *path, char **text);
CUresult module_load(CUcontext context, const char *image, CUmodule *module);
/* NULL: out of memory. */
CUfunction module_add_function(CUmodule module, const char *name);
CUresult module_find_function(CUmodule module, const char *name, CUfunction *function);

#endif
