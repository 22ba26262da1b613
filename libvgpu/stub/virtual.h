/* SPDX-License-Identifier: Apache-2.0
 *
 * Memory without an address, for virtual.c and multicast.c.
 */
#ifndef VGPU_STUB_VIRTUAL_H
#define VGPU_STUB_VIRTUAL_H

#include "driver.h"

#define MEMORY_TAG    0x564d454d
#define MULTICAST_TAG 0x4d554c54

struct memory {
    uint32_t tag;
    uint32_t handles, uses; /* of handles, of mappings and bindings */
    uint64_t size, charged;
    int fd; /* -1 until it is needed */
    struct device *device;
    struct holding holding; /* exported or imported: charged there */
    CUmemAllocationProp prop;
};

/* NULL: it is no handle of ours. */
struct memory *memory_of(CUmemGenericAllocationHandle handle);
/* NULL: out of memory. */
struct memory *memory_make(struct device *device, uint32_t tag, uint64_t size, uint64_t charged);

#endif
