/* SPDX-License-Identifier: Apache-2.0
 *
 * A driver that was preloaded in front of this library: LD_PRELOAD comes before /etc/ld.so.preload, and some images
 * name a driver there (CUDA forward compatibility). The loader binds what a program is linked with, and whatever it
 * loads later, to the first object that has it: calls would go to the driver's own functions, and nothing would hold
 * them to the share. No look-up of ours comes into that. So such a driver cannot be started in this process: where its
 * functions that do so begin, there stands a jump to one that refuses.
 */
#include "core/log.h"
#include "cuda/real.h"
#include "nvml/real.h"
#include "preload/libc.h"

#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static void complain(const char *library) {
    vgpu_complain("LD_PRELOAD: found %s in front of this library, expected no driver there; the GPU is refused",
                  library);
}

static CUresult refuse_cuda(void) {
    complain("libcuda.so.1");
    return CUDA_ERROR_NOT_PERMITTED;
}

static nvmlReturn_t refuse_nvml(void) {
    complain("libnvidia-ml.so.1");
    return NVML_ERROR_NO_PERMISSION;
}

#if defined(__x86_64__)
enum { TARGET_AT = 2 };
static const unsigned char jump[] = {0x48, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xe0}; /* mov $target, %rax; jmp *%rax */
#else
enum { TARGET_AT = 8 };
static const unsigned char jump[] = {0x50, 0, 0, 0x58, 0, 0x02, 0x1f, 0xd6, /* ldr x16, target; br x16 */
                                     0,    0, 0, 0,    0, 0,    0,    0};
#endif

/* 0, or -1 where the code cannot be changed. Nobody runs it yet: this is the start of the process. */
static int lead(unsigned char *function, uintptr_t target) {
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), start = (uintptr_t)function & ~(page - 1);
    size_t length = (uintptr_t)function + sizeof jump - start;
    if (mprotect((void *)start, length, PROT_READ | PROT_WRITE) != 0)
        return -1;
    memcpy(function, jump, sizeof jump);
    memcpy(function + TARGET_AT, &target, sizeof target);
    __builtin___clear_cache((char *)function, (char *)function + sizeof jump);
    return mprotect((void *)start, length, PROT_READ | PROT_EXEC);
}

static void refuse(const char *library, const char *start, uintptr_t refusal) {
    unsigned char *function = vgpu__libc_in_front(library, start);
    if (function == NULL || lead(function, refusal) == 0)
        return;
    complain(library);
    _exit(127); /* as the loader ends a program that it cannot give what it needs */
}

__attribute__((constructor)) static void look_in_front(void) {
    refuse("libcuda.so.1", "cuInit", (uintptr_t)refuse_cuda);
    refuse("libnvidia-ml.so.1", "nvmlInit", (uintptr_t)refuse_nvml);
    refuse("libnvidia-ml.so.1", "nvmlInit_v2", (uintptr_t)refuse_nvml);
    refuse("libnvidia-ml.so.1", "nvmlInitWithFlags", (uintptr_t)refuse_nvml);
}
