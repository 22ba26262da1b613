/* SPDX-License-Identifier: Apache-2.0 */
#include "core/share.h"

#include "core/books.h"
#include "core/clock.h"
#include "core/inherited.h"
#include "core/limits.h"
#include "core/log.h"
#include "core/origin.h"

#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/mman.h>

#ifndef MADV_WIPEONFORK
#define MADV_WIPEONFORK 18 /* since Linux 4.14 */
#endif

struct vgpu_device vgpu_refused;
struct vgpu_process *vgpu__process;

static void (*forget_parent)(void);
static int attached_before; /* not wiped: tells a fork's child that there was a parent */

void vgpu_at_fork_child(void (*forget)(void)) {
    __atomic_store_n(&forget_parent, forget, __ATOMIC_RELEASE);
}

static bool bind_device(struct vgpu_process *process, struct vgpu_share *share) {
    struct vgpu_limits limits;
    if (vgpu_limits_copy(share->limits, &limits) != 0)
        return false;
    struct vgpu_device *device = vgpu_device_by_uuid(process, limits.device_uuid);
    if (device == NULL) {
        device = &process->devices[process->device_count++];
        memcpy(device->uuid, limits.device_uuid, sizeof device->uuid);
    }
    if (device->count == VGPU_MAX_SHARES_PER_DEVICE) {
        vgpu_complain("%s: found more than %d shares of it, expected at most that many; the GPU is refused",
                      device->uuid, VGPU_MAX_SHARES_PER_DEVICE);
        return false;
    }
    device->shares[device->count++] = share;
    return true;
}

static bool attach_share(struct vgpu_process *process, const char *folder, const char *name) {
    if (process->share_count == VGPU_MAX_SHARES) {
        vgpu_complain("%s: found more than %d shares, expected at most that many; the GPU is refused", folder,
                      VGPU_MAX_SHARES);
        return false;
    }
    struct vgpu_share *share = &process->shares[process->share_count];
    char limits_path[VGPU_MAX_PATH];
    int length = snprintf(limits_path, sizeof limits_path, "%s/%s/" VGPU_LIMITS_FILE, folder, name);
    if (length < 0 || (size_t)length >= sizeof limits_path) {
        vgpu_complain("%s: found a path of %d bytes, expected at most %d; the GPU is refused", folder, length,
                      VGPU_MAX_PATH - 1);
        return false;
    }
    snprintf(share->books_path, sizeof share->books_path, "%s/%s/" VGPU_BOOKS_FILE, folder, name);
    share->limits = vgpu_limits_map(limits_path);
    if (share->limits == NULL || vgpu_books_attach(share->books_path, &share->books, &share->slot) != 0)
        return false;
    process->share_count++;
    vgpu_inherited_note(share);
    return bind_device(process, share);
}

/* The container's folder in a container, and wherever it exists: the environment, which a tenant can edit, does not
 * count then. */
static const char *shares_folder(DIR **folder) {
    *folder = opendir(VGPU_CONTAINER_SHARES_DIR);
    if (*folder != NULL || errno != ENOENT || vgpu_in_container())
        return VGPU_CONTAINER_SHARES_DIR;
    const char *path = getenv(VGPU_ENV_SHARES_DIR);
    if (path == NULL || path[0] == '\0')
        return NULL;
    *folder = opendir(path);
    return path;
}

static bool attach_all(struct vgpu_process *process) {
    DIR *folder;
    const char *path = shares_folder(&folder);
    if (path == NULL) {
        vgpu_complain("found neither " VGPU_CONTAINER_SHARES_DIR " nor " VGPU_ENV_SHARES_DIR
                      ", expected a folder of shares; the GPU is refused");
        return false;
    }
    if (folder == NULL) {
        vgpu_complain("%s: found %s, expected a folder of shares; the GPU is refused", path, strerror(errno));
        return false;
    }
    bool good = true;
    for (struct dirent *entry = readdir(folder); good && entry != NULL; entry = readdir(folder))
        if (entry->d_name[0] != '.')
            good = attach_share(process, path, entry->d_name);
    closedir(folder);
    if (good && process->share_count == 0) {
        vgpu_complain("%s: found no share, expected at least one; the GPU is refused", path);
        return false;
    }
    return good;
}

static struct vgpu_process *pages(void) {
    struct vgpu_process *process = __atomic_load_n(&vgpu__process, __ATOMIC_ACQUIRE);
    if (process != NULL)
        return process;
    process = mmap(NULL, sizeof *process, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (process == MAP_FAILED || madvise(process, sizeof *process, MADV_WIPEONFORK) != 0) {
        vgpu_complain("found %s, expected memory for the library's state; the GPU is refused", strerror(errno));
        return NULL;
    }
    struct vgpu_process *first = NULL;
    if (!__atomic_compare_exchange_n(&vgpu__process, &first, process, false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE)) {
        munmap(process, sizeof *process);
        return first;
    }
    return process;
}

struct vgpu_process *vgpu__attach(void) {
    struct vgpu_process *process = pages();
    if (process == NULL)
        return NULL;
    int saved = errno, cancel_state, state = VGPU_UNATTACHED;
    pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &cancel_state); /* others would wait for this thread for ever */
    if (__atomic_compare_exchange_n(&process->state, &state, VGPU_ATTACHING, false, __ATOMIC_ACQ_REL,
                                    __ATOMIC_ACQUIRE)) {
        void (*forget)(void) = __atomic_load_n(&forget_parent, __ATOMIC_ACQUIRE);
        if (__atomic_exchange_n(&attached_before, 1, __ATOMIC_RELAXED) && forget != NULL)
            forget();
        vgpu_inherited_drop();
        state = attach_all(process) ? VGPU_ATTACHED : VGPU_FAILED;
        __atomic_store_n(&process->state, state, __ATOMIC_RELEASE);
    }
    while (state == VGPU_ATTACHING) { /* another thread is at it */
        sched_yield();
        state = __atomic_load_n(&process->state, __ATOMIC_ACQUIRE);
    }
    pthread_setcancelstate(cancel_state, NULL);
    errno = saved;
    return state == VGPU_ATTACHED ? process : NULL;
}

struct vgpu_device *vgpu_device_by_uuid(struct vgpu_process *process, const char *uuid) {
    enum { KIND = 4 }; /* "GPU-" */
    for (uint32_t i = 0; i < process->device_count; i++) {
        struct vgpu_device *device = &process->devices[i];
        if (strlen(uuid) > KIND && strlen(device->uuid) > KIND && strcasecmp(uuid + KIND, device->uuid + KIND) == 0)
            return device;
    }
    return NULL;
}
