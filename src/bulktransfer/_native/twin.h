/* Where memory is not shared: the memory of a pool, kept while bytes of it are on their way, in or out.
 *
 * Knows: which buffer's bytes are moved, and when the memory may go. Must not know: how they travel, rules, Python.
 * Bytes are moved by threads without the GIL, also after the pool's objects are gone. Two promises:
 * - `claim` of a buffer is the channel over which its contents are arriving; who wants to make an INVALID buffer valid
 *   takes it first, so that nobody else does while bytes still come (design rule 8).
 * - `leaving` counts its contents that are not staged to the last byte: until then its memory is not written, taken back
 *   or received into (rule 16).
 */
#ifndef BT_TWIN_H
#define BT_TWIN_H

#include <stdatomic.h>
#include <sys/mman.h>

#include "hold.h"
#include "registry.h"

typedef struct bt_cell {
    _Atomic uint32_t claim;
    _Atomic uint32_t leaving;
    uint64_t fresh; /* bytes from the start that came with what the buffer holds now; the caller has the GIL */
} bt_cell;

typedef struct bt_twin {
    pthread_mutex_t lock;
    bt_registry *registry;
    uint32_t generation;
    uint32_t owners; /* the pool, its mapping, and each job */
    uint32_t jobs;   /* transfers under way */
    uint8_t *base;   /* set when the mapping is let go while there are jobs */
    size_t size;
    int revoke; /* it stays, without access */
    bt_hold *hold; /* set where others use the memory as well: dropped instead */
    bt_cell cells[];
} bt_twin;

static inline bt_twin *bt_twin_new(bt_registry *registry, uint32_t count, uint64_t buffer_size) {
    bt_twin *twin = calloc(1, sizeof *twin + count * sizeof *twin->cells);
    if (!twin) return NULL;
    if (pthread_mutex_init(&twin->lock, NULL)) {
        free(twin);
        return NULL;
    }
    twin->registry = registry;
    twin->generation = registry->generation;
    twin->owners = 1;
    for (uint32_t i = 0; i < count; i++) twin->cells[i].fresh = buffer_size;
    return twin;
}

static inline void bt_twin_retain(bt_twin *twin) {
    pthread_mutex_lock(&twin->lock);
    twin->owners++;
    pthread_mutex_unlock(&twin->lock);
}

/* One owner less, and `jobs` jobs; whoever ends the last job does what was put off. */
static inline void bt_twin_leave(bt_twin *twin, uint32_t jobs) {
    if (twin->generation != twin->registry->generation) return; /* the parent's: another thread may have had the lock */
    pthread_mutex_lock(&twin->lock);
    twin->jobs -= jobs;
    if (jobs && !twin->jobs && twin->base) {
        if (twin->revoke)
            mmap(twin->base, twin->size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
        else bt_registry_unmap(twin->registry, twin->base, twin->size);
        twin->base = NULL;
    }
    bt_hold *hold = jobs && !twin->jobs ? twin->hold : NULL;
    if (hold) twin->hold = NULL;
    uint32_t left = --twin->owners;
    pthread_mutex_unlock(&twin->lock);
    bt_hold_drop(hold);
    if (left) return;
    pthread_mutex_destroy(&twin->lock);
    free(twin);
}

static inline void bt_twin_job(bt_twin *twin) {
    pthread_mutex_lock(&twin->lock);
    twin->owners++;
    twin->jobs++;
    pthread_mutex_unlock(&twin->lock);
}

/* Contents of a buffer leave; bt_twin_left follows. */
static inline void bt_twin_leaving(bt_twin *twin, uint32_t index) {
    bt_twin_job(twin);
    /* relaxed: who counts up has the GIL, as whoever asks */
    atomic_fetch_add_explicit(&twin->cells[index].leaving, 1, memory_order_relaxed);
}

static inline void bt_twin_left(bt_twin *twin, uint32_t index) {
    /* release, with the acquire in bt_is_leaving: the bytes were read before the memory is used again */
    atomic_fetch_sub_explicit(&twin->cells[index].leaving, 1, memory_order_release);
    bt_twin_leave(twin, 1);
}

static inline uint32_t bt_is_leaving(const bt_twin *twin, uint32_t index) {
    return atomic_load_explicit(&twin->cells[index].leaving, memory_order_acquire);
}

/* Claim a buffer for the contents that `channel` brings. 1: claimed, bt_twin_unclaim follows. 0: it is another's, or
 * its own already. */
static inline int bt_twin_claim(bt_twin *twin, uint32_t index, uint32_t channel) {
    uint32_t nobody = 0;
    /* acquire, with the release in bt_twin_unclaim: what the last one made of the buffer is seen */
    if (!atomic_compare_exchange_strong_explicit(&twin->cells[index].claim, &nobody, channel, memory_order_acquire,
                                                 memory_order_acquire))
        return 0;
    bt_twin_job(twin);
    return 1;
}

static inline uint32_t bt_twin_claimed(const bt_twin *twin, uint32_t index) {
    return atomic_load_explicit(&twin->cells[index].claim, memory_order_acquire); /* as above */
}

static inline void bt_twin_unclaim(bt_twin *twin, uint32_t index) {
    atomic_store_explicit(&twin->cells[index].claim, 0, memory_order_release); /* with bt_twin_claim */
    bt_twin_leave(twin, 1);
}

/* The mapping lets go of its memory. 1: somebody still moves bytes; it is unmapped, or loses access, afterwards. */
static inline int bt_twin_put_off(bt_twin *twin, void *base, size_t size, int revoke) {
    pthread_mutex_lock(&twin->lock);
    int busy = twin->jobs != 0;
    if (busy) {
        twin->base = base;
        twin->size = size;
        twin->revoke = revoke;
    }
    pthread_mutex_unlock(&twin->lock);
    return busy;
}

/* The same for memory that others use as well: `hold` is dropped afterwards. */
static inline int bt_twin_put_off_hold(bt_twin *twin, bt_hold *hold) {
    if (twin->generation != twin->registry->generation) return 0; /* as in bt_twin_leave */
    pthread_mutex_lock(&twin->lock);
    int busy = twin->jobs != 0;
    if (busy) twin->hold = hold;
    pthread_mutex_unlock(&twin->lock);
    return busy;
}

#endif
