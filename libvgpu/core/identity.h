/* SPDX-License-Identifier: Apache-2.0
 *
 * Who this process is, for people who read the books: pid, pid namespace, start time, command. And whether another one
 * still is.
 */
#ifndef VGPU_IDENTITY_H
#define VGPU_IDENTITY_H

#include "vgpu/layout.h"

#include <stdbool.h>

/* Fill the identity of a slot that the caller has just claimed; pid is stored last. What /proc does not tell stays 0.
 */
void vgpu_identify(struct vgpu_slot *slot);

/* Inode of this process's pid namespace, 0 if unknown. */
uint64_t vgpu_pid_namespace(void);

/* True if the process that identified itself by these has ended; false also where that cannot be told. */
bool vgpu_has_ended(uint32_t pid, uint64_t pid_namespace, uint64_t start_time);

#endif
