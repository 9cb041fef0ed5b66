/* memory.h and registry.h: memory from a peer is judged before it is mapped, and a forked child has none of it. */
#include <pthread.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include "check.h"
#include "memory.h"
#include "registry.h"

#define SEALS (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL)
#define MEGA ((size_t)1 << 20)

static int reserved(size_t size) {
    int fd = bt_memory_create("test", size);
    CHECK(fd >= 0);
    CHECK(fallocate(fd, 0, 0, (off_t)size) == 0);
    return fd;
}

static void judge_and_close(int fd, size_t size, int seals, int wanted) {
    CHECK(fd >= 0);
    CHECK_EQUAL(bt_memory_judge(fd, size, seals), wanted);
    close(fd);
}

static void test_memory_is_judged_before_it_is_mapped(void) {
    test(__func__);
    size_t size = 8 * BT_HUGE + 3 * 4096;
    int fd = reserved(size);
    CHECK_EQUAL(bt_memory_judge(fd, size, F_SEAL_SHRINK | F_SEAL_GROW), BT_MEMORY_FINE);
    CHECK_EQUAL(bt_memory_judge(fd, size, SEALS), BT_MEMORY_WRONG_SEALS); /* more seals may come */
    CHECK_EQUAL(bt_memory_judge(fd, size - 1, F_SEAL_GROW), BT_MEMORY_WRONG_SIZE);
    CHECK_EQUAL(bt_memory_judge(fd, size + 1, F_SEAL_GROW), BT_MEMORY_WRONG_SIZE);
    CHECK_EQUAL(bt_memory_judge(fd, SIZE_MAX, F_SEAL_GROW), BT_MEMORY_WRONG_SIZE);
    CHECK(fcntl(fd, F_ADD_SEALS, F_SEAL_SEAL) == 0);
    CHECK_EQUAL(bt_memory_judge(fd, size, SEALS), BT_MEMORY_FINE);
    CHECK_EQUAL(bt_memory_judge(fd, size, SEALS | F_SEAL_WRITE), BT_MEMORY_WRONG_SEALS);
    CHECK_EQUAL(bt_memory_judge(fd, size, SEALS | F_SEAL_FUTURE_WRITE), BT_MEMORY_WRONG_SEALS);
    close(fd);
    CHECK_EQUAL(bt_memory_judge(fd, size, SEALS), -EBADF);
}

static void test_every_seal_is_asked_for(void) {
    test(__func__);
    static const int all[] = {F_SEAL_SHRINK, F_SEAL_GROW, F_SEAL_WRITE, F_SEAL_FUTURE_WRITE};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        int fd = memfd_create("test", MFD_CLOEXEC | MFD_ALLOW_SEALING), others = 0;
        CHECK(fd >= 0 && ftruncate(fd, 4096) == 0 && fallocate(fd, 0, 0, 4096) == 0);
        for (size_t k = 0; k < sizeof all / sizeof *all; k++) others |= k == i ? 0 : all[k];
        CHECK(fcntl(fd, F_ADD_SEALS, others) == 0);
        CHECK_EQUAL(bt_memory_judge(fd, 4096, others), BT_MEMORY_FINE);
        judge_and_close(fd, 4096, all[i], BT_MEMORY_WRONG_SEALS);
    }
    judge_and_close(memfd_create("unsealable", MFD_CLOEXEC), 0, F_SEAL_SHRINK, BT_MEMORY_WRONG_SEALS);
}

static void test_a_sparse_file_is_refused(void) {
    test(__func__);
    int seals = F_SEAL_SHRINK | F_SEAL_GROW;
    judge_and_close(bt_memory_create("empty", MEGA), MEGA, seals, BT_MEMORY_NOT_RESERVED);
    int fd = reserved(MEGA);
    CHECK(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 4096, 4096) == 0);
    judge_and_close(fd, MEGA, seals, BT_MEMORY_NOT_RESERVED);
}

static void test_pages_beyond_the_end_do_not_stand_in_for_missing_ones(void) {
    test(__func__);
    size_t size = 4 * BT_HUGE;
    int seals = F_SEAL_SHRINK | F_SEAL_GROW, fd = memfd_create("test", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    CHECK(fd >= 0 && ftruncate(fd, (off_t)size) == 0);
    CHECK(fallocate(fd, FALLOC_FL_KEEP_SIZE, (off_t)size, (off_t)size + (off_t)BT_HUGE) == 0);
    CHECK(fcntl(fd, F_ADD_SEALS, seals) == 0);
    judge_and_close(fd, size, seals, BT_MEMORY_BEYOND_END);
}

static void test_what_is_not_anonymous_memory_is_refused(void) {
    test(__func__);
    int pipes[2], socks[2];
    CHECK(pipe(pipes) == 0 && socketpair(AF_UNIX, SOCK_SEQPACKET, 0, socks) == 0);
    close(pipes[1]), close(socks[1]);
    judge_and_close(pipes[0], 4096, F_SEAL_SHRINK, BT_MEMORY_NOT_TMPFS);
    judge_and_close(socks[0], 4096, F_SEAL_SHRINK, BT_MEMORY_NOT_TMPFS);
    judge_and_close(open("/dev/zero", O_RDWR | O_CLOEXEC), 4096, F_SEAL_SHRINK, BT_MEMORY_NOT_TMPFS);
    judge_and_close(open("/proc/self/status", O_RDONLY | O_CLOEXEC), 0, F_SEAL_SHRINK, BT_MEMORY_NOT_TMPFS);
    int huge = memfd_create("huge", MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_HUGETLB);
    if (huge >= 0) judge_and_close(huge, 0, F_SEAL_SHRINK, BT_MEMORY_NOT_TMPFS);
    int named = open("/dev/shm", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600); /* a tmpfs file that cannot be sealed */
    if (named >= 0) {
        struct statfs fs;
        CHECK(fstatfs(named, &fs) == 0 && ftruncate(named, 4096) == 0);
        int wanted = (unsigned long)fs.f_type == TMPFS_MAGIC ? BT_MEMORY_WRONG_SEALS : BT_MEMORY_NOT_TMPFS;
        judge_and_close(named, 4096, F_SEAL_SHRINK, wanted);
    }
}

static void test_own_memory_is_sealed_from_the_start(void) {
    test(__func__);
    int fd = bt_memory_create("test", 3 * 4096);
    struct stat st;
    CHECK(fd >= 0 && fstat(fd, &st) == 0 && st.st_size == 3 * 4096);
    CHECK((fcntl(fd, F_GET_SEALS) & (F_SEAL_SHRINK | F_SEAL_GROW)) == (F_SEAL_SHRINK | F_SEAL_GROW));
    CHECK(ftruncate(fd, 4096) < 0 && errno == EPERM);
    CHECK(ftruncate(fd, 5 * 4096) < 0 && errno == EPERM);
    CHECK(fcntl(fd, F_GETFD) == FD_CLOEXEC);
    close(fd);
}

/* Kilobytes of addresses that this process has. */
static long addresses_kb(void) {
    char line[256];
    long kb = -1;
    FILE *file = fopen("/proc/self/status", "re");
    while (fgets(line, sizeof line, file)) sscanf(line, "VmSize: %ld kB", &kb);
    fclose(file);
    return kb;
}

static void test_a_mapping_is_where_huge_pages_fit_and_leaves_nothing_else(void) {
    test(__func__);
    static const size_t sizes[] = {1, 4096, 4097, 2 * MEGA - 4096, 2 * MEGA, 2 * MEGA + 1, 6 * MEGA, 33 * MEGA + 4096};
    addresses_kb();
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        int fd = reserved(sizes[i]);
        for (int round = 0; round < 8; round++) {
            void *address = NULL, *wedge = mmap(NULL, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
            size_t whole = (sizes[i] + 4095) & ~(size_t)4095;
            long before = addresses_kb();
            CHECK_EQUAL(bt_memory_map(fd, sizes[i], PROT_READ | PROT_WRITE, &address), 0);
            CHECK_EQUAL(addresses_kb() - before, whole / 1024);
            if (sizes[i] >= BT_HUGE) CHECK_EQUAL((uintptr_t)address % BT_HUGE, 0);
            ((volatile uint8_t *)address)[0] = (uint8_t)round;
            ((volatile uint8_t *)address)[sizes[i] - 1] = 1;
            CHECK(munmap(address, whole) == 0);
            CHECK_EQUAL(addresses_kb(), before);
            munmap(wedge, 4096);
        }
        close(fd);
    }
}

static void test_a_mapping_that_is_not_allowed_leaves_nothing(void) {
    test(__func__);
    int fd = reserved(4 * MEGA);
    void *address = NULL, *readable;
    CHECK(fcntl(fd, F_ADD_SEALS, F_SEAL_FUTURE_WRITE) == 0);
    long before = addresses_kb();
    CHECK_EQUAL(bt_memory_map(fd, 4 * MEGA, PROT_READ | PROT_WRITE, &address), -EPERM);
    CHECK(address == NULL);
    CHECK_EQUAL(addresses_kb(), before);
    CHECK_EQUAL(bt_memory_map(fd, 4 * MEGA, PROT_READ, &readable), 0);
    CHECK(mprotect(readable, 4096, PROT_READ | PROT_WRITE) < 0); /* nor later */
    CHECK(munmap(readable, 4 * MEGA) == 0);
    CHECK_EQUAL(bt_memory_map(fd, 0, PROT_READ, &readable), -EINVAL);
    close(fd);
}

static void test_reserving_gives_every_page_and_changes_none(void) {
    test(__func__);
    static const size_t sizes[] = {4096, 3 * 4096, 2 * MEGA, 6 * MEGA + 4096};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        struct stat st;
        void *address = NULL;
        int fd = bt_memory_create("test", sizes[i]);
        CHECK(fd >= 0);
        CHECK_EQUAL(bt_memory_map(fd, sizes[i], PROT_READ | PROT_WRITE, &address), 0);
        uint8_t *bytes = address;
        for (size_t at = 0; at < sizes[i]; at += 3 * 4096) bytes[at] = 42;
        CHECK_EQUAL(bt_memory_reserve(fd, address, sizes[i], 1), 0);
        CHECK(fstat(fd, &st) == 0 && (uint64_t)st.st_blocks * 512 >= sizes[i]);
        CHECK_EQUAL(bt_memory_judge(fd, sizes[i], F_SEAL_SHRINK), BT_MEMORY_FINE);
        for (size_t at = 0; at < sizes[i]; at += 4096) CHECK_EQUAL(bytes[at], at % (3 * 4096) ? 0 : 42);
        CHECK_EQUAL(bt_memory_populate(address, sizes[i]), 0);
        munmap(address, sizes[i]);
        close(fd);
    }
}

static void test_populating_what_is_not_there_fails_and_does_not_kill(void) {
    test(__func__);
    int fd = reserved(4096);
    void *address = mmap(NULL, 4 * 4096, PROT_READ, MAP_SHARED, fd, 0); /* beyond the end of the file */
    CHECK(address != MAP_FAILED);
    int result = bt_memory_populate(address, 4 * 4096);
    CHECK(result < 0 || (madvise(address, 4096, MADV_POPULATE_READ) < 0 && errno == EINVAL)); /* or an old kernel */
    munmap(address, 4 * 4096);
    close(fd);
}

/* ---- fork ---- */

static bt_registry registry = {.lock = PTHREAD_MUTEX_INITIALIZER, .generation = 1};

static void before_fork(void) { pthread_mutex_lock(&registry.lock); }
static void in_parent(void) { pthread_mutex_unlock(&registry.lock); }
static void in_child(void) {
    bt_registry_forked(&registry);
    pthread_mutex_unlock(&registry.lock);
}

static void expect_child(pid_t child) {
    int status;
    CHECK(waitpid(child, &status, 0) == child);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

static void test_a_forked_child_sees_zeros_and_no_descriptor(void) {
    test(__func__);
    enum { RANGES = 100, FDS = 300 };
    size_t size = 2 * 4096;
    int memory = reserved(size), fds[FDS], socks[2];
    uint8_t *ranges[RANGES];
    uint32_t generation = registry.generation;
    for (int i = 0; i < RANGES; i++) {
        void *address = NULL;
        CHECK_EQUAL(bt_memory_map(memory, size, i % 2 ? PROT_READ : PROT_READ | PROT_WRITE, &address), 0);
        ranges[i] = address;
        CHECK_EQUAL(bt_registry_add_range(&registry, address, size), 0);
    }
    memset(ranges[0], 7, size);
    CHECK(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, socks) == 0);
    for (int i = 0; i < FDS; i++) {
        fds[i] = i ? dup(memory) : socks[0];
        CHECK_EQUAL(bt_registry_add_fd(&registry, fds[i]), 0);
    }
    bt_registry_drop_fd(&registry, fds[FDS - 1]); /* whoever took it back keeps it */
    bt_registry_unmap(&registry, ranges[1], size);
    pid_t child = fork();
    if (child == 0) {
        alarm(20);
        CHECK_EQUAL(registry.generation, generation + 1);
        CHECK(registry.range_count == 0 && registry.fd_count == 0);
        for (int i = 0; i < RANGES; i++) {
            if (i == 1) continue;
            for (size_t at = 0; at < size; at++) CHECK_EQUAL(ranges[i][at], 0);
            memset(ranges[i], 99, size); /* its own page, even where the parent's was read-only */
        }
        for (int i = 0; i < FDS - 1; i++) CHECK(fcntl(fds[i], F_GETFD) < 0 && errno == EBADF);
        CHECK(fcntl(fds[FDS - 1], F_GETFD) >= 0);
        int own = open("/dev/null", O_RDONLY); /* and the registry is ready for a life of its own */
        CHECK_EQUAL(bt_registry_add_fd(&registry, own), 0);
        bt_registry_close(&registry, own);
        CHECK_EQUAL(registry.fd_count, 0);
        _exit(0);
    }
    CHECK(child > 0);
    expect_child(child);
    CHECK_EQUAL(registry.generation, generation);
    for (size_t at = 0; at < size; at++) CHECK_EQUAL(ranges[0][at], 7);
    bt_registry_close(&registry, fds[0]);
    char byte;
    CHECK_EQUAL(recv(socks[1], &byte, 1, MSG_DONTWAIT), 0); /* no copy of it lived on in the child */
    for (int i = 1; i < FDS - 1; i++) bt_registry_close(&registry, fds[i]);
    close(fds[FDS - 1]);
    for (int i = 0; i < RANGES; i++)
        if (i != 1) bt_registry_unmap(&registry, ranges[i], size);
    CHECK(registry.range_count == 0 && registry.fd_count == 0);
    close(memory);
    close(socks[1]);
}

static _Atomic int stop;

static void *churn(void *unused) {
    while (!__atomic_load_n(&stop, __ATOMIC_ACQUIRE)) {
        int fd = dup(0);
        void *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        CHECK(fd >= 0 && page != MAP_FAILED);
        CHECK(bt_registry_add_fd(&registry, fd) == 0 && bt_registry_add_range(&registry, page, 4096) == 0);
        bt_registry_unmap(&registry, page, 4096);
        bt_registry_close(&registry, fd);
    }
    return unused;
}

static void test_a_fork_in_the_midst_of_it_leaves_both_registries_whole(void) {
    test(__func__);
    pthread_t thread;
    stop = 0;
    int before = open_descriptors();
    CHECK(pthread_create(&thread, NULL, churn, NULL) == 0);
    for (int i = 0; i < 100; i++) {
        pid_t child = fork();
        if (child == 0) {
            alarm(20);
            int fd = open("/dev/null", O_RDONLY);
            CHECK(bt_registry_add_fd(&registry, fd) == 0);
            CHECK_EQUAL(registry.fd_count, 1);
            bt_registry_close(&registry, fd);
            _exit(0);
        }
        CHECK(child > 0);
        expect_child(child);
    }
    __atomic_store_n(&stop, 1, __ATOMIC_RELEASE);
    pthread_join(thread, NULL);
    CHECK(registry.range_count == 0 && registry.fd_count == 0);
    CHECK_EQUAL(open_descriptors(), before);
}

static void test_private_memory_is_zero_there_and_aligned(void) {
    static const size_t sizes[] = {4096, 3 * 4096, BT_HUGE, BT_HUGE + 4096, 5 * BT_HUGE};
    test(__func__);
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        void *address;
        unsigned char there[(5 * BT_HUGE) / 4096];
        CHECK_EQUAL(bt_memory_private(sizes[i], &address, 1), 0);
        if (sizes[i] >= BT_HUGE) CHECK_EQUAL((uintptr_t)address % BT_HUGE, 0);
        CHECK_EQUAL(mincore(address, sizes[i], there), 0);
        for (size_t page = 0; page < sizes[i] / 4096; page++) CHECK(there[page] & 1);
        for (size_t at = 0; at < sizes[i]; at++) CHECK(((uint8_t *)address)[at] == 0);
        CHECK_EQUAL(munmap(address, sizes[i]), 0);
    }
    void *address;
    CHECK_EQUAL(bt_memory_private((size_t)1 << 60, &address, 1), -ENOMEM);
}

int main(void) {
    test_private_memory_is_zero_there_and_aligned();
    CHECK(pthread_atfork(before_fork, in_parent, in_child) == 0);
    test_memory_is_judged_before_it_is_mapped();
    test_every_seal_is_asked_for();
    test_a_sparse_file_is_refused();
    test_pages_beyond_the_end_do_not_stand_in_for_missing_ones();
    test_what_is_not_anonymous_memory_is_refused();
    test_own_memory_is_sealed_from_the_start();
#ifndef __SANITIZE_ADDRESS__ /* whose own mappings come and go */
    test_a_mapping_is_where_huge_pages_fit_and_leaves_nothing_else();
    test_a_mapping_that_is_not_allowed_leaves_nothing();
#else
    (void)test_a_mapping_is_where_huge_pages_fit_and_leaves_nothing_else;
    (void)test_a_mapping_that_is_not_allowed_leaves_nothing;
#endif
    test_reserving_gives_every_page_and_changes_none();
    test_populating_what_is_not_there_fails_and_does_not_kill();
    test_a_forked_child_sees_zeros_and_no_descriptor();
    test_a_fork_in_the_midst_of_it_leaves_both_registries_whole();
    free(registry.ranges);
    free(registry.fds);
    return 0;
}
