/* SPDX-License-Identifier: Apache-2.0 */
#include "core/origin.h"

#include "core/log.h"

#include <errno.h>
#include <fcntl.h>
#include <link.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/vfs.h>
#include <unistd.h>

/* linux/magic.h */
#define PROC_MAGIC 0x9fa0

const char vgpu_driver_folder[] = VGPU_CONTAINER_DRIVER_DIR "/";

enum { LINE_BYTES = 8192, ROOT_BYTES = 1024 };

/* Of a file that is a mount point of its own: the filesystem, and the path of the source in it. */
struct source {
    char device[32];
    char root[ROOT_BYTES];
    bool read_only;
};

/* The library that a container was started with, as the loader has it; NULL outside of containers. It is looked for by
 * its folder and not by this code's own address: another copy of it (in a namespace of the loader, or preloaded by the
 * tenant) is in the same container. */
static const char *container_library(void) {
    static const char folder[] = VGPU_CONTAINER_LIBRARY_DIR "/";
    for (const struct link_map *object = _r_debug.r_map; object != NULL; object = object->l_next)
        if (object->l_name != NULL && strncmp(object->l_name, folder, sizeof folder - 1) == 0)
            return object->l_name;
    return NULL;
}

/* A program that was told to preload the library by another path (LD_PRELOAD) has it under that one alone. */
bool vgpu_in_container(void) {
    return container_library() != NULL || access(VGPU_CONTAINER_LIBRARY_DIR, F_OK) == 0;
}

/* A file below /proc/self; a chroot may have any file there, so the filesystem is asked. */
static int open_proc(const char *path) {
    struct statfs filesystem;
    int descriptor = open(path, O_RDONLY | O_CLOEXEC);
    if (descriptor >= 0 && (fstatfs(descriptor, &filesystem) != 0 || filesystem.f_type != PROC_MAGIC)) {
        close(descriptor);
        descriptor = -1;
    }
    return descriptor;
}

/* The id of the mount that an open file lies on; -1 if unknown. */
static long mount_id(int file) {
    char text[1024];
    snprintf(text, sizeof text, "/proc/self/fdinfo/%d", file);
    int descriptor = open_proc(text);
    if (descriptor < 0)
        return -1;
    ssize_t length = read(descriptor, text, sizeof text - 1);
    close(descriptor);
    text[length > 0 ? length : 0] = '\0';
    const char *field = strstr(text, "\nmnt_id:");
    return field != NULL ? strtol(field + strlen("\nmnt_id:"), NULL, 10) : -1;
}

/* One line of mountinfo: "ID PARENT MAJOR:MINOR ROOT POINT OPTIONS ...". False if it is not of mount `id`. */
static bool parse(const char *line, long id, struct source *source) {
    char options[256];
    long found;
    int fields = sscanf(line, "%ld %*d %31s %1023s %*s %255s", &found, source->device, source->root, options);
    if (fields < 1 || found != id)
        return false;
    source->read_only = fields == 4 && (strcmp(options, "ro") == 0 || strncmp(options, "ro,", 3) == 0);
    if (fields < 4)
        source->root[0] = '\0';
    return true;
}

/* Find a mount in the process's list, a buffer at a time; lines beyond the buffer are nobody's that we look for. */
static bool find_mount(long id, struct source *source) {
    char buffer[LINE_BYTES];
    size_t filled = 0;
    bool found = false;
    int descriptor = id < 0 ? -1 : open_proc("/proc/self/mountinfo");
    while (descriptor >= 0 && !found) {
        ssize_t length = read(descriptor, buffer + filled, sizeof buffer - 1 - filled);
        if (length <= 0)
            break;
        filled += (size_t)length;
        buffer[filled] = '\0';
        char *line = buffer;
        for (char *end = strchr(line, '\n'); end != NULL && !found; end = strchr(line, '\n')) {
            *end = '\0';
            found = parse(line, id, source);
            line = end + 1;
        }
        filled = strlen(line) < sizeof buffer - 1 ? strlen(line) : 0;
        memmove(buffer, line, filled);
    }
    if (descriptor >= 0)
        close(descriptor);
    return found;
}

static bool find_source(int descriptor, struct source *source) {
    return find_mount(mount_id(descriptor), source);
}

/* Where this library was mounted from; its root without "/lib/NAME" is the node agent's folder. */
static bool find_agent(struct source *agent) {
    char end[ROOT_BYTES];
    const char *path = container_library(), *name = path != NULL ? strrchr(path, '/') : "";
    int descriptor = path == NULL ? -1 : open(path, O_RDONLY | O_CLOEXEC);
    bool found = descriptor >= 0 && find_source(descriptor, agent);
    if (descriptor >= 0)
        close(descriptor);
    int length = snprintf(end, sizeof end, "/" VGPU_LIBRARY_SUBDIR "%s", name);
    size_t root = found ? strlen(agent->root) : 0;
    if (length >= (int)sizeof end || root < (size_t)length || strcmp(agent->root + root - length, end) != 0)
        return false;
    agent->root[root - length] = '\0';
    return true;
}

/* The last two names of a path, with their slashes: "/SHARE/limits". */
static const char *last_two(const char *path) {
    const char *at = path + strlen(path);
    for (int slashes = 0; at > path && slashes < 2;)
        slashes += *--at == '/';
    return at;
}

int vgpu_origin_check(int descriptor, const char *path, bool read_only) {
    struct source agent, file = {.root = ""};
    char expected[2 * ROOT_BYTES];
    if (!vgpu_in_container())
        return 0;
    if (!find_agent(&agent)) {
        const char *library = container_library();
        vgpu_complain("%s: found no mount of it in /proc/self/mountinfo, expected the node agent's; the GPU is refused",
                      library != NULL ? library : "the library, preloaded by another path");
        return -1;
    }
    find_source(descriptor, &file);
    snprintf(expected, sizeof expected, "%s/" VGPU_SHARES_SUBDIR "%s", agent.root, last_two(path));
    if (strcmp(file.root, expected) == 0 && strcmp(file.device, agent.device) == 0 && (file.read_only || !read_only))
        return 0;
    vgpu_complain(
        "%s: found a file that the node agent did not mount here, expected %s of the node%s; the GPU is refused", path,
        expected, read_only ? ", read-only" : "");
    return -1;
}
