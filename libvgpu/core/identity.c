/* SPDX-License-Identifier: Apache-2.0 */
#include "core/identity.h"

#include <fcntl.h>
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

/* /proc/PID/stat: "pid (comm) state ppid ...", start time is field 22. comm may hold anything, so count from the last
 * ')'. */
static void read_stat(struct vgpu_slot *slot) {
    char text[1024];
    int descriptor = open("/proc/self/stat", O_RDONLY | O_CLOEXEC);
    if (descriptor < 0)
        return;
    ssize_t length = read(descriptor, text, sizeof text - 1);
    close(descriptor);
    if (length <= 0)
        return;
    text[length] = '\0';
    char *open_bracket = strchr(text, '('), *close_bracket = strrchr(text, ')');
    if (open_bracket == NULL || close_bracket == NULL || close_bracket < open_bracket)
        return;
    size_t size = (size_t)(close_bracket - open_bracket - 1);
    if (size >= sizeof slot->command)
        size = sizeof slot->command - 1;
    memset(slot->command, 0, sizeof slot->command);
    memcpy(slot->command, open_bracket + 1, size);
    char *blank = close_bracket + 1; /* the one before field 3 */
    for (int number = 3; number < 22 && blank != NULL; number++)
        blank = strchr(blank + 1, ' ');
    if (blank != NULL)
        slot->start_time = strtoull(blank + 1, NULL, 10);
}

void vgpu_identify(struct vgpu_slot *slot) {
    slot->peak_bytes = slot->launches = slot->gpu_time_ns = slot->throttled_ns = slot->out_of_memory = 0;
    slot->host_bytes = 0;
    slot->predicted_ns = slot->inflight_ns = slot->busy_since_ns = 0;
    slot->pid_namespace = vgpu_pid_namespace();
    slot->start_time = 0;
    read_stat(slot);
    __atomic_store_n(&slot->pid, (uint32_t)getpid(), __ATOMIC_RELEASE);
}
