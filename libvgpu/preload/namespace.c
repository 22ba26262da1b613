/* SPDX-License-Identifier: Apache-2.0
 *
 * dlmopen: a new namespace of the loader starts empty, so a driver that is loaded there would know no hooks. This
 * library goes in first: what an object of a namespace looks up is searched in the first one that was loaded there.
 */
#include "preload/libc.h"

#include <dlfcn.h>
#include <link.h>
#include <stddef.h>

typedef void *(*dlmopen_function)(Lmid_t space, const char *file, int flags);
typedef int (*dlinfo_function)(void *handle, int request, void *answer);

__attribute__((visibility("default"))) void *dlmopen(Lmid_t space, const char *file, int flags) {
    static void *open_found, *info_found;
    dlmopen_function open_function = (dlmopen_function)vgpu__libc_function("dlmopen", &open_found);
    dlinfo_function info = (dlinfo_function)vgpu__libc_function("dlinfo", &info_found);
    const char *own_path = vgpu__libc_own_path();
    if (open_function == NULL)
        return NULL;
    if (space == LM_ID_NEWLM) {
        void *own = own_path != NULL ? open_function(LM_ID_NEWLM, own_path, RTLD_NOW) : NULL;
        if (own == NULL || info == NULL || info(own, RTLD_DI_LMID, &space) != 0)
            return NULL;
    }
    return open_function(space, file, flags);
}
