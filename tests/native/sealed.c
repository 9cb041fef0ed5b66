/* sealed.h and frame_cache.h: what is sealed nobody writes, what cannot be sealed stays as it was, nothing leaks. */
#include "check.h"
#include "sealed.h"

#include "table.h"

#define SIZE 16384
#define COUNT 3

static bt_registry registry = {.lock = PTHREAD_MUTEX_INITIALIZER}; /* the helpers have it for good */

typedef struct place {
    bt_frame_cache *cache;
    bt_slot slots[COUNT];
    bt_pool pool;
    int memory;
} place;

static void open_place(place *p, size_t size, int home) {
    memset(p, 0, sizeof *p);
    p->cache = bt_frame_cache_new(&registry);
    p->memory = -1;
    p->pool = (bt_pool){.slots = p->slots, .count = COUNT, .size = size, .home = (uint8_t)home, .apart = 1};
    if (home) {
        p->memory = bt_memory_create("pool", COUNT * size);
        CHECK(p->memory >= 0);
        CHECK_EQUAL(bt_memory_map(p->memory, COUNT * size, PROT_READ | PROT_WRITE, (void **)&p->pool.base), 0);
    } else CHECK_EQUAL(bt_memory_private(COUNT * size, (void **)&p->pool.base, 0), 0);
    p->pool.twin = bt_twin_new(&registry, COUNT, size);
    for (int i = 0; i < COUNT; i++) {
        p->slots[i].state = BT_READ_WRITE;
        p->slots[i].length = size;
    }
    CHECK_EQUAL(bt_frames_begin(&p->pool, p->cache, p->memory, home), 0);
}

static void close_place(place *p) {
    bt_frames_end(&p->pool);
    CHECK_EQUAL(p->cache->kept, 0);
    munmap(p->pool.base, COUNT * p->pool.size);
    bt_twin_leave(p->pool.twin, 0);
    if (p->memory >= 0) close(p->memory);
    if (!p->cache->running) { /* else its helper has it, for good */
        pthread_mutex_destroy(&p->cache->lock);
        pthread_cond_destroy(&p->cache->work);
        free(p->cache);
    }
}

/* What the kernel lets this process do at an address. */
static enum bt_guard reach(uint8_t *at) {
    int ends[2];
    CHECK_EQUAL(pipe(ends), 0);
    enum bt_guard found = BT_MAY_NOTHING;
    if (write(ends[1], at, 1) == 1) found = read(ends[0], at, 1) == 1 ? BT_MAY_WRITE : BT_MAY_READ;
    else CHECK_EQUAL(errno, EFAULT);
    close(ends[0]);
    close(ends[1]);
    return found;
}

static void fill(place *p, uint32_t index, const char *text) {
    memcpy(bt_buffer_at(&p->pool, index), text, strlen(text));
    p->slots[index].length = strlen(text);
    p->slots[index].touched = 1;
}

static int holds(place *p, uint32_t index, const char *text) {
    return memcmp(bt_buffer_at(&p->pool, index), text, strlen(text)) == 0;
}

static void check_sealed(place *p, uint32_t index) {
    bt_frame_kept *kept = &p->pool.frames->at[index];
    uint64_t span = bt_round_up(p->slots[index].length, BT_PAGE);
    CHECK_EQUAL(p->slots[index].holds, BT_SEALED);
    CHECK_EQUAL(bt_memory_judge(kept->fd, span, BT_FRAME_SEALS), BT_MEMORY_FINE);
    CHECK_EQUAL(pwrite(kept->fd, "x", 1, 0), -1);
    CHECK(mmap(NULL, span, PROT_WRITE, MAP_SHARED, kept->fd, 0) == MAP_FAILED);
    CHECK_EQUAL(reach(bt_buffer_at(&p->pool, index)), BT_MAY_READ);
    CHECK_EQUAL(reach(bt_buffer_at(&p->pool, index) + p->pool.size - 1), BT_MAY_READ);
    for (uint64_t at = p->slots[index].length; at < p->pool.size; at++)
        CHECK_EQUAL(bt_buffer_at(&p->pool, index)[at], 0);
}

static void test_contents_are_sealed_where_they_are_or_as_a_copy(size_t size, int home) {
    place p;
    int before = open_descriptors();
    open_place(&p, size, home);
    fill(&p, 0, "secret beyond the length");
    fill(&p, 0, "own");
    CHECK_EQUAL(bt_frame_seal(&p.pool, 0), BT_SEALED_COPY);
    check_sealed(&p, 0);
    CHECK(holds(&p, 0, "own"));
    CHECK_EQUAL(bt_frame_let_go(&p.pool, 0), 0);
    CHECK_EQUAL(reach(bt_buffer_at(&p.pool, 0)), BT_MAY_NOTHING);
    CHECK_EQUAL(bt_frame_furnish(&p.pool, 0), 0);
    CHECK_EQUAL(p.slots[0].holds, BT_FRESH);
    fill(&p, 0, "secret beyond the length");
    fill(&p, 0, "frame");
    CHECK_EQUAL(bt_frame_seal(&p.pool, 0), BT_SEALED_IN_PLACE);
    check_sealed(&p, 0);
    CHECK(holds(&p, 0, "frame"));
    close_place(&p);
    while (open_descriptors() > before) sched_yield(); /* the helper lets go of what it was making */
}

static void test_what_can_still_be_written_is_not_sealed_and_stays(void) {
    place p;
    open_place(&p, SIZE, 0);
    CHECK_EQUAL(bt_frame_let_go(&p.pool, 1), 0);
    CHECK_EQUAL(bt_frame_furnish(&p.pool, 1), 0);
    fill(&p, 1, "all of this stays");
    p.slots[1].length = 3;
    int fd = p.pool.frames->at[1].fd;
    uint8_t *other = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    CHECK(other != MAP_FAILED);
    CHECK_EQUAL(bt_frame_seal(&p.pool, 1), -EBUSY);
    CHECK_EQUAL(p.slots[1].holds, BT_FRESH);
    CHECK(holds(&p, 1, "all of this stays"));
    other[0] = 'A';
    CHECK(holds(&p, 1, "All of this stays"));
    munmap(other, SIZE);
    CHECK_EQUAL(bt_frame_seal(&p.pool, 1), BT_SEALED_IN_PLACE);
    check_sealed(&p, 1);
    close_place(&p);
}

static void test_only_what_was_written_is_copied(size_t size) {
    place p;
    open_place(&p, size, 0);
    fill(&p, 0, "once");
    p.slots[0].length = size;
    CHECK_EQUAL(bt_frame_seal(&p.pool, 0), BT_SEALED_COPY);
    int fd = p.pool.frames->at[0].fd;
    CHECK_EQUAL(bt_guard_set(&p.pool, 0, BT_READ_WRITE), 0); /* as when its copies are back */
    p.slots[0].touched = 1;                                  /* somebody could have written, and did not */
    CHECK(holds(&p, 0, "once"));
    CHECK_EQUAL(bt_pages_written(bt_buffer_at(&p.pool, 0), size), 0);
    CHECK_EQUAL(bt_frame_seal(&p.pool, 0), BT_SEALED_BEFORE);
    CHECK_EQUAL(p.pool.frames->at[0].fd, fd);
    CHECK_EQUAL(reach(bt_buffer_at(&p.pool, 0)), BT_MAY_READ);
    CHECK_EQUAL(bt_guard_set(&p.pool, 0, BT_READ_WRITE), 0);
    bt_buffer_at(&p.pool, 0)[size - 1] = 'x';
    CHECK_EQUAL(bt_pages_written(bt_buffer_at(&p.pool, 0), size), 1);
    int map = open("/proc/self/pagemap", O_RDONLY);
    CHECK_EQUAL(bt_pages_written_slowly(map, bt_buffer_at(&p.pool, 0), size), 1);
    CHECK_EQUAL(bt_pages_written_slowly(map, bt_buffer_at(&p.pool, 0), size - BT_PAGE), 0);
    close(map);
    char byte;
    CHECK_EQUAL(pread(fd, &byte, 1, (off_t)size - 1), 1);
    CHECK_EQUAL(byte, 0); /* what was written went to pages of the writer alone */
    CHECK_EQUAL(bt_frame_seal(&p.pool, 0), BT_SEALED_COPY);
    CHECK_EQUAL(bt_buffer_at(&p.pool, 0)[size - 1], 'x');
    close_place(&p);
}

static void test_a_frame_that_came_is_mapped_or_read(void) {
    place p, q;
    uint8_t there[2 * BT_PAGE];
    open_place(&p, SIZE, 1);
    open_place(&q, SIZE, 0);
    fill(&p, 0, "sent");
    CHECK_EQUAL(bt_frame_seal(&p.pool, 0), BT_SEALED_COPY);
    int fd = p.pool.frames->at[0].fd;
    CHECK_EQUAL(bt_frame_read(fd, there, 4), 0);
    CHECK_EQUAL(memcmp(there, "sent", 4), 0);
    CHECK_EQUAL(bt_frame_read(fd, there, BT_PAGE + 1), -EIO); /* it is not so long */
    for (int writable = 0; writable < 2; writable++) {
        int one = dup(fd);
        CHECK_EQUAL(bt_registry_add_fd(&registry, one), 0);
        CHECK_EQUAL(bt_frame_adopt(&q.pool, 1, one, 4, writable), 0);
        CHECK(holds(&q, 1, "sent"));
        CHECK_EQUAL(reach(bt_buffer_at(&q.pool, 1)), writable ? BT_MAY_WRITE : BT_MAY_READ);
        CHECK_EQUAL(reach(bt_buffer_at(&q.pool, 1) + SIZE - 1), writable ? BT_MAY_WRITE : BT_MAY_READ);
    }
    q.cache->room = 0; /* as many descriptors as there may be: the memory stays, none is kept */
    int one = dup(fd);
    CHECK_EQUAL(bt_registry_add_fd(&registry, one), 0);
    CHECK_EQUAL(bt_frame_adopt(&q.pool, 1, one, 4, 0), 0);
    CHECK(holds(&q, 1, "sent"));
    CHECK_EQUAL(q.pool.frames->at[1].fd, -1);
    q.slots[1].length = 4;
    CHECK_EQUAL(bt_frame_is_whole(&q.pool, 1), 0);
    CHECK_EQUAL(bt_frame_let_go(&q.pool, 2), 0);
    CHECK_EQUAL(bt_frame_furnish(&q.pool, 2), 0);
    CHECK_EQUAL(q.slots[2].holds, BT_PLAIN);
    CHECK_EQUAL(bt_frame_seal(&q.pool, 2), -EMFILE);
    close_place(&q);
    close_place(&p);
}

static void test_contents_go_back_into_memory_that_stays(int home) {
    place p;
    open_place(&p, SIZE, home);
    fill(&p, 0, "sealed");
    CHECK_EQUAL(bt_frame_seal(&p.pool, 0), BT_SEALED_COPY);
    CHECK_EQUAL(bt_frame_let_go(&p.pool, 1), 0);
    CHECK_EQUAL(bt_frame_furnish(&p.pool, 1), 0);
    fill(&p, 1, "fresh");
    CHECK_EQUAL(bt_frame_let_go(&p.pool, 2), 0);
    for (uint32_t i = 0; i < COUNT; i++) {
        CHECK_EQUAL(bt_frame_melt(&p.pool, i), 0);
        CHECK_EQUAL(p.slots[i].holds, home ? BT_OWN : BT_PLAIN);
        CHECK_EQUAL(reach(bt_buffer_at(&p.pool, i)), BT_MAY_WRITE);
    }
    CHECK(holds(&p, 0, "sealed") && holds(&p, 1, "fresh"));
    CHECK_EQUAL(bt_buffer_at(&p.pool, 2)[SIZE - 1], 0);
    if (home) {
        char text[6];
        CHECK_EQUAL(pread(p.memory, text, 6, 0), 6);
        CHECK_EQUAL(memcmp(text, "sealed", 6), 0);
    }
    CHECK_EQUAL(p.cache->kept, 0);
    close_place(&p);
}

static void test_sealing_pays_by_size_and_readers(void) {
    place p;
    open_place(&p, (size_t)4 << 20, 0);
    CHECK_EQUAL(bt_frame_furnish(&p.pool, 0), 0);
    p.cache->copy_ns = 1000000; /* 4 MiB */
    p.slots[0].length = BT_SEALING_MIN - 1;
    CHECK_EQUAL(bt_sealing_pays(&p.pool, 0, 9), 0);
    p.slots[0].length = p.pool.size;
    CHECK_EQUAL(bt_sealing_pays(&p.pool, 0, 1), 0);
    CHECK_EQUAL(bt_sealing_pays(&p.pool, 0, 2), 1); /* what a frame costs is not known yet */
    bt_cache_shelf(p.cache, p.pool.size)->cost_ns = 4500000;
    CHECK_EQUAL(bt_sealing_pays(&p.pool, 0, 2), 0);
    CHECK_EQUAL(bt_sealing_pays(&p.pool, 0, 4), 1);
    CHECK_EQUAL(bt_frame_seal(&p.pool, 0), BT_SEALED_COPY);
    CHECK_EQUAL(bt_sealing_pays(&p.pool, 0, 1), 1); /* there is nothing left to be done */
    close_place(&p);
}

static void *takes(void *argument) {
    bt_frame_cache *c = argument;
    for (int i = 0; i < 40; i++) {
        int fd = bt_frame_take(c, i % 2 ? BT_PAGE : 2 * BT_PAGE);
        CHECK(fd >= 0);
        bt_registry_close(c->registry, fd);
    }
    return NULL;
}

static void test_frames_are_made_ahead_of_need_and_go_with_the_last_pool(void) {
    pthread_t threads[2];
    int before = open_descriptors();
    bt_frame_cache *c = bt_frame_cache_new(&registry);
    bt_cache_use(c, 1);
    for (int i = 0; i < 2; i++) CHECK_EQUAL(pthread_create(&threads[i], NULL, takes, c), 0);
    for (int i = 0; i < 2; i++) CHECK_EQUAL(pthread_join(threads[i], NULL), 0);
    for (int ready = 0; ready < BT_SHELF_ROOM;) { /* the helper fills the shelf */
        pthread_mutex_lock(&c->lock);
        ready = (int)bt_cache_shelf(c, BT_PAGE)->count;
        pthread_mutex_unlock(&c->lock);
        sched_yield();
    }
    CHECK(bt_frame_cost_ns(c, BT_PAGE) > 0);
    int fd = bt_frame_take(c, BT_PAGE);
    char page[BT_PAGE];
    CHECK_EQUAL(pread(fd, page, BT_PAGE, 0), BT_PAGE);
    for (int i = 0; i < BT_PAGE; i++) CHECK_EQUAL(page[i], 0);
    bt_registry_close(&registry, fd);
    bt_cache_use(c, -1);
    while (open_descriptors() > before) sched_yield();
}

int main(void) {
#ifdef __SANITIZE_THREAD__
    int alone = 0; /* mappings that come and go below the sanitizer, in one thread */
#else
    int alone = 1;
#endif
    test("sealed");
    for (int home = 0; alone && home < 2; home++) {
        test_contents_are_sealed_where_they_are_or_as_a_copy(SIZE, home);
        test_contents_are_sealed_where_they_are_or_as_a_copy((size_t)4 << 20, home);
        test_contents_go_back_into_memory_that_stays(home);
    }
    if (alone) {
        test_what_can_still_be_written_is_not_sealed_and_stays();
        test_only_what_was_written_is_copied(SIZE);
        test_only_what_was_written_is_copied((size_t)4 << 20);
        test_a_frame_that_came_is_mapped_or_read();
        test_sealing_pays_by_size_and_readers();
    }
    test_frames_are_made_ahead_of_need_and_go_with_the_last_pool();
    return 0;
}
