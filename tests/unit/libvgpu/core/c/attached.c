/* SPDX-License-Identifier: Apache-2.0
 *
 * A process that holds its shares by the core alone: no driver, no front-end, nothing preloaded. Takes one command a
 * line on its standard input and answers each with a line.
 */
#include "core/identity.h"
#include "core/limiter.h"
#include "core/quota.h"
#include "core/share.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static struct vgpu_device *device;

static void forget_nothing(void) {}

/* In a child of fork: it attaches anew, with a slot of its own. */
static int in_child(uint64_t bytes) {
    int status;
    pid_t pid = fork();
    if (pid == 0) {
        struct vgpu_process *process = vgpu_process();
        struct vgpu_device *own = process != NULL ? vgpu_device_by_uuid(process, device->uuid) : NULL;
        _exit(own != NULL ? vgpu_reserve(own, bytes) : 9);
    }
    return waitpid(pid, &status, 0) == pid && WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static void answer(const char *command, uint64_t bytes) {
    uint64_t total, used;
    if (strcmp(command, "reserve") == 0)
        printf("%d\n", vgpu_reserve(device, bytes));
    else if (strcmp(command, "credit") == 0)
        vgpu_credit(device, bytes), puts("0");
    else if (strcmp(command, "charge") == 0)
        vgpu_charge(device, bytes), puts("0");
    else if (strcmp(command, "reserve-host") == 0)
        printf("%d\n", vgpu_reserve_host(device, bytes));
    else if (strcmp(command, "credit-host") == 0)
        vgpu_credit_host(device, bytes), puts("0");
    else if (strcmp(command, "in-child") == 0)
        printf("%d\n", in_child(bytes));
    else if (strcmp(command, "usage") == 0)
        vgpu_usage(device, &total, &used), printf("%" PRIu64 " %" PRIu64 "\n", total, used);
    else if (strcmp(command, "rate") == 0)
        printf("%" PRIu32 "\n", vgpu_limiter_rate_percent(device));
    else if (strcmp(command, "suspended") == 0)
        printf("%d\n", vgpu_limiter_suspended(device));
    else if (strcmp(command, "namespace") == 0)
        printf("%" PRIu64 "\n", vgpu_pid_namespace());
    else
        puts("unknown");
}

int main(int argc, char **argv) {
    char command[32];
    uint64_t bytes;
    setvbuf(stdout, NULL, _IOLBF, 0);
    vgpu_at_fork_child(forget_nothing);
    struct vgpu_process *process = vgpu_process();
    if (process == NULL || argc != 2)
        return 1;
    device = vgpu_device_by_uuid(process, argv[1]);
    printf("%s\n", device != NULL ? "attached" : "no share");
    while (scanf("%31s %" SCNu64, command, &bytes) == 2)
        answer(command, bytes);
    return 0;
}
