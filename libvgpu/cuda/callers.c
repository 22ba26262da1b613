/* SPDX-License-Identifier: Apache-2.0 */
#include "cuda/callers.h"

#include <link.h>
#include <stddef.h>
#include <stdint.h>

__thread int vgpu__inside __attribute__((tls_model("initial-exec")));
__thread int vgpu__holding __attribute__((tls_model("initial-exec")));

struct range {
    uintptr_t inside, start, end; /* an address of the object; all of it, once it is known */
};

enum { OURS, DRIVER, RANGES };
static struct range ranges[RANGES];

static int look(struct dl_phdr_info *object, size_t size, void *unused) {
    uintptr_t start = UINTPTR_MAX, end = 0;
    (void)size;
    (void)unused;
    for (int i = 0; i < object->dlpi_phnum; i++) {
        const ElfW(Phdr) *header = &object->dlpi_phdr[i];
        uintptr_t address = object->dlpi_addr + header->p_vaddr;
        if (header->p_type != PT_LOAD)
            continue;
        start = address < start ? address : start;
        end = address + header->p_memsz > end ? address + header->p_memsz : end;
    }
    for (int i = 0; i < RANGES; i++) {
        if (ranges[i].inside < start || ranges[i].inside >= end)
            continue;
        __atomic_store_n(&ranges[i].start, start, __ATOMIC_RELAXED);
        __atomic_store_n(&ranges[i].end, end, __ATOMIC_RELEASE);
    }
    return 0;
}

void vgpu__callers_find(void) {
    if (__atomic_load_n(&ranges[DRIVER].end, __ATOMIC_ACQUIRE) != 0)
        return;
    ranges[OURS].inside = (uintptr_t)&vgpu__callers_find;
    ranges[DRIVER].inside = (uintptr_t)VGPU_REAL(cuInit);
    dl_iterate_phdr(look, NULL);
}

bool vgpu__is_drivers(const void *address) {
    for (int i = 0; i < RANGES; i++)
        if ((uintptr_t)address < __atomic_load_n(&ranges[i].end, __ATOMIC_ACQUIRE) &&
            (uintptr_t)address >= __atomic_load_n(&ranges[i].start, __ATOMIC_RELAXED))
            return true;
    return false;
}
