/* SPDX-License-Identifier: Apache-2.0
 *
 * A driver that was preloaded in front of this library: LD_PRELOAD comes before /etc/ld.so.preload, and some images
 * name a driver there (CUDA forward compatibility). The loader binds what a program is linked with, and whatever it
 * loads later, to the first object that has it: calls would go to the driver's own functions, and nothing would hold
 * them to the share. No look-up of ours comes into that. So such a driver cannot be started in this process: where its
 * functions that do so begin, there stands a jump to one that refuses. Libraries that need the driver are constructed
 * before us: where one of them has started it already, the process ends.
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
enum { JUMP_BYTES = 5 }; /* jmp target: the loader puts what it preloads side by side */

static int write_jump(unsigned char *function, uintptr_t target) {
    intptr_t distance = (intptr_t)(target - ((uintptr_t)function + JUMP_BYTES));
    int32_t near = (int32_t)distance;
    if (near != distance)
        return -1;
    function[0] = 0xe9;
    memcpy(function + 1, &near, sizeof near);
    return 0;
}
#else
enum { JUMP_BYTES = 16 };

static int write_jump(unsigned char *function, uintptr_t target) {
    static const unsigned char jump[] = {0x50, 0, 0, 0x58, 0, 0x02, 0x1f, 0xd6}; /* ldr x16, target; br x16 */
    memcpy(function, jump, sizeof jump);
    memcpy(function + sizeof jump, &target, sizeof target);
    return 0;
}
#endif

/* 0, or -1 where the code cannot be changed. */
static int lead(unsigned char *function, size_t size, uintptr_t target) {
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), start = (uintptr_t)function & ~(page - 1);
    size_t length = (uintptr_t)function + JUMP_BYTES - start;
    if (size < JUMP_BYTES || mprotect((void *)start, length, PROT_READ | PROT_WRITE) != 0 ||
        write_jump(function, target) != 0)
        return -1;
    __builtin___clear_cache((char *)function, (char *)function + JUMP_BYTES);
    return mprotect((void *)start, length, PROT_READ | PROT_EXEC);
}

__attribute__((noreturn)) static void end(const char *library) {
    complain(library);
    _exit(127); /* as the loader ends a program that it cannot give what it needs */
}

static void refuse(const char *library, const char *name, uintptr_t refusal) {
    size_t size;
    unsigned char *function = vgpu__libc_in_front(library, name, &size);
    if (function != NULL && lead(function, size, refusal) != 0)
        end(library);
}

/* `count` is a function that says `unstarted` until the driver is started. Asked last: other threads may be there. */
static void end_if_started(const char *library, const char *count, int unstarted) {
    size_t size;
    unsigned found;
    int (*function)(unsigned *) = (int (*)(unsigned *))vgpu__libc_in_front(library, count, &size);
    if (function != NULL && function(&found) != unstarted)
        end(library);
}

/* cuGetProcAddress too: what it hands out may start the driver without cuInit's own beginning. */
__attribute__((constructor)) static void look_in_front(void) {
    refuse("libcuda.so.1", "cuInit", (uintptr_t)refuse_cuda);
    refuse("libcuda.so.1", "cuGetProcAddress", (uintptr_t)refuse_cuda);
    refuse("libcuda.so.1", "cuGetProcAddress_v2", (uintptr_t)refuse_cuda);
    refuse("libnvidia-ml.so.1", "nvmlInit", (uintptr_t)refuse_nvml);
    refuse("libnvidia-ml.so.1", "nvmlInit_v2", (uintptr_t)refuse_nvml);
    refuse("libnvidia-ml.so.1", "nvmlInitWithFlags", (uintptr_t)refuse_nvml);
    end_if_started("libcuda.so.1", "cuDeviceGetCount", CUDA_ERROR_NOT_INITIALIZED);
    end_if_started("libnvidia-ml.so.1", "nvmlDeviceGetCount_v2", NVML_ERROR_UNINITIALIZED);
}
