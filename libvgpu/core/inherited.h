/* SPDX-License-Identifier: Apache-2.0
 *
 * What a fork's child inherits of its ancestors: their mappings of limits and books, and with those the locks that say
 * that their slots are in use.
 *
 * A slot whose owner had memory has to stay: what a child inherits besides are the driver's descriptors, and as long as
 * those are open the memory stays on the card. All others would only be used up, one for each ancestor of a chain of
 * forks.
 */
#ifndef VGPU_INHERITED_H
#define VGPU_INHERITED_H

#include "core/share.h"

/* Remember what this process has mapped, for its children. Called once it has a slot. */
void vgpu_inherited_note(const struct vgpu_share *share);

/* In a fork's child that is about to attach: let go of the mappings of ancestors that have ended and held nothing. */
void vgpu_inherited_drop(void);

#endif
