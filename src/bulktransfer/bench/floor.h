/* What two processes on this machine can do at best: the yardstick that `bulk bench` holds the library against.
 *
 * Knows: C11, POSIX and Linux; memory and descriptors that its caller hands in. Must not know: Python, the library.
 * Spinning calls end by their deadline (ETIMEDOUT); sleeping ones are ended by their caller, from another thread: by
 * shutdown of the socket, or FLOOR_CUT_OFF added to the eventfd. A timeout of their own would make the floor dearer
 * (SO_RCVTIMEO: 8.2 -> 8.7 us for an echo on one core; poll before read: one more system call).
 */
#ifndef BULKTRANSFER_BENCH_FLOOR_H
#define BULKTRANSFER_BENCH_FLOOR_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <assert.h>
#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define FLOOR_LINE_BYTES 128u /* two lines: adjacent ones are fetched in pairs */
#define FLOOR_WINDOW 32u
#define FLOOR_SPINS_PER_LOOK 4096u /* how often a spinning wait looks at the clock */
#define FLOOR_YIELDS_PER_LOOK 64u

/* What the two sides share. Each word has one writer; each pair of release store and acquire load is named. */
struct floor_words {
    _Alignas(FLOOR_LINE_BYTES) _Atomic uint32_t ping;    /* store: line_ping; load: line_pong */
    _Alignas(FLOOR_LINE_BYTES) _Atomic uint32_t pong;    /* store: line_pong; load: line_ping */
    _Alignas(FLOOR_LINE_BYTES) _Atomic uint64_t made;    /* store: ring_produce; load: ring_consume; orders `slot` and the data */
    _Alignas(FLOOR_LINE_BYTES) _Atomic uint64_t used;    /* store: ring_consume; load: ring_produce; orders reuse of a slot */
    _Alignas(FLOOR_LINE_BYTES) uint64_t slot[FLOOR_WINDOW]; /* the ring's entries: which buffer is handed over */
};
static_assert(offsetof(struct floor_words, ping) == 0, "layout of floor_words");
static_assert(offsetof(struct floor_words, pong) == 128, "layout of floor_words");
static_assert(offsetof(struct floor_words, made) == 256, "layout of floor_words");
static_assert(offsetof(struct floor_words, used) == 384, "layout of floor_words");
static_assert(offsetof(struct floor_words, slot) == 512, "layout of floor_words");
static_assert(sizeof(struct floor_words) == 768, "layout of floor_words");

static inline int64_t floor_now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* A wait by spinning. `yield` is for two sides on one core: without it the waiter would burn the time of the other. */
struct floor_wait {
    int64_t until_ns;
    uint32_t spins;
    bool yield;
};

static inline bool floor_wait_goes_on(struct floor_wait *w)
{
    if (w->yield)
        sched_yield();
    if (++w->spins % (w->yield ? FLOOR_YIELDS_PER_LOOK : FLOOR_SPINS_PER_LOOK))
        return true;
    return floor_now() < w->until_ns;
}

static inline void floor_reset(struct floor_words *w)
{
    /* Relaxed: the caller does this while its partner waits on the control socket, whose system calls order it. */
    atomic_store_explicit(&w->ping, 0, memory_order_relaxed);
    atomic_store_explicit(&w->pong, 0, memory_order_relaxed);
    atomic_store_explicit(&w->made, 0, memory_order_relaxed);
    atomic_store_explicit(&w->used, 0, memory_order_relaxed);
}

/* --- a cache line there and back ------------------------------------------------------------------------------- */

static inline int floor_line_ping(struct floor_words *w, uint32_t rounds, bool yield, int64_t until_ns, int64_t *times_ns)
{
    struct floor_wait wait = {.until_ns = until_ns, .yield = yield};
    for (uint32_t i = 1; i <= rounds; i++) {
        int64_t start_ns = floor_now();
        atomic_store_explicit(&w->ping, i, memory_order_release);
        while (atomic_load_explicit(&w->pong, memory_order_acquire) != i)
            if (!floor_wait_goes_on(&wait))
                return ETIMEDOUT;
        times_ns[i - 1] = floor_now() - start_ns;
    }
    return 0;
}

static inline int floor_line_pong(struct floor_words *w, uint32_t rounds, bool yield, int64_t until_ns)
{
    struct floor_wait wait = {.until_ns = until_ns, .yield = yield};
    for (uint32_t i = 1; i <= rounds; i++) {
        while (atomic_load_explicit(&w->ping, memory_order_acquire) != i)
            if (!floor_wait_goes_on(&wait))
                return ETIMEDOUT;
        atomic_store_explicit(&w->pong, i, memory_order_release);
    }
    return 0;
}

/* --- one byte over a socket there and back, sleeping ------------------------------------------------------------ */

static inline int floor_socket_put(int fd)
{
    char byte = 1;
    while (send(fd, &byte, 1, MSG_NOSIGNAL) != 1)
        if (errno != EINTR)
            return errno;
    return 0;
}

static inline int floor_socket_get(int fd)
{
    char byte;
    for (;;) {
        ssize_t got = recv(fd, &byte, 1, 0);
        if (got == 1)
            return 0;
        if (got == 0)
            return ECONNRESET;
        if (errno != EINTR)
            return errno;
    }
}

static inline void floor_socket_stop(int fd)
{
    shutdown(fd, SHUT_RDWR);
}

static inline int floor_socket_ping(int fd, uint32_t rounds, int64_t *times_ns)
{
    int error = 0;
    for (uint32_t i = 0; !error && i < rounds; i++) {
        int64_t start_ns = floor_now();
        error = floor_socket_put(fd);
        if (!error)
            error = floor_socket_get(fd);
        times_ns[i] = floor_now() - start_ns;
    }
    return error;
}

static inline int floor_socket_pong(int fd, uint32_t rounds)
{
    int error = 0;
    for (uint32_t i = 0; !error && i < rounds; i++) {
        error = floor_socket_get(fd);
        if (!error)
            error = floor_socket_put(fd);
    }
    return error;
}

/* --- an eventfd each way, sleeping ------------------------------------------------------------------------------- */

#define FLOOR_CUT_OFF ((uint64_t)1 << 32)

static inline int floor_event_put(int fd)
{
    uint64_t one = 1;
    while (write(fd, &one, sizeof one) != sizeof one)
        if (errno != EINTR)
            return errno;
    return 0;
}

static inline int floor_event_get(int fd)
{
    uint64_t value;
    while (read(fd, &value, sizeof value) != sizeof value)
        if (errno != EINTR)
            return errno;
    return value < FLOOR_CUT_OFF ? 0 : ETIMEDOUT;
}

static inline int floor_event_ping(int out_fd, int in_fd, uint32_t rounds, int64_t *times_ns)
{
    int error = 0;
    for (uint32_t i = 0; !error && i < rounds; i++) {
        int64_t start_ns = floor_now();
        error = floor_event_put(out_fd);
        if (!error)
            error = floor_event_get(in_fd);
        times_ns[i] = floor_now() - start_ns;
    }
    return error;
}

static inline int floor_event_pong(int out_fd, int in_fd, uint32_t rounds)
{
    int error = 0;
    for (uint32_t i = 0; !error && i < rounds; i++) {
        error = floor_event_get(in_fd);
        if (!error)
            error = floor_event_put(out_fd);
    }
    return error;
}

/* --- a ring of 32: hand-over only where slot_bytes is 0, else the producer fills and the consumer sums ---------- */

static inline void floor_fill(unsigned char *at, size_t bytes, uint64_t value)
{
    uint64_t *words = (uint64_t *)(void *)at;
    for (size_t j = 0; j < bytes / sizeof *words; j++)
        words[j] = value;
}

static inline uint64_t floor_sum(const unsigned char *at, size_t bytes)
{
    const uint64_t *words = (const uint64_t *)(const void *)at;
    uint64_t sum = 0;
    for (size_t j = 0; j < bytes / sizeof *words; j++)
        sum += words[j];
    return sum;
}

/* Buffer i of `count` gets the value i. Done when the consumer has used the last one. */
static inline int floor_ring_produce(struct floor_words *w, unsigned char *slots, size_t slot_bytes, uint64_t count,
                                     bool yield, int64_t until_ns, int64_t *elapsed_ns)
{
    struct floor_wait wait = {.until_ns = until_ns, .yield = yield};
    uint64_t used = 0; /* what is known of w->used: looked up only when the ring seems full */
    int64_t start_ns = floor_now();
    for (uint64_t i = 0; i < count; i++) {
        while (i - used >= FLOOR_WINDOW) {
            used = atomic_load_explicit(&w->used, memory_order_acquire);
            if (i - used >= FLOOR_WINDOW && !floor_wait_goes_on(&wait))
                return ETIMEDOUT;
        }
        if (slot_bytes)
            floor_fill(slots + i % FLOOR_WINDOW * slot_bytes, slot_bytes, i);
        w->slot[i % FLOOR_WINDOW] = i;
        atomic_store_explicit(&w->made, i + 1, memory_order_release);
    }
    while (atomic_load_explicit(&w->used, memory_order_acquire) != count)
        if (!floor_wait_goes_on(&wait))
            return ETIMEDOUT;
    *elapsed_ns = floor_now() - start_ns;
    return 0;
}

/* `sum`: of all words of all buffers, or, with slot_bytes 0, of the entries. */
static inline int floor_ring_consume(struct floor_words *w, const unsigned char *slots, size_t slot_bytes, uint64_t count,
                                     bool yield, int64_t until_ns, uint64_t *sum)
{
    struct floor_wait wait = {.until_ns = until_ns, .yield = yield};
    uint64_t made = 0;
    *sum = 0;
    for (uint64_t i = 0; i < count; i++) {
        while (made <= i) {
            made = atomic_load_explicit(&w->made, memory_order_acquire);
            if (made <= i && !floor_wait_goes_on(&wait))
                return ETIMEDOUT;
        }
        uint64_t entry = w->slot[i % FLOOR_WINDOW];
        *sum += slot_bytes ? floor_sum(slots + entry % FLOOR_WINDOW * slot_bytes, slot_bytes) : entry;
        atomic_store_explicit(&w->used, i + 1, memory_order_release);
    }
    return 0;
}

/* --- one core alone ---------------------------------------------------------------------------------------------- */

/* Each of times_ns is for a run of `inner` copies, so that small copies do not time the clock. */
static inline int floor_copy(size_t bytes, uint32_t inner, uint32_t repeats, int64_t *times_ns)
{
    unsigned char *from = NULL, *to = NULL;
    int error = posix_memalign((void **)&from, 4096, bytes);
    if (!error)
        error = posix_memalign((void **)&to, 4096, bytes);
    if (!error) {
        memset(from, 1, bytes);
        memset(to, 2, bytes);
        for (uint32_t i = 0; i < repeats; i++) {
            int64_t start_ns = floor_now();
            for (uint32_t j = 0; j < inner; j++) {
                memcpy(to, from, bytes);
                __asm__ volatile("" : : "r"(to), "r"(from) : "memory"); /* no two copies may become one */
            }
            times_ns[i] = floor_now() - start_ns;
        }
    }
    free(from);
    free(to);
    return error;
}

/* The kernel kills this process when the thread that started it ends; false: `parent` is gone already. */
static inline bool floor_die_with_parent(pid_t parent)
{
    return prctl(PR_SET_PDEATHSIG, SIGKILL) == 0 && getppid() == parent;
}

#endif
