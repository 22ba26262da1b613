/* SPDX-License-Identifier: Apache-2.0 */
#include "cuda/exported.h"

#include "core/clock.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef F_OFD_GETLK
#define F_OFD_GETLK 36 /* since Linux 3.15 */
#define F_OFD_SETLK 37
#endif

struct vgpu__exported {
    struct vgpu__exported *next;
    int probe; /* another description of the file; -1: nobody can tell */
    dev_t device;
    ino_t inode;
    off_t at; /* of the lock */
};

/* Where there is no memory to watch one. */
static struct vgpu__exported for_ever = {.probe = -1};

/* The system call: fstat is a symbol of newer C libraries. */
static bool look_at(int descriptor, struct stat *status) {
    return syscall(SYS_fstat, descriptor, status) == 0;
}

static struct flock lock_at(off_t at, short type) {
    return (struct flock){.l_type = type, .l_whence = SEEK_SET, .l_start = at, .l_len = 1};
}

static int begin(struct vgpu__exported *exported, int descriptor) {
    enum { BEHIND_ALL = 62 };
    char path[32];
    struct stat status;
    exported->at = (off_t)(1ull << BEHIND_ALL | (vgpu_now_ns() & ((1ull << BEHIND_ALL) - 1)));
    struct flock lock = lock_at(exported->at, F_RDLCK);
    snprintf(path, sizeof path, "/proc/self/fd/%d", descriptor);
    if (!look_at(descriptor, &status) || fcntl(descriptor, F_OFD_SETLK, &lock) != 0)
        return -1;
    exported->device = status.st_dev;
    exported->inode = status.st_ino;
    return open(path, O_RDONLY | O_CLOEXEC);
}

void vgpu__exported_add(struct vgpu__exported **list, int descriptor) {
    int saved = errno;
    struct vgpu__exported *exported = malloc(sizeof *exported);
    if (exported == NULL) {
        *list = &for_ever;
    } else if (*list == &for_ever) {
        free(exported);
    } else {
        exported->next = *list;
        exported->probe = begin(exported, descriptor);
        *list = exported;
    }
    errno = saved;
}

/* The application may have closed the probe, or put something else in its place. */
static bool is_open(const struct vgpu__exported *exported) {
    struct stat status;
    struct flock lock = lock_at(exported->at, F_WRLCK);
    if (exported->probe < 0 || !look_at(exported->probe, &status) || status.st_dev != exported->device ||
        status.st_ino != exported->inode || fcntl(exported->probe, F_OFD_GETLK, &lock) != 0)
        return true;
    return lock.l_type != F_UNLCK;
}

bool vgpu__exported_open(struct vgpu__exported **list) {
    int saved = errno;
    for (struct vgpu__exported *exported = *list; exported != NULL && !is_open(exported); exported = *list) {
        close(exported->probe);
        *list = exported->next;
        free(exported);
    }
    errno = saved;
    return *list != NULL;
}
