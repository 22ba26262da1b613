/* SPDX-License-Identifier: Apache-2.0
 *
 * Exported and imported memory as this process holds it: how often, and by which descriptors that it handed out. Such a
 * descriptor keeps the memory too, in whatever process it is open, also if nobody has imported it. It carries a lock
 * (F_OFD_SETLK) that goes with its last duplicate, which the process that exported looks for whenever it asks the card
 * for memory, or lets go. With that process ends what only descriptors hold; a real driver would keep it.
 */
#define _GNU_SOURCE
#include "driver.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

struct local {
    bool held;
    unsigned uses;
    int file; /* the memory file */
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct local locals[CARDS_MAX][STUB_SHARED];
static unsigned lingering; /* held by descriptors alone */

void holdings_forget_all(void) {
    pthread_mutex_init(&lock, NULL);
    for (int card = 0; card < CARDS_MAX; card++)
        for (int entry = 0; entry < STUB_SHARED; entry++)
            if (locals[card][entry].held)
                close(locals[card][entry].file);
    memset(locals, 0, sizeof locals);
    lingering = 0;
}

static struct flock descriptor_range(short type) {
    return (struct flock){.l_type = type, .l_whence = SEEK_SET, .l_start = 0, .l_len = 1};
}

static bool descriptor_open(int file) {
    struct flock range = descriptor_range(F_WRLCK);
    return fcntl(file, F_OFD_GETLK, &range) == 0 && range.l_type != F_UNLCK;
}

static struct local *local_of(struct holding holding) {
    return &locals[holding.device->ordinal][holding.entry];
}

static struct holding begin(struct device *device, int entry, int file) {
    struct holding holding = {device, entry};
    if (entry >= 0) {
        struct local *local = local_of(holding);
        lingering -= local->held && local->uses == 0;
        if (!local->held)
            *local = (struct local){.held = true, .file = fcntl(file, F_DUPFD_CLOEXEC, 0)};
        local->uses++;
    }
    return holding;
}

static void end(struct holding holding) {
    struct local *local = local_of(holding);
    close(local->file);
    *local = (struct local){.held = false};
    card_let_go(&holding.device->card, holding.entry);
}

static uint64_t inode_of(int file) {
    struct stat st;
    return fstat(file, &st) == 0 ? st.st_ino : 0;
}

struct holding holding_share(struct device *device, int file, uint64_t bytes) {
    pthread_mutex_lock(&lock);
    struct holding holding = begin(device, card_share(&device->card, inode_of(file), bytes), file);
    pthread_mutex_unlock(&lock);
    return holding;
}

struct holding holding_open(int file) {
    struct holding holding = {NULL, -1};
    pthread_mutex_lock(&lock);
    for (int i = 0; i < driver.device_count && holding.entry < 0; i++)
        if (driver.devices[i].joined)
            holding = begin(&driver.devices[i], card_hold(&driver.devices[i].card, inode_of(file)), file);
    pthread_mutex_unlock(&lock);
    return holding;
}

void holding_close(struct holding holding) {
    if (holding.entry < 0 || !holding.device->card.slot) /* a fork's child: its parent holds it */
        return;
    pthread_mutex_lock(&lock);
    struct local *local = local_of(holding);
    if (local->held && --local->uses == 0) {
        if (descriptor_open(local->file))
            lingering++;
        else
            end(holding);
    }
    pthread_mutex_unlock(&lock);
    holdings_settle();
}

void holdings_settle(void) {
    if (__atomic_load_n(&lingering, __ATOMIC_RELAXED) == 0)
        return;
    pthread_mutex_lock(&lock);
    for (int i = 0; i < driver.device_count; i++) {
        for (int entry = 0; entry < STUB_SHARED; entry++) {
            struct local *local = &locals[i][entry];
            if (!local->held || local->uses > 0 || descriptor_open(local->file))
                continue;
            lingering--;
            end((struct holding){&driver.devices[i], entry});
        }
    }
    pthread_mutex_unlock(&lock);
}

int holding_descriptor(int file) {
    char path[64];
    struct flock range = descriptor_range(F_RDLCK);
    snprintf(path, sizeof path, "/proc/self/fd/%d", file);
    int descriptor = open(path, O_RDWR | O_CLOEXEC); /* a description of its own, for a lock of its own */
    if (descriptor >= 0 && fcntl(descriptor, F_OFD_SETLK, &range) != 0) {
        close(descriptor);
        descriptor = -1;
    }
    return descriptor;
}
