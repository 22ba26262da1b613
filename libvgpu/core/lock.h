/* SPDX-License-Identifier: Apache-2.0
 *
 * A mutex for what a front-end keeps in the process. A thread that holds one cannot be cancelled, so that none is left
 * locked; a fork's child, which may find one locked, sets it up anew (vgpu_at_fork_child).
 */
#ifndef VGPU_LOCK_H
#define VGPU_LOCK_H

#include <pthread.h>
#include <stddef.h>

struct vgpu_lock {
    pthread_mutex_t mutex;
    int cancel_state; /* of the holder, before it took the lock */
};

#define VGPU_UNLOCKED {.mutex = PTHREAD_MUTEX_INITIALIZER}

static inline void vgpu_lock(struct vgpu_lock *lock) {
    int state;
    pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &state);
    pthread_mutex_lock(&lock->mutex);
    lock->cancel_state = state;
}

static inline void vgpu_unlock(struct vgpu_lock *lock) {
    int state = lock->cancel_state;
    pthread_mutex_unlock(&lock->mutex);
    pthread_setcancelstate(state, NULL);
}

/* In a fork's child. */
static inline void vgpu_lock_renew(struct vgpu_lock *lock) {
    struct vgpu_lock fresh = VGPU_UNLOCKED;
    *lock = fresh;
}

#endif
