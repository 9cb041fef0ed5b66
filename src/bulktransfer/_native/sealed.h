/* Sealed frames: what memory a buffer holds where a transfer may carry its frame (trust NONE, design section 5).
 *
 * Knows: mappings, seals, which pages of a frame were written. Must not know: why something is sent, rings, or Python.
 * The report's shared_frame (II-3.5): EXCLUSIVE is BT_FRESH, "unsealed, one mapping"; SHARED is BT_SEALED; the way back is
 * a new frame. To seal, the only writable mapping goes (a private one of the same pages takes its place, at once: whoever
 * reads goes on reading), then F_SEAL_WRITE is added, which the kernel refuses while anything could still write. From
 * then on nobody can change what the frame holds, its maker included, so it is mapped private everywhere: what is written
 * to such a mapping goes to pages of the writer alone, and only those pages are ever copied.
 * Functions run under the GIL, of one domain; they return 0 or more, or -errno and no change.
 */
#ifndef BT_SEALED_H
#define BT_SEALED_H

#include <sys/ioctl.h>

#include "frame_cache.h"
#include "guard.h"
#include "twin.h"

/* Seen on two cores (`bulk bench sealed`): at 1 MiB, whose frames are small pages, sealing for four readers gave half of
 * what copies gave; at 2 MiB, a huge page, twice. A frame that is there costs no more than to map it. */
#define BT_SEALING_MIN ((uint64_t)2 << 20)
#define BT_SENDING_ON_MIN ((uint64_t)1 << 20)
#define BT_SEALING_NS 40000 /* a descriptor sent, received and closed, a mapping made and undone, its first touch */
#define BT_FRAME_SEALS (F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL)

typedef struct bt_frame_kept {
    int fd;          /* of the frame that the buffer holds; -1: none is kept */
    uint64_t length; /* of what was sealed */
} bt_frame_kept;

typedef struct bt_frames {
    bt_frame_cache *cache;
    int memory;        /* the pool's own memory, where it was allocated here; -1 */
    int gives_back;    /* what a frame stands in for is given back to the system */
    bt_frame_kept at[];
} bt_frames;

static inline int bt_frames_begin(bt_pool *pool, bt_frame_cache *cache, int memory, int gives_back) {
    bt_frames *frames = calloc(1, sizeof *frames + pool->count * sizeof *frames->at);
    if (!frames) return -ENOMEM;
    frames->cache = cache;
    frames->memory = memory;
    frames->gives_back = gives_back;
    for (uint32_t i = 0; i < pool->count; i++) frames->at[i].fd = -1;
    pool->frames = frames;
    bt_cache_use(cache, 1);
    return 0;
}

static inline void bt_frame_close(bt_pool *pool, uint32_t index) {
    bt_frame_kept *kept = &pool->frames->at[index];
    if (kept->fd < 0) return;
    bt_registry_close(pool->frames->cache->registry, kept->fd);
    pool->frames->cache->kept--;
    kept->fd = -1;
}

/* The pool goes, or its memory does. In a forked child every descriptor is closed already. */
static inline void bt_frames_end(bt_pool *pool) {
    if (!pool->frames) return;
    if (pool->frames->cache->generation == pool->frames->cache->registry->generation) {
        for (uint32_t i = 0; i < pool->count; i++) bt_frame_close(pool, i);
        bt_cache_use(pool->frames->cache, -1);
    }
    free(pool->frames);
    pool->frames = NULL;
}

static inline uint8_t *bt_buffer_at(const bt_pool *pool, uint32_t index) {
    return pool->base + (uint64_t)index * pool->size;
}

/* New pages of nobody else, on first touch. */
static inline int bt_map_nothing(uint8_t *at, uint64_t size, int protection) {
    if (size == 0) return 0;
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED;
    return mmap(at, size, protection, flags, -1, 0) == MAP_FAILED ? -errno : 0;
}

/* The frame `fd` in place of what the buffer holds, and zeros behind it. */
static inline int bt_map_frame(bt_pool *pool, uint32_t index, int fd, uint64_t length, int protection) {
    uint8_t *at = bt_buffer_at(pool, index);
    uint64_t span = bt_round_up(length, BT_PAGE), tail = pool->size - span;
    int result = bt_map_nothing(at + span, tail, protection);
    if (result < 0) return result;
    if (mmap(at, span, protection, MAP_PRIVATE | MAP_FIXED, fd, 0) != MAP_FAILED) return 0;
    result = -errno; /* where there may be no more mappings, this makes one of two */
    if (tail && pool->slots[index].holds == BT_OWN && pool->frames->memory >= 0)
        (void)mmap(at + span, tail, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, pool->frames->memory,
                   (off_t)((uint64_t)index * pool->size + span));
    else (void)mprotect(at + span, tail, PROT_READ | PROT_WRITE);
    return result;
}

/* The buffer no longer holds what it held. */
static inline void bt_frame_changed(bt_pool *pool, uint32_t index, enum bt_holds holds, enum bt_guard guard) {
    bt_slot *s = &pool->slots[index];
    if (s->holds == BT_OWN && pool->frames->gives_back && !s->views) /* a view of it may be laid out elsewhere as well */
        (void)!fallocate(pool->frames->memory, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                         (off_t)((uint64_t)index * pool->size), (off_t)pool->size);
    bt_frame_close(pool, index);
    s->holds = (uint8_t)holds;
    s->guard = (uint8_t)guard;
    s->touched = 0;
}

/* Its contents are no longer wanted: nothing is mapped, and the next who needs memory gets a new frame. */
static inline int bt_frame_let_go(bt_pool *pool, uint32_t index) {
    int result = bt_map_nothing(bt_buffer_at(pool, index), pool->size, PROT_NONE);
    if (result == 0) bt_frame_changed(pool, index, BT_BARE, BT_MAY_WRITE);
    return result;
}

/* Zeros that are no frame: what arrives by value is copied there. */
static inline int bt_frame_plain(bt_pool *pool, uint32_t index) {
    uint8_t *at = bt_buffer_at(pool, index);
    int result = bt_map_nothing(at, pool->size, PROT_READ | PROT_WRITE);
    if (result < 0) return result;
    if (pool->size >= BT_HUGE) (void)madvise(at, pool->size, MADV_HUGEPAGE); /* an optimisation: there may be none */
    bt_frame_changed(pool, index, BT_PLAIN, BT_MAY_WRITE);
    if (pool->twin) pool->twin->cells[index].fresh = pool->size;
    return 0;
}

static inline void bt_frame_keep(bt_pool *pool, uint32_t index, int fd, uint64_t length) {
    pool->frames->at[index] = (bt_frame_kept){.fd = fd, .length = length};
    pool->frames->cache->kept++;
}

static inline int bt_frames_have_room(const bt_pool *pool) {
    return pool->frames->cache->kept < pool->frames->cache->room;
}

/* Memory for a bare buffer: a new frame; where none can be had, what is no frame. */
static inline int bt_frame_furnish(bt_pool *pool, uint32_t index) {
    if (pool->slots[index].holds != BT_BARE) return 0;
    int fd = bt_frames_have_room(pool) ? bt_frame_take(pool->frames->cache, pool->size) : -EMFILE;
    if (fd < 0) return bt_frame_plain(pool, index);
    int flags = MAP_SHARED | MAP_FIXED;
    if (mmap(bt_buffer_at(pool, index), pool->size, PROT_READ | PROT_WRITE, flags, fd, 0) == MAP_FAILED) {
        int error = errno;
        bt_registry_close(pool->frames->cache->registry, fd);
        return -error;
    }
    bt_frame_changed(pool, index, BT_FRESH, BT_MAY_WRITE);
    bt_frame_keep(pool, index, fd, 0);
    if (pool->twin) pool->twin->cells[index].fresh = pool->size;
    return 0;
}

/* Whoever kept its address may write to it as soon as it is READ_WRITE: then it is never without memory. Where there is
 * none now, the next call that needs some says so. */
static inline void bt_frame_for_raw(bt_pool *pool, uint32_t index) {
    const bt_slot *s = &pool->slots[index];
    if (s->raw && s->state == BT_READ_WRITE && s->holds == BT_BARE) (void)bt_frame_furnish(pool, index);
}

/* ---- what was written ---- */

/* As linux/fs.h has them since Linux 6.7, which the headers of a build may be older than. */
typedef struct bt_page_region {
    uint64_t start, end, categories;
} bt_page_region;
typedef struct bt_page_scan {
    uint64_t size, flags, start, end, walk_end, vec, vec_len, max_pages;
    uint64_t category_inverted, category_mask, category_anyof_mask, return_mask;
} bt_page_scan;
#define BT_PAGEMAP_SCAN _IOWR('f', 16, bt_page_scan)
enum { BT_PAGE_FILE = 1 << 2, BT_PAGE_PRESENT = 1 << 3, BT_PAGE_SWAPPED = 1 << 4 };

/* Whether some page of the range is the reader's own, by reading the page map an entry a page. */
static inline int bt_pages_written_slowly(int map, const uint8_t *at, uint64_t size) {
    uint64_t entries[512];
    for (uint64_t done = 0; done < size;) {
        uint64_t count = (size - done) / BT_PAGE < 512 ? (size - done) / BT_PAGE : 512;
        ssize_t bytes = pread(map, entries, count * 8, (off_t)(((uintptr_t)at + done) / BT_PAGE * 8));
        if (bytes <= 0 || bytes % 8) return -EIO;
        for (ssize_t i = 0; i < bytes / 8; i++) {
            int present = (int)(entries[i] >> 63), swapped = (int)(entries[i] >> 62) & 1, file = (int)(entries[i] >> 61) & 1;
            if (swapped || (present && !file)) return 1;
        }
        done += (uint64_t)(bytes / 8) * BT_PAGE;
    }
    return 0;
}

/* Whether a private mapping of a frame has pages of its own, which somebody wrote. -errno: it cannot be known (a hardened
 * process may not open its own page map). */
static inline int bt_pages_written(const uint8_t *at, uint64_t size) {
    int map = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
    if (map < 0) return -errno;
    bt_page_region found;
    bt_page_scan scan = {.size = sizeof scan, .start = (uintptr_t)at, .end = (uintptr_t)at + size,
                         .vec = (uintptr_t)&found, .vec_len = 1, .max_pages = 1,
                         .category_inverted = BT_PAGE_FILE, .category_mask = BT_PAGE_FILE,
                         .category_anyof_mask = BT_PAGE_PRESENT | BT_PAGE_SWAPPED,
                         .return_mask = BT_PAGE_PRESENT | BT_PAGE_SWAPPED};
    int result = ioctl(map, BT_PAGEMAP_SCAN, &scan);
    result = result < 0 ? bt_pages_written_slowly(map, at, size) : result > 0;
    close(map);
    return result;
}

/* Whether the frame that the buffer holds can travel on as it is: same length, not a page of it written. */
static inline int bt_frame_is_whole(const bt_pool *pool, uint32_t index) {
    const bt_slot *s = &pool->slots[index];
    const bt_frame_kept *kept = &pool->frames->at[index];
    if (s->holds != BT_SEALED || kept->fd < 0 || kept->length != s->length) return 0;
    return !s->touched || bt_pages_written(bt_buffer_at(pool, index), bt_round_up(kept->length, BT_PAGE)) == 0;
}

/* ---- sealing ---- */

enum bt_sealing { BT_SEALED_BEFORE = 0, BT_SEALED_IN_PLACE = 1, BT_SEALED_COPY = 2 };

/* Nothing more can be done to a frame whose last writable mapping is gone. -EBUSY: somebody can still write (pinned). */
static inline int bt_frame_seal_all(int fd, uint64_t span) {
    struct stat st;
    if (fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE) < 0) return -errno;
    /* F_SEAL_WRITE first: until it is on, everything can be undone, the pages behind the contents included. */
    if (fstat(fd, &st) < 0 || ((uint64_t)st.st_size != span && ftruncate(fd, (off_t)span) < 0)) return -errno;
    return fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) < 0 ? -errno : 0;
}

/* The frame that only this domain has seen, with its contents where they are. */
static inline int bt_seal_in_place(bt_pool *pool, uint32_t index) {
    bt_slot *s = &pool->slots[index];
    bt_frame_kept *kept = &pool->frames->at[index];
    uint8_t *at = bt_buffer_at(pool, index), rest[BT_PAGE];
    uint64_t span = bt_round_up(s->length, BT_PAGE), tail = span - s->length;
    memcpy(rest, at + s->length, tail); /* what lies beyond the length never reaches another domain (rule 11) */
    memset(at + s->length, 0, tail);
    int result = bt_map_frame(pool, index, kept->fd, s->length, PROT_READ);
    if (result == 0) result = bt_frame_seal_all(kept->fd, span);
    if (result < 0) {
        if (mmap(at, pool->size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, kept->fd, 0) == MAP_FAILED) {
            s->holds = BT_SEALED; /* what is mapped now is its own, and holds the contents */
            s->guard = BT_MAY_READ;
            bt_frame_close(pool, index);
            (void)bt_guard_set(pool, index, s->state);
        } else memcpy(at + s->length, rest, tail);
        return result;
    }
    kept->length = s->length;
    s->holds = BT_SEALED;
    s->guard = BT_MAY_READ;
    s->touched = 0;
    return BT_SEALED_IN_PLACE;
}

/* A new frame with a copy of the contents. */
static inline int bt_seal_copy(bt_pool *pool, uint32_t index) {
    bt_slot *s = &pool->slots[index];
    bt_frame_cache *cache = pool->frames->cache;
    uint64_t span = bt_round_up(s->length, BT_PAGE);
    uint64_t size = 2 * span > pool->size ? pool->size : span; /* a size that is asked for again */
    void *to = NULL;
    if (s->holds != BT_SEALED && !bt_frames_have_room(pool)) return -EMFILE;
    int fd = bt_frame_take(cache, size);
    if (fd < 0) return fd;
    int result = bt_memory_map(fd, size, PROT_READ | PROT_WRITE, &to);
    if (result == 0) {
        memcpy(to, bt_buffer_at(pool, index), s->length);
        munmap(to, size);
        result = bt_frame_seal_all(fd, span);
    }
    if (result == 0) result = bt_map_frame(pool, index, fd, s->length, PROT_READ);
    if (result < 0) {
        bt_registry_close(cache->registry, fd);
        return result;
    }
    bt_frame_changed(pool, index, BT_SEALED, BT_MAY_READ);
    bt_frame_keep(pool, index, fd, s->length);
    return BT_SEALED_COPY;
}

/* Have the contents be in a sealed frame, and mapped for reading; bt_guard_set follows the ledger from here on. What it
 * took: bt_sealing; -EBUSY: the memory is pinned, or mapped for writing somewhere. */
static inline int bt_frame_seal(bt_pool *pool, uint32_t index) {
    bt_slot *s = &pool->slots[index];
    if (bt_frame_is_whole(pool, index)) {
        if (s->guard == BT_MAY_WRITE) { /* it can be written no more, and is whole until it is */
            int result = mprotect(bt_buffer_at(pool, index), pool->size, PROT_READ) < 0 ? -errno : 0;
            if (result < 0) return result;
            s->guard = BT_MAY_READ;
        }
        return BT_SEALED_BEFORE;
    }
    return s->holds == BT_FRESH ? bt_seal_in_place(pool, index) : bt_seal_copy(pool, index);
}

/* Whether sealing contents costs less than sending them by value to `readers`: each of those costs two copies, or a
 * descriptor and a mapping. What making a frame takes is known once one was made. */
static inline int bt_sealing_pays(const bt_pool *pool, uint32_t index, uint64_t readers) {
    const bt_slot *s = &pool->slots[index];
    bt_frame_cache *cache = pool->frames->cache;
    if (s->length < BT_SENDING_ON_MIN) return 0;
    if (bt_frame_is_whole(pool, index)) return 1;
    if (readers < 2 || s->length < BT_SEALING_MIN) return 0;
    uint64_t copy = bt_copy_cost_ns(cache, s->length);
    uint64_t sealing = bt_frame_cost_ns(cache, pool->size) + readers * BT_SEALING_NS;
    if (s->holds == BT_SEALED) sealing += copy; /* it was written again where it is */
    return sealing < 2 * readers * copy;
}

/* ---- what a peer sent ---- */

/* The buffer holds a frame that was judged (bt_memory_judge with BT_FRAME_SEALS and whole pages); takes over the descriptor, or closes it where too many are kept. */
static inline int bt_frame_adopt(bt_pool *pool, uint32_t index, int fd, uint64_t length, int writable) {
    int result = bt_map_frame(pool, index, fd, length, writable ? PROT_READ | PROT_WRITE : PROT_READ);
    if (result < 0) return result;
    bt_frame_changed(pool, index, BT_SEALED, writable ? BT_MAY_WRITE : BT_MAY_READ);
    if (writable) pool->slots[index].touched = pool->slots[index].raw;
    if (bt_frames_have_room(pool)) bt_frame_keep(pool, index, fd, length);
    else bt_registry_close(pool->frames->cache->registry, fd);
    return 0;
}

/* The contents of a frame that was judged, where a pool's memory stays what it is. */
static inline int bt_frame_read(int fd, uint8_t *to, uint64_t length) {
    for (uint64_t done = 0; done < length;) {
        ssize_t bytes = pread(fd, to + done, length - done, (off_t)done);
        if (bytes > 0) done += (uint64_t)bytes;
        else if (bytes == 0 || errno != EINTR) return bytes == 0 ? -EIO : -errno;
    }
    return 0;
}

/* ---- back to memory that stays ---- */

/* Copy what a buffer holds: what can be read here, what is still leaving, and what comes back if its move is refused. */
static inline int bt_frame_copy_out(const bt_pool *pool, uint32_t index, uint8_t *to) {
    const bt_slot *s = &pool->slots[index];
    const bt_frame_kept *kept = &pool->frames->at[index];
    if (s->holds == BT_BARE) return 0;
    if (s->holds == BT_SEALED && s->guard == BT_MAY_NOTHING)
        return kept->fd < 0 ? 0 : bt_frame_read(kept->fd, to, kept->length);
    memcpy(to, bt_buffer_at(pool, index), s->length);
    return 0;
}

/* The contents of one buffer in memory that is no frame: the pool's own where it was allocated here. What arrives just now
 * goes on doing so. */
static inline int bt_frame_melt(bt_pool *pool, uint32_t index) {
    bt_slot *s = &pool->slots[index];
    uint8_t *at = bt_buffer_at(pool, index);
    off_t offset = (off_t)((uint64_t)index * pool->size);
    int memory = pool->frames->memory;
    if (s->holds == BT_OWN || (memory < 0 && s->holds == BT_PLAIN)) return 0;
    if (pool->twin && bt_twin_claimed(pool->twin, index)) {
        s->holds = BT_PLAIN; /* whatever it was: it is mapped for writing, and no frame is made of it */
        return 0;
    }
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    if (memory >= 0 && fallocate(memory, 0, offset, (off_t)pool->size) < 0) return -errno;
    void *to = memory >= 0 ? mmap(NULL, pool->size, PROT_READ | PROT_WRITE, MAP_SHARED, memory, offset)
                           : mmap(NULL, pool->size, PROT_READ | PROT_WRITE, flags, -1, 0);
    if (to == MAP_FAILED) return -errno;
    if (memory >= 0 && !pool->frames->gives_back) memset(to, 0, pool->size);
    int result = bt_frame_copy_out(pool, index, to);
    if (result == 0 && mremap(to, pool->size, pool->size, MREMAP_MAYMOVE | MREMAP_FIXED, at) == MAP_FAILED) result = -errno;
    if (result < 0) {
        munmap(to, pool->size);
        return result;
    }
    if (pool->twin) pool->twin->cells[index].fresh = pool->size;
    bt_frame_changed(pool, index, memory >= 0 ? BT_OWN : BT_PLAIN, BT_MAY_WRITE);
    return 0;
}

#endif
