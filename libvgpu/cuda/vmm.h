/* SPDX-License-Identifier: Apache-2.0
 *
 * Virtual memory management: physical memory lives as long as a handle to it or a mapping of it.
 */
#ifndef VGPU_CUDA_VMM_H
#define VGPU_CUDA_VMM_H

/* In a fork's child. */
void vgpu__vmm_forget(void);

#endif
