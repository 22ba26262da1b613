/* SPDX-License-Identifier: Apache-2.0
 *
 * A name that we hook never leads to the driver's own function, from whatever handle it is asked: but only where the
 * real look-up would have found something, so that "this driver has no such function" stays true.
 */
#include "preload/choose.h"

#include "cuda/real.h"
#include "gate/gate.h"
#include "nvml/real.h"
#include "preload/libc.h"

#include <dlfcn.h>
#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <string.h>

void *vgpu__real_dlsym;
void *vgpu__real_dlvsym;

static const char *library_of(const char *name) {
    if (name[0] == 'c' && name[1] == 'u')
        return "libcuda.so.1";
    return name[0] == 'n' && name[1] == 'v' && name[2] == 'm' && name[3] == 'l' ? "libnvidia-ml.so.1" : NULL;
}

static void *hook_of(const char *name) {
    return name[0] == 'c' ? (void *)vgpu__cuda_hook_by_name(name) : (void *)vgpu__nvml_hook_by_name(name);
}

static bool is_pseudo(void *handle) {
    return handle == RTLD_DEFAULT || handle == RTLD_NEXT;
}

static void *find(void *handle, const char *name, const char *version) {
    void *where = is_pseudo(handle) ? RTLD_NEXT : handle; /* NEXT of this library: behind us */
    return version != NULL ? vgpu__libc_dlvsym()(where, name, version) : vgpu__libc_dlsym()(where, name);
}

/* The pseudo handles find our own export first: what counts is whether there is a driver behind it. (Where there is
 * none, RTLD_DEFAULT still finds our export; calling that says "not supported".) */
static bool exists(void *handle, const char *name, const char *version, const char *library) {
    return (is_pseudo(handle) && vgpu__libc_loaded(library) != NULL) || find(handle, name, version) != NULL;
}

/* The gate has each function that we know, and an older driver has not: programs look which versions there are, and
 * call the newest. */
static bool is_the_gates_alone(void *handle, const char *name, const char *version, const char *library) {
    return vgpu__gate_is_open(library) && vgpu__gate_has(library, find(handle, name, version)) &&
           vgpu__libc_driver_symbol(library, name) == NULL;
}

/* Names that do not concern us are told by their first letters, without calling anything: this may be somebody's very
 * first dlsym, with nothing of the process set up yet. */
static void *choose(void *handle, const char *name, const char *version) {
    if (name == NULL)
        return NULL;
    if (name[0] == 'd' && name[1] == 'l' && strcmp(name, "dlsym") == 0)
        return (void *)dlsym;
    if (name[0] == 'd' && name[1] == 'l' && strcmp(name, "dlvsym") == 0)
        return (void *)dlvsym;
    if (name[0] == 'd' && name[1] == 'l' && strcmp(name, "dlmopen") == 0)
        return (void *)dlmopen;
    const char *library = library_of(name);
    if (library == NULL)
        return NULL;
    void *hook = hook_of(name);
    if (hook != NULL && !exists(handle, name, version, library))
        return NULL;
    return is_the_gates_alone(handle, name, version, library) ? VGPU_NOTHING : hook;
}

void *vgpu__choose_dlsym(void *handle, const char *name) {
    int saved = errno;
    if (vgpu__real_dlsym == NULL)
        vgpu__real_dlsym = (void *)vgpu__libc_dlsym();
    void *hook = choose(handle, name, NULL);
    errno = saved;
    return hook;
}

void *vgpu__choose_dlvsym(void *handle, const char *name, const char *version) {
    int saved = errno;
    if (vgpu__real_dlvsym == NULL)
        vgpu__real_dlvsym = (void *)vgpu__libc_dlvsym();
    void *hook = choose(handle, name, version);
    errno = saved;
    return hook;
}
