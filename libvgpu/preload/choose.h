/* SPDX-License-Identifier: Apache-2.0
 *
 * What dlsym and dlvsym answer, decided in C; preload/dlsym.S holds the two entry points.
 */
#ifndef VGPU_PRELOAD_CHOOSE_H
#define VGPU_PRELOAD_CHOOSE_H

/* The hook to hand out for `name`; NULL: jump to the real function with the caller's own frame. VGPU_NOTHING: answer
 * NULL, the real function has said why. */
void *vgpu__choose_dlsym(void *handle, const char *name);
void *vgpu__choose_dlvsym(void *handle, const char *name, const char *version);

#define VGPU_NOTHING ((void *)1) /* in dlsym.S too */

/* Where the entry points jump on NULL. */
extern void *vgpu__real_dlsym;
extern void *vgpu__real_dlvsym;

#endif
