/* What must not survive a fork: the ranges and descriptors that this process holds for its domains.
 *
 * Knows: addresses and descriptor numbers. Must not know: what they are for, or Python.
 * In the child, before anything else runs, every range becomes private zero pages, every descriptor is closed (design
 * rule 21), and what is kept becomes a private copy; `generation` tells every object that it belongs to the parent.
 */
#ifndef BT_REGISTRY_H
#define BT_REGISTRY_H

#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

typedef struct bt_range {
    void *address;
    size_t size;
} bt_range;

typedef struct bt_registry {
    pthread_mutex_t lock;
    uint32_t generation; /* written in a forked child only, while it has one thread */
    bt_range *ranges;
    size_t range_count, range_room;
    int *fds;
    size_t fd_count, fd_room;
    void *kept;              /* shared memory that a child goes on using, as a copy of its own; NULL: there is none */
    size_t kept_size;
    const size_t *kept_used; /* how much of it, from the start */
} bt_registry;

/* The same as bt_registry_add_range with the lock held: nothing that was made under it is missed by a fork. */
static inline int bt_registry_put_range(bt_registry *r, void *address, size_t size) {
    if (r->range_count == r->range_room) {
        size_t room = r->range_room ? 2 * r->range_room : 64;
        bt_range *more = realloc(r->ranges, room * sizeof *more);
        if (!more) return -1;
        r->ranges = more;
        r->range_room = room;
    }
    r->ranges[r->range_count++] = (bt_range){address, size};
    return 0;
}

static inline int bt_registry_add_range(bt_registry *r, void *address, size_t size) {
    pthread_mutex_lock(&r->lock);
    int result = bt_registry_put_range(r, address, size);
    pthread_mutex_unlock(&r->lock);
    return result;
}

static inline void bt_registry_drop_range(bt_registry *r, void *address) {
    pthread_mutex_lock(&r->lock);
    for (size_t i = 0; i < r->range_count; i++)
        if (r->ranges[i].address == address) { r->ranges[i] = r->ranges[--r->range_count]; break; }
    pthread_mutex_unlock(&r->lock);
}

static inline int bt_registry_put_fd(bt_registry *r, int fd) { /* with the lock held */
    if (r->fd_count == r->fd_room) {
        size_t room = r->fd_room ? 2 * r->fd_room : 256;
        int *more = realloc(r->fds, room * sizeof *more);
        if (!more) return -1;
        r->fds = more;
        r->fd_room = room;
    }
    r->fds[r->fd_count++] = fd;
    return 0;
}

static inline int bt_registry_add_fd(bt_registry *r, int fd) {
    pthread_mutex_lock(&r->lock);
    int result = bt_registry_put_fd(r, fd);
    pthread_mutex_unlock(&r->lock);
    return result;
}

static inline void bt_registry_drop_fd(bt_registry *r, int fd) {
    pthread_mutex_lock(&r->lock);
    for (size_t i = r->fd_count; i-- > 0;)
        if (r->fds[i] == fd) { r->fds[i] = r->fds[--r->fd_count]; break; }
    pthread_mutex_unlock(&r->lock);
}

/* Unmap a range and forget it. */
static inline void bt_registry_unmap(bt_registry *r, void *address, size_t size) {
    bt_registry_drop_range(r, address);
    munmap(address, size);
}

/* Close a descriptor and forget it. Forgotten first: the number may be given out again at once. */
static inline void bt_registry_close(bt_registry *r, int fd) {
    bt_registry_drop_fd(r, fd);
    close(fd);
}

/* A private copy takes the place of what is kept; zeroes, if there is no memory. */
static inline void bt_registry_copy_kept(bt_registry *r) {
    size_t used = (*r->kept_used + 4095) & ~(size_t)4095;
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    void *copy = mmap(NULL, used, PROT_READ | PROT_WRITE, flags, -1, 0);
    if (copy != MAP_FAILED) memcpy(copy, r->kept, used);
    mmap(r->kept, r->kept_size, PROT_READ | PROT_WRITE, flags | MAP_FIXED, -1, 0);
    if (copy != MAP_FAILED) (void)mremap(copy, used, used, MREMAP_MAYMOVE | MREMAP_FIXED, r->kept);
    r->kept = NULL;
}

/* Runs in the child, with the lock held since before the fork. Only calls that are safe there. */
static inline void bt_registry_forked(bt_registry *r) {
    if (r->kept) bt_registry_copy_kept(r);
    for (size_t i = 0; i < r->range_count; i++)
        mmap(r->ranges[i].address, r->ranges[i].size, PROT_READ | PROT_WRITE,
             MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
    for (size_t i = 0; i < r->fd_count; i++) close(r->fds[i]);
    r->range_count = r->fd_count = 0;
    r->generation++;
}

#endif
