/* SPDX-License-Identifier: Apache-2.0
 *
 * Whether limits and books are those that the node agent mounted into this container, or somebody's own.
 *
 * The root of a container can make files beside the agent's; the author of a pod can mount volumes there, and chroot
 * shows other files under the same names. None of them can make a mount whose source lies in the agent's folder. So the
 * kernel is asked what is mounted under an open file (/proc/self/fdinfo and mountinfo), and the source is compared with
 * that of this library, which the agent mounted too.
 */
#ifndef VGPU_ORIGIN_H
#define VGPU_ORIGIN_H

#include <stdbool.h>

/* Container paths and folders of the node agent: api/names.py has the same, a test compares. */
#define VGPU_CONTAINER_LIBRARY_DIR "/usr/lib/vgpu"
#define VGPU_CONTAINER_DRIVER_DIR  "/usr/lib/vgpu-driver"
#define VGPU_SHARES_SUBDIR         "shares"
#define VGPU_LIBRARY_SUBDIR        "lib"

/* VGPU_CONTAINER_DRIVER_DIR with a slash. */
extern const char vgpu_driver_folder[];

/* True in a container of the node agent's, by the path of the library that it mounts: the environment says nothing
 * about shares there. */
bool vgpu_in_container(void);

/* 0 if the file open as `descriptor`, at `path` (.../SHARE/NAME), may be used: outside of containers any, in one what
 * the agent mounted under this very name, read-only if `read_only`. Else -1, with one line on stderr. */
int vgpu_origin_check(int descriptor, const char *path, bool read_only);

#endif
