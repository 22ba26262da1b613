/* SPDX-License-Identifier: Apache-2.0
 *
 * Virtual memory management: physical memory lives as long as a handle to it, a mapping of it, or a descriptor that it
 * was exported by.
 */
#ifndef VGPU_CUDA_VMM_H
#define VGPU_CUDA_VMM_H

#include <stdbool.h>

/* Give back what only descriptors held that are closed now. True if there was any. */
bool vgpu__vmm_settle(void);

/* In a fork's child. */
void vgpu__vmm_forget(void);

#endif
