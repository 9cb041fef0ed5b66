/* Frames made ahead of need: memory of its own for the contents of one buffer, which nobody else has seen.
 *
 * Knows: how a frame is made (huge pages where they are to be had), which sizes are asked for, what making one costs.
 * Must not know: pools, rules, or Python. A frame that another domain has seen never comes here (design section 5).
 * One helper thread a process, started with the first frame that is taken, makes the next ones of that size; shelves that
 * nobody takes from are cleared after a while, and all of them when the last pool with frames is gone.
 */
#ifndef BT_FRAME_CACHE_H
#define BT_FRAME_CACHE_H

#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <time.h>

#include "memory.h"
#include "registry.h"

#define BT_SHELVES 4
#define BT_SHELF_ROOM 4
#define BT_SHELF_BYTES ((size_t)64 << 20) /* ahead of need, of one size */
#define BT_SHELF_IDLE_NS UINT64_C(1000000000)
#define BT_COPY_SIZE ((size_t)4 << 20)

typedef struct bt_shelf {
    size_t size; /* of each frame; 0: unused */
    uint64_t taken_ns;
    uint64_t cost_ns; /* what making one took; 0: none was made */
    uint32_t count;
    int fds[BT_SHELF_ROOM];
} bt_shelf;

typedef struct bt_frame_cache {
    pthread_mutex_t lock;
    pthread_cond_t work;
    bt_registry *registry;
    uint32_t generation;
    uint32_t users; /* pools with frames */
    uint32_t kept;  /* descriptors of frames that buffers hold; the caller has the GIL */
    uint32_t room;  /* how many there may be: a part of what this process may have */
    int running;
    uint64_t copy_ns; /* what copying BT_COPY_SIZE takes here; 0: not measured yet. The caller has the GIL */
    bt_shelf shelves[BT_SHELVES];
} bt_frame_cache;

static inline uint64_t bt_cache_now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static inline bt_frame_cache *bt_frame_cache_new(bt_registry *registry) {
    struct rlimit files;
    bt_frame_cache *c = calloc(1, sizeof *c);
    if (c && (pthread_mutex_init(&c->lock, NULL) || pthread_cond_init(&c->work, NULL))) {
        free(c);
        return NULL;
    }
    if (!c) return NULL;
    c->registry = registry;
    c->generation = registry->generation;
    c->room = 4096;
    if (getrlimit(RLIMIT_NOFILE, &files) == 0 && files.rlim_cur / 4 < c->room) c->room = (uint32_t)(files.rlim_cur / 4);
    return c;
}

/* A new frame and its mapping, both in the registry: a fork at any moment leaves the child neither. */
static inline int bt_frame_begin(bt_registry *r, size_t size, void **at) {
    pthread_mutex_lock(&r->lock);
    int fd = memfd_create("bulktransfer-frame", MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_NOEXEC_SEAL);
    if (fd < 0 && errno == EINVAL) fd = memfd_create("bulktransfer-frame", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    int result = fd < 0 || ftruncate(fd, (off_t)size) < 0 ? -errno : 0;
    if (result == 0 && size >= BT_HUGE) result = bt_memory_map(fd, size, PROT_READ | PROT_WRITE, at);
    if (result == 0 && *at && bt_registry_put_range(r, *at, size) < 0) result = -ENOMEM;
    if (result == 0 && bt_registry_put_fd(r, fd) < 0) result = -ENOMEM;
    pthread_mutex_unlock(&r->lock);
    if (result == 0) return fd;
    if (*at) bt_registry_unmap(r, *at, size);
    if (fd >= 0) close(fd);
    return result;
}

/* A new frame: zeros, every page of it there. It can shrink until it is sealed. The descriptor, or -errno. */
static inline int bt_frame_make(bt_registry *r, size_t size) {
    void *at = NULL;
    int fd = bt_frame_begin(r, size, &at);
    if (fd < 0) return fd;
    int result = bt_memory_reserve(fd, at, size, at != NULL);
    if (at) bt_registry_unmap(r, at, size);
    if (result < 0) bt_registry_close(r, fd);
    return result < 0 ? result : fd;
}

static inline void bt_shelf_clear(bt_frame_cache *c, bt_shelf *shelf) {
    while (shelf->count) bt_registry_close(c->registry, shelf->fds[--shelf->count]);
}

/* How many of a size are kept ahead of need. */
static inline uint32_t bt_shelf_target(const bt_shelf *shelf) {
    size_t fit = shelf->size ? BT_SHELF_BYTES / shelf->size : 0;
    return fit > BT_SHELF_ROOM ? BT_SHELF_ROOM : (uint32_t)fit;
}

/* The shelf for a size; where all are in use, the one that was used least lately. With `lock` held. */
static inline bt_shelf *bt_cache_shelf(bt_frame_cache *c, size_t size) {
    bt_shelf *oldest = &c->shelves[0];
    for (int i = 0; i < BT_SHELVES; i++) {
        if (c->shelves[i].size == size) return &c->shelves[i];
        if (c->shelves[i].taken_ns < oldest->taken_ns) oldest = &c->shelves[i];
    }
    bt_shelf_clear(c, oldest);
    *oldest = (bt_shelf){.size = size};
    return oldest;
}

/* Make one more frame for a shelf. With `lock` held, which is let go meanwhile. */
static inline void bt_cache_fill_one(bt_frame_cache *c, size_t size) {
    pthread_mutex_unlock(&c->lock);
    uint64_t begin = bt_cache_now_ns();
    int fd = bt_frame_make(c->registry, size);
    uint64_t cost = bt_cache_now_ns() - begin;
    pthread_mutex_lock(&c->lock);
    bt_shelf *shelf = NULL;
    for (int i = 0; i < BT_SHELVES; i++)
        if (c->shelves[i].size == size) shelf = &c->shelves[i];
    if (fd < 0) {
        if (shelf) shelf->taken_ns = 0; /* whoever asks next makes one, and hears why it cannot be */
    } else if (!shelf || !c->users || shelf->count >= bt_shelf_target(shelf)) bt_registry_close(c->registry, fd);
    else {
        shelf->cost_ns = cost;
        shelf->fds[shelf->count++] = fd;
    }
}

/* What there is to do: a shelf to fill, or NULL; those that are idle are cleared. `wake_ns`: when to look again, 0: not
 * before somebody takes a frame. With `lock` held. */
static inline bt_shelf *bt_cache_due(bt_frame_cache *c, uint64_t *wake_ns) {
    uint64_t now = bt_cache_now_ns();
    *wake_ns = 0;
    for (int i = 0; i < BT_SHELVES; i++) {
        bt_shelf *shelf = &c->shelves[i];
        if (!c->users || shelf->taken_ns + BT_SHELF_IDLE_NS <= now) bt_shelf_clear(c, shelf);
        else if (shelf->count < bt_shelf_target(shelf)) return shelf;
        else if (shelf->count && (!*wake_ns || shelf->taken_ns + BT_SHELF_IDLE_NS < *wake_ns))
            *wake_ns = shelf->taken_ns + BT_SHELF_IDLE_NS;
    }
    return NULL;
}

static void *bt_cache_main(void *argument) {
    bt_frame_cache *c = argument;
    pthread_mutex_lock(&c->lock);
    for (;;) {
        uint64_t wake_ns;
        bt_shelf *shelf = bt_cache_due(c, &wake_ns);
        if (shelf) bt_cache_fill_one(c, shelf->size);
        else if (!wake_ns) pthread_cond_wait(&c->work, &c->lock);
        else {
            struct timespec end;
            uint64_t now = bt_cache_now_ns();
            uint64_t left_ns = wake_ns > now ? wake_ns - now : 1;
            clock_gettime(CLOCK_REALTIME, &end);
            left_ns += (uint64_t)end.tv_nsec;
            end.tv_sec += (time_t)(left_ns / 1000000000u);
            end.tv_nsec = (long)(left_ns % 1000000000u);
            pthread_cond_timedwait(&c->work, &c->lock, &end);
        }
    }
    return NULL;
}

/* With `lock` held. Without the helper nothing is made ahead of need, and all else works. */
static inline void bt_cache_start(bt_frame_cache *c) {
    sigset_t all, before;
    pthread_t thread;
    pthread_attr_t attributes;
    if (c->running) {
        pthread_cond_signal(&c->work);
        return;
    }
    pthread_attr_init(&attributes);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    sigfillset(&all); /* signals belong to the threads of the program */
    pthread_sigmask(SIG_SETMASK, &all, &before);
    c->running = pthread_create(&thread, &attributes, bt_cache_main, c) == 0;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attributes);
}

/* A frame of `size` bytes that is the caller's alone, entered in the registry. The descriptor, or -errno. */
static inline int bt_frame_take(bt_frame_cache *c, size_t size) {
    int fd = -1;
    pthread_mutex_lock(&c->lock);
    bt_shelf *shelf = bt_cache_shelf(c, size);
    shelf->taken_ns = bt_cache_now_ns();
    if (shelf->count) fd = shelf->fds[--shelf->count];
    if (bt_shelf_target(shelf)) bt_cache_start(c);
    pthread_mutex_unlock(&c->lock);
    if (fd >= 0) return fd;
    uint64_t begin = bt_cache_now_ns();
    fd = bt_frame_make(c->registry, size);
    if (fd < 0) return fd;
    pthread_mutex_lock(&c->lock);
    bt_cache_shelf(c, size)->cost_ns = bt_cache_now_ns() - begin;
    pthread_mutex_unlock(&c->lock);
    return fd;
}

/* What making a frame of `size` bytes took when one was made last; 0: none was. */
static inline uint64_t bt_frame_cost_ns(bt_frame_cache *c, size_t size) {
    uint64_t cost = 0;
    pthread_mutex_lock(&c->lock);
    for (int i = 0; i < BT_SHELVES; i++)
        if (c->shelves[i].size == size) cost = c->shelves[i].cost_ns;
    pthread_mutex_unlock(&c->lock);
    return cost;
}

/* What it takes here to copy `size` bytes that are in no cache; measured once. */
static inline uint64_t bt_copy_cost_ns(bt_frame_cache *c, uint64_t size) {
    if (!c->copy_ns) {
        uint8_t *from = malloc(2 * BT_COPY_SIZE);
        if (!from) return 0;
        memset(from, 1, 2 * BT_COPY_SIZE); /* so that all of it is there */
        uint64_t begin = bt_cache_now_ns();
        memcpy(from + BT_COPY_SIZE, from, BT_COPY_SIZE);
        __asm__ volatile("" : : "r"(from) : "memory"); /* it is not left out */
        c->copy_ns = bt_cache_now_ns() - begin + 1;
        free(from);
    }
    return (uint64_t)((double)c->copy_ns / (double)BT_COPY_SIZE * (double)size);
}

/* One more pool, or one less, has frames. */
static inline void bt_cache_use(bt_frame_cache *c, int change) {
    pthread_mutex_lock(&c->lock);
    c->users = (uint32_t)((int)c->users + change);
    for (int i = 0; !c->users && i < BT_SHELVES; i++) bt_shelf_clear(c, &c->shelves[i]);
    pthread_mutex_unlock(&c->lock);
}

#endif
