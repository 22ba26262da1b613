/* SPDX-License-Identifier: Apache-2.0
 *
 * dlmopen: a new namespace of the loader starts empty, so a driver that is loaded there would know no hooks. Where one
 * is, this library goes in first: what an object of a namespace looks up is searched in the first one that was loaded
 * there. Other namespaces are left alone: each copy of this library takes of the little room that the loader has for
 * thread-local variables of libraries that come late, and does not give it back. A driver that is opened in one of them
 * later is the gate's matter (libvgpu/gate).
 */
#include "preload/libc.h"

#include <dlfcn.h>
#include <link.h>
#include <stdbool.h>
#include <stddef.h>
#include <string.h>

typedef void *(*dlmopen_function)(Lmid_t space, const char *file, int flags);
typedef int (*dlclose_function)(void *handle);
typedef int (*dlinfo_function)(void *handle, int request, void *answer);

static dlmopen_function open_really;
static dlclose_function close_really;
static dlinfo_function ask;

static bool find_functions(void) {
    static void *open_found, *close_found, *ask_found;
    open_really = (dlmopen_function)vgpu__libc_function("dlmopen", &open_found);
    close_really = (dlclose_function)vgpu__libc_function("dlclose", &close_found);
    ask = (dlinfo_function)vgpu__libc_function("dlinfo", &ask_found);
    return open_really != NULL && close_really != NULL && ask != NULL;
}

/* Is a driver among the objects of a namespace that nobody else knows yet? */
static bool has_driver(void *handle) {
    struct link_map *object = NULL;
    if (ask(handle, RTLD_DI_LINKMAP, &object) != 0)
        return true; /* who knows */
    while (object->l_prev != NULL)
        object = object->l_prev;
    for (; object != NULL; object = object->l_next)
        if (strstr(object->l_name, "/libcuda.so") != NULL || strstr(object->l_name, "/libnvidia-ml.so") != NULL)
            return true;
    return false;
}

static void *open_behind_us(const char *file, int flags) {
    Lmid_t space;
    const char *path = vgpu__libc_own_path();
    void *own = path != NULL ? open_really(LM_ID_NEWLM, path, RTLD_NOW) : NULL;
    if (own == NULL || ask(own, RTLD_DI_LMID, &space) != 0)
        return NULL;
    return open_really(space, file, flags);
}

__attribute__((visibility("default"))) void *dlmopen(Lmid_t space, const char *file, int flags) {
    if (!find_functions())
        return NULL;
    void *handle = open_really(space, file, flags);
    if (handle == NULL || space != LM_ID_NEWLM || !has_driver(handle))
        return handle;
    close_really(handle);
    return open_behind_us(file, flags);
}
