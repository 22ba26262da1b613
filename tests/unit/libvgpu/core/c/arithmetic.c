/* SPDX-License-Identifier: Apache-2.0
 *
 * The core's arithmetic, without files, driver or preloading.
 */
#include "check.h"
#include "core/clock.h"
#include "core/estimator.h"
#include "core/limiter.h"
#include "core/ptrmap.h"
#include "core/quota.h"

#include <stdint.h>

enum { KIND_POINTER = 1, KIND_ARRAY }; /* of a front-end */

static struct vgpu_books books;
static struct vgpu_slot *slot = &books.slots[0];

static void a_reservation_that_fits_exactly_is_granted_and_one_byte_more_is_not(void) {
    CHECK(vgpu_quota_reserve(&books, slot, 1000, 600), VGPU_OK);
    CHECK(vgpu_quota_reserve(&books, slot, 1000, 401), VGPU_OVER);
    CHECK(vgpu_quota_reserve(&books, slot, 1000, 400), VGPU_OK);
    CHECK(vgpu_quota_reserve(&books, slot, 1000, 1), VGPU_OVER);
    CHECK(vgpu_quota_used(&books), 1000);
    CHECK(slot->reserved_bytes, 1000);
    CHECK(slot->inflight_bytes, 0);
    CHECK(books.peak_bytes, 1000);
}

static void a_size_that_overflows_is_refused(void) {
    CHECK(vgpu_quota_reserve(&books, slot, 1000, 10), VGPU_OK);
    CHECK(vgpu_quota_reserve(&books, slot, 1000, UINT64_MAX), VGPU_OVER);
    CHECK(vgpu_quota_reserve(&books, slot, UINT64_MAX >> 1, (UINT64_MAX >> 1) - 9), VGPU_OVER);
    CHECK(vgpu_quota_used(&books), 10);
}

static void a_limit_below_what_is_in_use_denies_and_takes_nothing_away(void) {
    uint64_t credited;
    CHECK(vgpu_quota_reserve(&books, slot, 1000, 800), VGPU_OK);
    CHECK(vgpu_quota_reserve(&books, slot, 500, 1), VGPU_OVER);
    CHECK(vgpu_quota_used(&books), 800);
    CHECK(vgpu_quota_credit(&books, slot, 301, &credited), VGPU_OK);
    CHECK(vgpu_quota_reserve(&books, slot, 500, 1), VGPU_OK);
}

static void a_process_gives_back_no_more_than_it_has(void) {
    uint64_t credited;
    CHECK(vgpu_quota_reserve(&books, slot, 1000, 100), VGPU_OK);
    CHECK(vgpu_quota_reserve(&books, &books.slots[1], 1000, 300), VGPU_OK);
    CHECK(vgpu_quota_credit(&books, slot, 250, &credited), VGPU_OK);
    CHECK(credited, 100);
    CHECK(vgpu_quota_used(&books), 300);
}

static void damaged_books_never_wrap_below_zero(void) {
    uint64_t credited;
    CHECK(vgpu_quota_reserve(&books, slot, 1000, 100), VGPU_OK);
    books.used = 40; /* a tenant wrote into its books */
    CHECK(vgpu_quota_credit(&books, slot, 100, &credited), VGPU_OK);
    CHECK(vgpu_quota_used(&books), 0);
}

static void nothing_changes_while_somebody_counts_anew(void) {
    uint64_t credited;
    CHECK(vgpu_quota_reserve(&books, slot, 1000, 100), VGPU_OK);
    books.used |= VGPU_RECOUNT;
    CHECK(vgpu_quota_reserve(&books, slot, 1000, 1), VGPU_BUSY);
    CHECK(vgpu_quota_credit(&books, slot, 1, &credited), VGPU_BUSY);
    CHECK(slot->inflight_bytes, 0);
    CHECK(slot->reserved_bytes, 100);
    CHECK(vgpu_quota_used(&books), 100);
}

static void a_bucket_fills_with_its_rate_and_no_further_than_its_burst(void) {
    vgpu_bucket_refill(&books, 1000000000, 25, false);
    CHECK(books.bucket_ns, 0); /* new: level */
    vgpu_bucket_refill(&books, 1000000000 + 16 * 1000 * 1000, 25, false);
    CHECK(books.bucket_ns, 4 * 1000 * 1000);
    vgpu_bucket_refill(&books, UINT64_C(3600) * 1000000000, 25, false);
    CHECK(books.bucket_ns, VGPU_KEEP_NS / 4);
}

static void debt_is_kept_in_full_and_waited_off_at_the_rate(void) {
    vgpu_bucket_refill(&books, 1000000000, 25, false);
    int64_t level = vgpu_bucket_draw(&books, INT64_C(10) * 1000000000);
    CHECK(level, INT64_C(-10) * 1000000000);
    CHECK(vgpu_bucket_wait_ns(level, 25), INT64_C(40) * 1000000000);
    vgpu_bucket_refill(&books, UINT64_C(31) * 1000000000, 25, false);
    CHECK(vgpu_bucket_wait_ns(books.bucket_ns, 25), INT64_C(10) * 1000000000);
    CHECK(vgpu_bucket_wait_ns(books.bucket_ns, 50), INT64_C(5) * 1000000000);
}

static void a_clock_that_went_back_starts_the_bucket_anew(void) {
    vgpu_bucket_refill(&books, UINT64_C(5000) * 1000000000, 25, false);
    vgpu_bucket_draw(&books, 1000);
    vgpu_bucket_refill(&books, UINT64_C(7) * 1000000000, 25, false);
    CHECK(books.bucket_ns, 0);
    vgpu_bucket_refill(&books, UINT64_C(7) * 1000000000 + 1000 * 1000, 25, false);
    CHECK(books.bucket_ns, 250 * 1000);
}

static void many_small_refills_add_up_to_one_large(void) {
    vgpu_bucket_refill(&books, 1000000000, 33, false);
    for (uint64_t i = 1; i <= 200; i++)
        vgpu_bucket_refill(&books, 1000000000 + i * 77777, 33, false);
    int64_t expected = 200 * 77777LL * 33 / 100;
    CHECK(expected - books.bucket_ns >= 0 && expected - books.bucket_ns <= 200, 1);
}

static void what_a_share_is_owed_stays_while_its_work_waits_for_the_gpu(void) {
    uint64_t now = 1000000000;
    vgpu_bucket_refill(&books, now, 50, true);
    vgpu_bucket_refill(&books, now += 100 * 1000 * 1000, 50, true);
    CHECK(books.bucket_ns, 50 * 1000 * 1000);
    vgpu_bucket_refill(&books, now += UINT64_C(5000) * 1000 * 1000, 50, true);
    CHECK(books.bucket_ns, VGPU_OWED_NS / 2);
    vgpu_bucket_refill(&books, now += 1000 * 1000, 50, false);
    CHECK(books.bucket_ns, VGPU_OWED_NS / 2);
    vgpu_bucket_refill(&books, now += 100 * 1000 * 1000, 50, false); /* idle */
    CHECK(books.bucket_ns, VGPU_KEEP_NS / 2);
}

/* Launch and measure one; returns what is owed. */
static int64_t measured(struct vgpu_estimate *estimate, uint64_t gpu_ns) {
    bool sample;
    vgpu_estimate_launch(estimate, &sample);
    struct vgpu_group group = vgpu_estimate_group(estimate);
    return vgpu_estimate_measured(estimate, &group, gpu_ns, false);
}

static uint64_t estimate_ns(struct vgpu_estimate *estimate) {
    bool sample;
    return vgpu_estimate_launch(estimate, &sample);
}

static void new_work_is_measured_and_paid_for_once_it_is_known(void) {
    CHECK(vgpu_estimate_find(4711) == NULL, 1);
    struct vgpu_estimate *estimate = vgpu_estimate_of(4711);
    CHECK(vgpu_estimate_find(4711) == estimate, 1);
    bool sample;
    CHECK(vgpu_estimate_launch(estimate, &sample), 0);
    CHECK(sample, 1);
    CHECK(vgpu_estimate_unknown(estimate), 0);
    CHECK(vgpu_estimate_launch(estimate, &sample), 0);
    CHECK(vgpu_estimate_unknown(estimate), 1);
    struct vgpu_group group = vgpu_estimate_group(estimate);
    CHECK(vgpu_estimate_measured(estimate, &group, 5000, false), 10000);
    CHECK(vgpu_estimate_unknown(estimate), 0);
    CHECK(vgpu_estimate_launch(estimate, &sample), 5000);
    group = vgpu_estimate_group(estimate);
    CHECK(vgpu_estimate_measured(estimate, &group, 5000, false), 0);
}

static void an_estimate_is_the_least_pair_of_late_and_what_was_charged_above_it_comes_back(void) {
    struct vgpu_estimate *estimate = vgpu_estimate_of(4711);
    CHECK(measured(estimate, 5000), 5000); /* with a neighbour's slice in it */
    measured(estimate, 3000);
    CHECK(measured(estimate, 3000), 3 * 3000 - 4000 * 2 - 4000);
    CHECK(estimate_ns(estimate), 3000);
}

static void first_measurements_full_of_neighbours_are_forgotten_and_paid_back_once_there_are_better_ones(void) {
    struct vgpu_estimate *estimate = vgpu_estimate_of(4711);
    int64_t paid = 0;
    for (int i = 0; i < 32; i++) {
        CHECK(vgpu_estimate_doubtful(estimate), i < VGPU_FIRST_SAMPLES);
        paid += (int64_t)estimate_ns(estimate);
        struct vgpu_group group = vgpu_estimate_group(estimate);
        paid += vgpu_estimate_measured(estimate, &group, i == 0 ? 64000000 : 1000000, true);
    }
    CHECK(estimate_ns(estimate), 1000000);
    CHECK(paid, 32 * 1000000);
}

static void long_work_is_taken_for_its_mean_while_the_agent_corrects(void) {
    struct vgpu_estimate *estimate = vgpu_estimate_of(4711);
    int64_t paid = 0;
    for (int i = 0; i < 20; i++) {
        paid += (int64_t)estimate_ns(estimate);
        struct vgpu_group group = vgpu_estimate_group(estimate);
        paid += vgpu_estimate_measured(estimate, &group, (i % 4 == 0 ? 30 : 10) * UINT64_C(1000000), true);
    }
    CHECK(estimate_ns(estimate), 15000000);
    CHECK(paid, 20 * 15000000);
}

static struct vgpu_limits limits = {.ceiling_percent = 50};
static struct vgpu_share share = {.limits = &limits, .books = &books, .slot = &books.slots[0]};
static struct vgpu_device device = {.count = 1, .shares = {&share}};

static void who_is_in_doubt_waits_a_while_for_a_small_debt_and_for_all_that_is_more(void) {
    const uint64_t ms = 1000000;
    vgpu_limiter_wait(&device, UINT64_MAX); /* the clock starts */
    books.bucket_ns = -(int64_t)(VGPU_DOUBT_NS - 60 * ms);
    uint64_t waited = vgpu_limiter_wait(&device, 20 * ms);
    CHECK(waited >= 20 * ms && waited < 300 * ms, 1);
    CHECK(books.bucket_ns < -100 * (int64_t)ms, 1); /* the debt stays */
    books.bucket_ns = -(int64_t)(VGPU_DOUBT_NS + 50 * ms);
    CHECK(vgpu_limiter_wait(&device, 20 * ms) >= 90 * ms, 1);
    books.bucket_ns = -50 * (int64_t)ms;
    CHECK(vgpu_limiter_wait(&device, UINT64_MAX) >= 90 * ms, 1);
}

static void who_had_all_of_the_gpu_is_owed_nothing_when_the_rate_falls(void) {
    limits.ceiling_percent = 100;
    vgpu_limiter_keep(&device);
    vgpu_sleep_ns(5 * 1000 * 1000);
    vgpu_limiter_keep(&device);
    CHECK(books.bucket_ns, 0);
    books.bucket_ns = VGPU_OWED_NS; /* at a rate of nearly all */
    vgpu_bucket_refill(&books, 1000000000, 20, true);
    vgpu_bucket_refill(&books, 1001000000, 20, true);
    CHECK(books.bucket_ns, VGPU_OWED_NS / 5);
}

static void work_that_is_very_long_each_time_is_not_in_doubt(void) {
    struct vgpu_estimate *estimate = vgpu_estimate_of(4711);
    measured(estimate, 30000000);
    CHECK(vgpu_estimate_doubtful(estimate), 1);
    measured(estimate, 30000000);
    CHECK(vgpu_estimate_doubtful(estimate), 0);
    vgpu_estimate_renew(estimate);
    CHECK(vgpu_estimate_doubtful(estimate), 1);
    measured(estimate, 300000000);
    CHECK(vgpu_estimate_doubtful(estimate), 0);
}

static void what_the_agent_settles_reaches_the_bucket_once_and_a_second_of_it_at_most(void) {
    const int64_t ms = 1000000;
    limits.ceiling_percent = 50;
    books.bucket_ns = -50 * ms;
    limits.settled_ns = 49 * ms;
    CHECK(vgpu_limiter_wait(&device, UINT64_MAX) < 90 * (uint64_t)ms, 1); /* of 100 */
    CHECK(books.settled_ns, 49 * ms);
    books.bucket_ns = -10 * ms;
    vgpu_limiter_keep(&device);
    CHECK(books.bucket_ns < 0, 1); /* not again */
    books.bucket_ns = 0;
    limits.settled_ns = -5000 * ms; /* limits that were written anew */
    vgpu_limiter_keep(&device);
    CHECK(books.bucket_ns < -990 * ms && books.bucket_ns >= -1000 * ms, 1);
    CHECK(books.settled_ns, -5000 * ms);
}

static void an_estimate_follows_work_that_grows(void) {
    struct vgpu_estimate *estimate = vgpu_estimate_of(4711);
    for (int i = 0; i < 4; i++)
        measured(estimate, 3000);
    for (int i = 0; i < 64; i++)
        measured(estimate, 8000);
    CHECK(estimate_ns(estimate), 8000);
}

static void work_in_turns_long_and_short_is_charged_for_what_it_takes(void) {
    struct vgpu_estimate *estimate = vgpu_estimate_of(4711);
    int64_t paid = 0;
    for (int i = 0; i < 1000; i++) {
        bool sample;
        paid += (int64_t)vgpu_estimate_launch(estimate, &sample);
        struct vgpu_group group = vgpu_estimate_group(estimate);
        paid += vgpu_estimate_measured(estimate, &group, i % 2 ? 1800000 : 200000, false);
    }
    CHECK(paid > 990 * 1000000 && paid < 1010 * 1000000, 1);
}

static void work_that_varies_wildly_is_charged_for_half_of_its_mean_at_least(void) {
    struct vgpu_estimate *estimate = vgpu_estimate_of(4711);
    for (int i = 0; i < 64; i++)
        measured(estimate, i % 4 == 0 ? 700000 : 100000); /* mean 250000 */
    CHECK(estimate_ns(estimate), 125000);
}

static void a_measurement_stands_for_the_launches_since_the_one_before(void) {
    struct vgpu_estimate *estimate = vgpu_estimate_of(4711);
    bool sample;
    for (int i = 0; i < 8; i++)
        measured(estimate, 1000);
    for (int i = 0; i < 9; i++)
        vgpu_estimate_launch(estimate, &sample);
    struct vgpu_group group = vgpu_estimate_group(estimate), none = {0};
    CHECK(group.launches, 9);
    CHECK(group.charged_ns, 9000);
    vgpu_estimate_ungroup(estimate, &group); /* its events failed */
    CHECK(vgpu_estimate_group(estimate).launches, 9);
    CHECK(vgpu_estimate_measured(estimate, &none, 1000, false), 0);
}

static void known_short_work_is_measured_seldom_and_in_pairs(void) {
    struct vgpu_estimate *estimate = vgpu_estimate_of(4711);
    bool sample, before = false;
    for (int i = 0; i < 8; i++)
        measured(estimate, 100);
    int samples = 0, pairs = 0;
    for (int i = 0; i < 1024 * 100; i++) {
        vgpu_estimate_launch(estimate, &sample);
        if (sample)
            vgpu_estimate_group(estimate);
        samples += sample;
        pairs += sample && before;
        before = sample;
    }
    CHECK(samples >= 90 && samples <= 200, 1);
    CHECK(samples - 2 * pairs >= -1 && samples - 2 * pairs <= 1, 1);
}

static void launches_may_be_counted_in_a_row_up_to_the_next_to_be_measured(void) {
    struct vgpu_estimate *estimate = vgpu_estimate_of(4711);
    bool sample;
    CHECK(vgpu_estimate_room(estimate), 0); /* new */
    for (int i = 0; i < 40; i++)
        measured(estimate, 10 * 1000);
    for (sample = false; !sample;) {
        uint32_t room = vgpu_estimate_room(estimate);
        CHECK(room <= 40, 1);
        vgpu_estimate_count(estimate, room, room * 10 * 1000);
        CHECK(vgpu_estimate_room(estimate), 0);
        vgpu_estimate_launch(estimate, &sample);
    }
}

static void known_long_work_is_measured_every_time(void) {
    struct vgpu_estimate *estimate = vgpu_estimate_of(4711);
    bool sample;
    for (int i = 0; i < 40; i++) {
        measured(estimate, 400 * 1000);
        vgpu_estimate_launch(estimate, &sample);
        CHECK(sample, 1);
    }
}

static void renewed_work_is_a_guess_until_it_is_measured(void) {
    struct vgpu_estimate *estimate = vgpu_estimate_of(4711);
    for (int i = 0; i < 40; i++)
        measured(estimate, 1000);
    vgpu_estimator_renew();
    bool sample;
    CHECK(vgpu_estimate_launch(estimate, &sample), 1000);
    CHECK(sample, 1);
    vgpu_estimate_launch(estimate, &sample);
    CHECK(vgpu_estimate_unknown(estimate), 1);
    struct vgpu_group group = vgpu_estimate_group(estimate);
    group.launches = 2;
    group.charged_ns = 2000;
    CHECK(vgpu_estimate_measured(estimate, &group, 5000000, false), 2 * 5000000 - 2000);
}

static void more_kinds_of_work_than_the_table_holds_share_estimates(void) {
    bool sample;
    for (uint64_t key = 1; key < 20000; key++)
        vgpu_estimate_launch(vgpu_estimate_of(key), &sample);
    CHECK(vgpu_estimate_of(19999) != NULL, 1);
}

static struct vgpu_charge charge_of(uint64_t key) {
    return (struct vgpu_charge){.key = key, .kind = KIND_POINTER, .bytes = key * 3, .owner = (void *)(key % 2)};
}

static void the_table_finds_each_of_100000_entries_and_nothing_else(void) {
    struct vgpu_charge found, replaced;
    for (uint64_t i = 1; i <= 100000; i++) {
        struct vgpu_charge charge = charge_of(0x700000000000 + i * 512);
        CHECK(vgpu_ptrmap_put(&charge, &replaced), 1);
        CHECK(replaced.bytes, 0);
    }
    CHECK(vgpu_ptrmap_take(0x700000000001, KIND_POINTER, &found), 0);
    CHECK(vgpu_ptrmap_take(0x700000000200, KIND_ARRAY, &found), 0);
    for (uint64_t i = 100000; i >= 1; i--) {
        uint64_t key = 0x700000000000 + i * 512;
        CHECK(vgpu_ptrmap_take(key, KIND_POINTER, &found), 1);
        CHECK(found.bytes, key * 3);
        CHECK(vgpu_ptrmap_take(key, KIND_POINTER, &found), 0);
    }
}

static void the_table_survives_millions_of_changes_with_few_live_entries(void) {
    struct vgpu_charge found, replaced;
    for (uint64_t i = 1; i <= 2000000; i++) {
        struct vgpu_charge charge = charge_of(i * 16);
        CHECK(vgpu_ptrmap_put(&charge, &replaced), 1);
        if (i > 100)
            CHECK(vgpu_ptrmap_take((i - 100) * 16, KIND_POINTER, &found), 1);
    }
}

static void an_old_charge_of_a_key_comes_back_when_it_is_replaced(void) {
    struct vgpu_charge replaced, charge = charge_of(64);
    vgpu_ptrmap_put(&charge, &replaced);
    charge.bytes = 5;
    CHECK(vgpu_ptrmap_put(&charge, &replaced), 1);
    CHECK(replaced.bytes, 192);
}

static void the_end_of_an_owner_takes_all_of_its_entries_and_no_other(void) {
    struct vgpu_charge found, replaced;
    int count = 0;
    for (uint64_t i = 1; i <= 999; i++) {
        struct vgpu_charge charge = charge_of(i);
        vgpu_ptrmap_put(&charge, &replaced);
    }
    while (vgpu_ptrmap_take_owned((void *)1, &found))
        count++;
    CHECK(count, 500);
    CHECK(vgpu_ptrmap_take(2, KIND_POINTER, &found), 1);
    CHECK(vgpu_ptrmap_take(3, KIND_POINTER, &found), 0);
}

static void what_an_owner_has_is_set_aside_while_its_keys_may_be_anothers(void) {
    struct vgpu_charge found, replaced;
    int count = 0;
    char keeper;
    for (uint64_t i = 1; i <= 999; i++) {
        struct vgpu_charge charge = charge_of(i);
        vgpu_ptrmap_put(&charge, &replaced);
    }
    vgpu_ptrmap_set_aside((void *)1, &keeper);
    CHECK(vgpu_ptrmap_take(3, KIND_POINTER, &found), 0);
    CHECK(vgpu_ptrmap_take(4, KIND_POINTER, &found), 1);
    for (uint64_t i = 3; i <= 20003; i += 2) { /* among them the keys of what is set aside, and the table grows */
        struct vgpu_charge charge = {.key = i, .kind = KIND_POINTER, .bytes = 7, .owner = (void *)2};
        CHECK(vgpu_ptrmap_put(&charge, &replaced), 1);
        CHECK(replaced.bytes, 0);
    }
    CHECK(vgpu_ptrmap_take(5, KIND_POINTER, &found), 1);
    CHECK(found.bytes, 7);
    CHECK(vgpu_ptrmap_take(5, KIND_POINTER, &found), 0);
    while (vgpu_ptrmap_take_owned(&keeper, &found))
        count += found.bytes == found.key * 3;
    CHECK(count, 500);
    CHECK(vgpu_ptrmap_take(7, KIND_POINTER, &found), 1);
    CHECK(found.bytes, 7);
}

static void what_was_set_aside_is_found_again_when_its_owner_lives_on(void) {
    struct vgpu_charge found, replaced, charge = charge_of(3);
    char keeper;
    vgpu_ptrmap_put(&charge, &replaced);
    vgpu_ptrmap_set_aside((void *)1, &keeper);
    CHECK(vgpu_ptrmap_look(3, KIND_POINTER, &found), 0);
    vgpu_ptrmap_put_back(&keeper, (void *)1);
    CHECK(vgpu_ptrmap_take_owned(&keeper, &found), 0);
    CHECK(vgpu_ptrmap_take_owned((void *)1, &found), 1);
    CHECK(found.bytes, 9);
}

#define CASE(name) {#name, name}
static const struct test_case cases[] = {
    CASE(a_reservation_that_fits_exactly_is_granted_and_one_byte_more_is_not),
    CASE(a_size_that_overflows_is_refused),
    CASE(a_limit_below_what_is_in_use_denies_and_takes_nothing_away),
    CASE(a_process_gives_back_no_more_than_it_has),
    CASE(damaged_books_never_wrap_below_zero),
    CASE(nothing_changes_while_somebody_counts_anew),
    CASE(a_bucket_fills_with_its_rate_and_no_further_than_its_burst),
    CASE(debt_is_kept_in_full_and_waited_off_at_the_rate),
    CASE(a_clock_that_went_back_starts_the_bucket_anew),
    CASE(many_small_refills_add_up_to_one_large),
    CASE(what_a_share_is_owed_stays_while_its_work_waits_for_the_gpu),
    CASE(new_work_is_measured_and_paid_for_once_it_is_known),
    CASE(an_estimate_is_the_least_pair_of_late_and_what_was_charged_above_it_comes_back),
    CASE(first_measurements_full_of_neighbours_are_forgotten_and_paid_back_once_there_are_better_ones),
    CASE(long_work_is_taken_for_its_mean_while_the_agent_corrects),
    CASE(who_is_in_doubt_waits_a_while_for_a_small_debt_and_for_all_that_is_more),
    CASE(who_had_all_of_the_gpu_is_owed_nothing_when_the_rate_falls),
    CASE(work_that_is_very_long_each_time_is_not_in_doubt),
    CASE(what_the_agent_settles_reaches_the_bucket_once_and_a_second_of_it_at_most),
    CASE(an_estimate_follows_work_that_grows),
    CASE(work_in_turns_long_and_short_is_charged_for_what_it_takes),
    CASE(work_that_varies_wildly_is_charged_for_half_of_its_mean_at_least),
    CASE(a_measurement_stands_for_the_launches_since_the_one_before),
    CASE(known_short_work_is_measured_seldom_and_in_pairs),
    CASE(launches_may_be_counted_in_a_row_up_to_the_next_to_be_measured),
    CASE(known_long_work_is_measured_every_time),
    CASE(renewed_work_is_a_guess_until_it_is_measured),
    CASE(more_kinds_of_work_than_the_table_holds_share_estimates),
    CASE(the_table_finds_each_of_100000_entries_and_nothing_else),
    CASE(the_table_survives_millions_of_changes_with_few_live_entries),
    CASE(an_old_charge_of_a_key_comes_back_when_it_is_replaced),
    CASE(the_end_of_an_owner_takes_all_of_its_entries_and_no_other),
    CASE(what_an_owner_has_is_set_aside_while_its_keys_may_be_anothers),
    CASE(what_was_set_aside_is_found_again_when_its_owner_lives_on),
};

int main(int argc, char **argv) {
    return run_cases(cases, sizeof cases / sizeof cases[0], argc, argv);
}
