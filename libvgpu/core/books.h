/* SPDX-License-Identifier: Apache-2.0
 *
 * The books file: mapping it, owning a slot in it, and taking back what dead processes left. layout.h explains who is
 * alive and why a kill at any instruction leaves the books right.
 *
 * Whoever holds a slot's lock acts as its owner: the process itself, or a reaper on behalf of a dead one.
 */
#ifndef VGPU_BOOKS_H
#define VGPU_BOOKS_H

#include "vgpu/layout.h"

#include <stdbool.h>

/* Map the books at `path`, take back what the dead left, and own a slot until this process's memory goes (exit, kill,
 * exec), and that of children which it forked meanwhile: layout.h says why). 0, or -1 with one line on stderr. No
 * descriptor stays open. */
int vgpu_books_attach(const char *path, struct vgpu_books **books, struct vgpu_slot **slot);

/* Take back the bytes of dead processes. True if any came back: worth another try. Opens `path` for the time of it. */
bool vgpu_books_reap(const char *path, struct vgpu_books *books);

/* A recount has been going on for long: finish it if its owner died. */
void vgpu_books_relieve(const char *path, struct vgpu_books *books);

#endif
