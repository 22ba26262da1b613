/* SPDX-License-Identifier: Apache-2.0
 *
 * A name that we hook never leads to the driver's own function, from whatever handle it is asked: but only where there
 * is a function behind it, so that "there is no such function" stays true. A function of the driver's that may take
 * memory and that we do not know is answered by one that refuses; an application's own function of such a name is its
 * own.
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

static void *refusal_of(const char *name) {
    return name[0] == 'c' ? (void *)vgpu__cuda_refusal(name) : NULL;
}

static bool is_pseudo(void *handle) {
    return handle == RTLD_DEFAULT || handle == RTLD_NEXT;
}

/* From here RTLD_NEXT means: behind this library. */
static void *look_up(void *handle, const char *name, const char *version) {
    return version != NULL ? vgpu__libc_dlvsym()(handle, name, version) : vgpu__libc_dlsym()(handle, name);
}

/* What a look-up leads to, but for our own exports, which those in all libraries find first. */
static void *find(void *handle, const char *name, const char *version, const char *library, void *hook) {
    void *found = is_pseudo(handle) ? hook : look_up(handle, name, version);
    if (found != hook || (found == NULL && !is_pseudo(handle)))
        return found;
    void *driver = vgpu__libc_loaded(library);
    found = driver != NULL ? look_up(driver, name, version) : NULL;
    return found != NULL ? found : look_up(RTLD_NEXT, name, version);
}

/* Nobody has it but us: then it is looked up where it is not, which says so in the words of the C library. */
static bool is_ours_alone(void *handle, const char *name, const char *version, void *hook) {
    void *elsewhere = vgpu__libc_loaded("libc.so.6");
    return elsewhere != NULL && look_up(is_pseudo(handle) ? RTLD_DEFAULT : handle, name, version) == hook &&
           look_up(elsewhere, name, version) == NULL;
}

/* The gate has each function that we know, and an older driver has not: programs look which versions there are, and
 * call the newest. */
static bool is_the_gates_alone(const char *library, const char *name, void *found) {
    return vgpu__gate_has(library, found) && vgpu__libc_driver_symbol(library, name) == NULL;
}

static void *choose_of(void *handle, const char *name, const char *version, const char *library) {
    void *hook = hook_of(name), *refusal = hook == NULL ? refusal_of(name) : NULL;
    if (hook == NULL && refusal == NULL && !vgpu__gate_is_open(library))
        return NULL;
    void *found = find(handle, name, version, library, hook);
    if (found == NULL)
        return hook != NULL && is_ours_alone(handle, name, version, hook) ? VGPU_NOTHING : NULL;
    if (is_the_gates_alone(library, name, found))
        return VGPU_NOTHING;
    /* An object is a driver, under whatever name it was opened, if it has a cuInit of its own. */
    return refusal != NULL && vgpu__libc_object_has(found, "cuInit") ? refusal : hook;
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
    return library != NULL ? choose_of(handle, name, version, library) : NULL;
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
