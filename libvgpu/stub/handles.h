/* SPDX-License-Identifier: Apache-2.0
 *
 * The records behind handles. A real driver may give a handle again as soon as what had it is destroyed. This one does
 * so at once, to the next thing of its kind, and the handle that was destroyed last comes first: who remembers
 * something by a handle, and is wrong afterwards, is found out. Until then a destroyed handle can be looked at and is
 * answered with an error.
 */
#ifndef VGPU_STUB_HANDLES_H
#define VGPU_STUB_HANDLES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum handle_kind {
    HANDLE_CONTEXT,
    HANDLE_GREEN,
    HANDLE_STREAM,
    HANDLE_EVENT,
    HANDLE_MODULE,
    HANDLE_FUNCTION, /* and kernel of a library: the API takes the one for the other, and each may come again as either
                      */
    HANDLE_LIBRARY,
    HANDLE_LINK,
    HANDLE_GRAPH,
    HANDLE_NODE,
    HANDLE_EXECUTABLE,
    HANDLE_POOL,
    HANDLE_ARRAY,
    HANDLE_MIPMAP,
    HANDLE_MEMORY,
    HANDLE_EXTERNAL,
    HANDLE_KINDS
};

/* A record of zeros; all of a kind have one size. NULL: out of memory. */
void *handle_take(enum handle_kind kind, size_t size);

/* Destroyed: it stays as it is until it is given again. */
void handle_give(void *record);

/* Is there something that has this handle? Not if it is NULL, or destroyed. */
bool handle_lives(const void *record);

/* Another number for each thing that has had the handle, and in between. */
uint64_t handle_turn(const void *record);

void handles_forget_all(void); /* in a fork's child */

#endif
