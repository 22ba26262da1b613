/* SPDX-License-Identifier: Apache-2.0
 *
 * A process's time on the card's engine. Only its executor calls this, so there is one caller at a time per device.
 *
 * The engine belongs to one process at a time. While others wait, its owner keeps it for a slice (card.h: slice_ns) and
 * hands it to the next waiting slot in turn, in the middle of a kernel if need be, as compute preemption does. Nobody
 * spins: the owner sleeps to the end of its kernel or slice and is kicked when somebody starts to wait; a waiter sleeps
 * until it is handed the engine and looks every 20 ms whether the owner still lives. An owner that lives but does not
 * hand over (stopped, frozen) loses the engine after a second: a real card does not wait for a process to run either.
 *
 * Time on the engine is its own line: a stretch of work begins where the one before it ended, or when the work was
 * submitted, whichever is later, and not when some thread happened to wake up. So a busy host delays what one sees, but
 * neither loses GPU time nor shifts the shares: what a process is charged is exactly what its kernels take.
 */
#include "driver.h"

#define PATIENCE_NS 20000000u
#define OVERDUE_NS  1000000000u
#define REPORT_NS   10000000u /* a long kernel shows up in the figures while it runs */

/* Adds the owner's time up to this time of the engine to its slot. Under the card's lock. */
static void account(struct device *device, uint64_t until) {
    struct stub_card *shared = device->card.shared;
    struct stub_slot *slot = device->card.slot;
    uint64_t since = shared->engine_since_ns;
    if (until <= since)
        return;
    STORE_RELAXED(slot->gpu_time_ns, slot->gpu_time_ns + (until - since));
    usage_add(slot->usage, STUB_SLOT_USAGE, since, until);
    usage_add(shared->usage, STUB_CARD_USAGE, since, until);
    shared->engine_since_ns = until;
}

static bool is_owner(const struct device *device) {
    return device->card.shared->engine_owner == device->card.slot_number + 1;
}

/* Accounts work until now, and idle time up to next (if later) to nobody. False: we lost the engine meanwhile. */
static bool progress(struct device *device, uint64_t until, uint64_t next) {
    card_lock(&device->card);
    bool owner = is_owner(device);
    if (owner) {
        account(device, until);
        if (next > until)
            device->card.shared->engine_since_ns = next;
    }
    card_unlock(&device->card);
    device->engine.held = owner;
    return owner;
}

/* Hands the engine, free from time on, to the next living waiter after the slot number. Under the card's lock. */
static void pass_on(struct card *card, uint32_t after, uint64_t time) {
    struct stub_card *shared = card->shared;
    shared->engine_free_ns = shared->engine_until_ns = time;
    STORE(shared->engine_owner, 0);
    for (uint32_t step = 1; shared->engine_waiters > 0 && step <= STUB_SLOTS; step++) {
        uint32_t number = (after + step) % STUB_SLOTS;
        if (!(shared->live[number / 64] >> (number % 64))) {
            step += 63 - number % 64; /* no living slot in the rest of this word */
            continue;
        }
        struct stub_slot *slot = &shared->slots[number];
        if (slot->state != STUB_SLOT_LIVE || slot->waiting_since_ns == 0)
            continue;
        if (!card_slot_lives(card, number)) {
            card_bury(card, number);
            continue;
        }
        slot->waiting_since_ns = 0;
        shared->engine_waiters--;
        shared->engine_changes++;
        shared->engine_since_ns = time;
        slot->turn_ns = time;
        STORE(shared->engine_owner, number + 1);
        STORE(slot->turn, 1);
        futex_wake(&slot->turn, 1);
        return;
    }
}

/* Enters the queue of waiters. Under the card's lock. */
static void start_waiting(struct card *card) {
    STORE(card->slot->turn, 0);
    card->slot->waiting_since_ns = now_ns();
    card->shared->engine_waiters++;
}

/* Takes the engine from an owner that died, or that is long overdue. Under the card's lock. */
static void depose(struct card *card) {
    struct stub_card *shared = card->shared;
    uint32_t owner = shared->engine_owner;
    if (owner == 0) {
        pass_on(card, card->slot_number, shared->engine_free_ns);
    } else if (!card_slot_lives(card, owner - 1)) {
        card_bury(card, owner - 1);
        pass_on(card, owner - 1, shared->engine_free_ns);
    } else if (now_ns() > shared->engine_since_ns + shared->slice_ns + OVERDUE_NS) {
        pass_on(card, owner - 1, shared->engine_since_ns); /* its kernel stopped when it did */
    }
}

/* Waits to be handed the engine. */
static uint64_t wait_for_turn(struct device *device) {
    struct card *card = &device->card;
    while (!LOAD(card->slot->turn)) {
        uint64_t until = now_ns() + PATIENCE_NS;
        futex_wait_until(&card->slot->turn, 0, until);
        if (LOAD(card->slot->turn) || now_ns() < until)
            continue;
        card_lock(card);
        if (!card->slot->turn)
            depose(card);
        card_unlock(card);
    }
    return card->slot->turn_ns;
}

/* Becomes the owner; the work is there since ready_ns. */
static void acquire(struct device *device, uint64_t ready_ns) {
    struct card *card = &device->card;
    struct stub_card *shared = card->shared;
    struct engine *engine = &device->engine;
    uint64_t start;
    card_lock(card);
    if (shared->engine_owner == 0) {
        start = shared->engine_free_ns;
        shared->engine_since_ns = shared->engine_until_ns = start > ready_ns ? start : ready_ns;
        shared->engine_changes++;
        STORE(shared->engine_owner, card->slot_number + 1);
        card_unlock(card);
    } else {
        start_waiting(card);
        card_unlock(card);
        __atomic_fetch_add(&shared->engine_kick, 1, __ATOMIC_RELEASE);
        futex_wake(&shared->engine_kick, 1);
        start = wait_for_turn(device);
    }
    start = start > ready_ns ? start : ready_ns;
    engine->at_ns = engine->slice_start_ns = start;
    progress(device, 0, start);
}

/* The slice is over and others wait: goes to the end of the line. */
static void yield_engine(struct device *device) {
    struct card *card = &device->card;
    card_lock(card);
    if (is_owner(device)) {
        account(device, device->engine.at_ns);
        start_waiting(card);
        pass_on(card, card->slot_number, device->engine.at_ns);
        card_unlock(card);
        uint64_t start = wait_for_turn(device);
        start = start > device->engine.at_ns ? start : device->engine.at_ns;
        device->engine.at_ns = device->engine.slice_start_ns = start;
        return;
    }
    card_unlock(card);
    device->engine.held = false;
}

void engine_release(struct device *device) {
    struct card *card = &device->card;
    if (!device->engine.held)
        return;
    card_lock(card);
    if (is_owner(device)) {
        account(device, device->engine.at_ns);
        pass_on(card, card->slot_number, device->engine.at_ns);
    }
    card_unlock(card);
    device->engine.held = false;
}

/* Until when the engine is ours for this work, without looking up. */
static uint64_t next_stop(const struct device *device, uint64_t duration_ns) {
    const struct stub_card *shared = device->card.shared;
    const struct engine *engine = &device->engine;
    uint64_t until = engine->at_ns + (duration_ns < REPORT_NS ? duration_ns : REPORT_NS);
    uint64_t slice_end = engine->slice_start_ns + shared->slice_ns;
    return LOAD(shared->engine_waiters) > 0 && slice_end < until ? slice_end : until;
}

uint64_t engine_run(struct device *device, uint64_t ready_ns, uint64_t duration_ns) {
    struct stub_card *shared = device->card.shared;
    struct engine *engine = &device->engine;
    if (engine->held && ready_ns > engine->at_ns && progress(device, engine->at_ns, ready_ns))
        engine->at_ns = ready_ns; /* it had nothing to do in between */
    while (duration_ns > 0) {
        if (!engine->held)
            acquire(device, engine->at_ns > ready_ns ? engine->at_ns : ready_ns);
        uint32_t kick = LOAD(shared->engine_kick);
        uint64_t until = next_stop(device, duration_ns);
        if (until <= engine->at_ns) {
            yield_engine(device);
            continue;
        }
        STORE_RELAXED(shared->engine_until_ns, engine->at_ns + duration_ns);
        uint64_t now = now_ns();
        if (now < until) {
            futex_wait_until(&shared->engine_kick, kick, until);
            now = now_ns();
        }
        uint64_t reached = now < until ? now : until;
        if (reached > engine->at_ns && progress(device, reached, 0)) {
            duration_ns -= reached - engine->at_ns;
            engine->at_ns = reached;
        }
    }
    return engine->at_ns;
}
