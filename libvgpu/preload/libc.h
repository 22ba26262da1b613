/* SPDX-License-Identifier: Apache-2.0
 *
 * The C library's own dlsym, dlvsym and dlmopen, which this library interposes, its dlopen, and symbols of a driver's
 * library through them.
 *
 * They are found by walking the loaded objects' symbol tables: a reference to dlsym or dlvsym from here would bind to
 * our own, and a plain reference to dlopen would tie the library to the C library that it was built with (they moved
 * into libc.so.6 with version 2.34).
 */
#ifndef VGPU_PRELOAD_LIBC_H
#define VGPU_PRELOAD_LIBC_H

#include <stdbool.h>
#include <stddef.h>

typedef void *(*vgpu_dlsym_function)(void *handle, const char *name);
typedef void *(*vgpu_dlvsym_function)(void *handle, const char *name, const char *version);

vgpu_dlsym_function vgpu__libc_dlsym(void);
vgpu_dlvsym_function vgpu__libc_dlvsym(void);

/* Other functions of the C library that have moved between its parts; NULL if it lacks them. `found` keeps the answer.
 */
void *vgpu__libc_function(const char *name, void **found);

/* Has vgpu_now_ns and its like ask the C library and nobody in front of it (core/clock.h). */
void vgpu__libc_use_clock(void);

/* True if the object that an address lies in defines a function of this name by itself, and where that cannot be told.
 */
bool vgpu__libc_object_has(const void *address, const char *function);

/* The path that the loader opened this library by; NULL in a namespace of its own. */
const char *vgpu__libc_own_path(void);

/* A function of a driver's own library that was loaded before this one, and its length in bytes; NULL: there is none,
 * or it is a gate. Only while this library is constructed. */
void *vgpu__libc_in_front(const char *library, const char *function, size_t *size);

/* The library if it is loaded already (by its soname, whatever path it came from), NULL if not. */
void *vgpu__libc_loaded(const char *library);

/* A symbol of the driver's library (libcuda.so.1 or libnvidia-ml.so.1) that this process uses, loading that if none is
 * yet; NULL if there is none. */
void (*vgpu__libc_driver_symbol(const char *library, const char *symbol))(void);

#endif
