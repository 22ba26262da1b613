/* SPDX-License-Identifier: Apache-2.0 */
#include "core/identity.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* The link reads "pid:[4026531836]". */
uint64_t vgpu_pid_namespace(void) {
    char text[64];
    ssize_t length = readlink("/proc/self/ns/pid", text, sizeof text - 1);
    if (length <= 0)
        return 0;
    text[length] = '\0';
    const char *bracket = strchr(text, '[');
    return bracket != NULL ? strtoull(bracket + 1, NULL, 10) : 0;
}

/* /proc/PID/stat, "pid (comm) state ppid ...", as a text. comm may hold anything: returns its last ')', NULL if the
 * file cannot be read. */
static char *read_stat(const char *path, char *text, size_t size) {
    int descriptor = open(path, O_RDONLY | O_CLOEXEC);
    if (descriptor < 0)
        return NULL;
    ssize_t length = read(descriptor, text, size - 1);
    close(descriptor);
    if (length <= 0)
        return NULL;
    text[length] = '\0';
    return strrchr(text, ')');
}

/* Field 3 is the first one behind comm. NULL: there is none of that number. */
static const char *field(const char *close_bracket, int number) {
    const char *blank = close_bracket + 1;
    for (int i = 3; i < number && blank != NULL; i++)
        blank = strchr(blank + 1, ' ');
    return blank != NULL ? blank + 1 : NULL;
}

enum { STATE = 3, THREADS = 20, START_TIME = 22 };

static void read_own(struct vgpu_slot *slot) {
    char text[1024], *close_bracket = read_stat("/proc/self/stat", text, sizeof text), *open_bracket;
    if (close_bracket == NULL || (open_bracket = strchr(text, '(')) == NULL || close_bracket < open_bracket)
        return;
    size_t size = (size_t)(close_bracket - open_bracket - 1);
    if (size >= sizeof slot->command)
        size = sizeof slot->command - 1;
    memset(slot->command, 0, sizeof slot->command);
    memcpy(slot->command, open_bracket + 1, size);
    const char *start = field(close_bracket, START_TIME);
    if (start != NULL)
        slot->start_time = strtoull(start, NULL, 10);
}

void vgpu_identify(struct vgpu_slot *slot) {
    slot->peak_bytes = slot->launches = slot->gpu_time_ns = slot->throttled_ns = slot->out_of_memory = 0;
    slot->host_bytes = 0;
    slot->predicted_ns = slot->inflight_ns = slot->busy_since_ns = 0;
    slot->pid_namespace = vgpu_pid_namespace();
    slot->start_time = 0;
    read_own(slot);
    __atomic_store_n(&slot->pid, (uint32_t)getpid(), __ATOMIC_RELEASE);
}

bool vgpu_has_ended(uint32_t pid, uint64_t pid_namespace, uint64_t start_time) {
    char path[64], text[1024];
    if (pid == 0 || start_time == 0 || pid_namespace == 0 || pid_namespace != vgpu_pid_namespace())
        return false;
    if (kill((pid_t)pid, 0) != 0 && errno == ESRCH)
        return true;
    snprintf(path, sizeof path, "/proc/%u/stat", pid);
    const char *close_bracket = read_stat(path, text, sizeof text);
    const char *start = close_bracket != NULL ? field(close_bracket, START_TIME) : NULL;
    if (start == NULL)
        return false;
    if (strtoull(start, NULL, 10) != start_time)
        return true; /* somebody else has its number */
    /* Nobody has waited for it yet. A thread that began the process may end before others, and looks like that too. */
    return *field(close_bracket, STATE) == 'Z' && strtoull(field(close_bracket, THREADS), NULL, 10) <= 1;
}
