/* Anonymous memory that can be handed to another domain: made, checked, mapped, sealed.
 *
 * Knows: memfds, seals, mappings and what the kernel does with them (design section 5; facts measured on
 * Linux 6.18). Must not know: pools, channels or Python.
 * Functions return 0 or a positive value, or -errno.
 */
#ifndef BT_MEMORY_H
#define BT_MEMORY_H

#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#endif
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif
#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 0x0008U
#endif
#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 0x0010
#endif

#define BT_HUGE ((size_t)2 << 20)

/* A new memfd of `size` bytes that can neither shrink nor grow. Returns the descriptor. */
static inline int bt_memory_create(const char *name, size_t size) {
    int fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_NOEXEC_SEAL);
    if (fd < 0 && errno == EINVAL) fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING); /* before Linux 6.3 */
    if (fd < 0) return -errno;
    if (ftruncate(fd, (off_t)size) < 0 || fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) < 0) {
        int error = errno;
        close(fd);
        return -error;
    }
    return fd;
}

/* Map `size` bytes of `fd` at an address that huge pages could use. */
static inline int bt_memory_map(int fd, size_t size, int protection, void **address) {
    size_t slack = size >= BT_HUGE ? BT_HUGE : 0;
    uint8_t *hole = mmap(NULL, size + slack, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (hole == MAP_FAILED) return -errno;
    uint8_t *base = slack ? (uint8_t *)(((uintptr_t)hole + BT_HUGE - 1) & ~(uintptr_t)(BT_HUGE - 1)) : hole;
    if (mmap(base, size, protection, MAP_SHARED | MAP_FIXED, fd, 0) == MAP_FAILED) {
        int error = errno;
        munmap(hole, size + slack);
        return -error;
    }
    size_t page = 4096, whole = (size + page - 1) & ~(page - 1);
    if (base > hole) munmap(hole, (size_t)(base - hole));
    if (hole + size + slack > base + whole) munmap(base + whole, (size_t)(hole + size + slack - (base + whole)));
    *address = base;
    return 0;
}

/* Private zeroed memory, as huge pages where the kernel has them: a twin, into which what arrives is copied; every page
 * `there`, so that no transfer faults. */
static inline int bt_memory_private(size_t size, void **address, int there) {
    size_t slack = size >= BT_HUGE ? BT_HUGE : 0, whole = (size + 4095) & ~(size_t)4095;
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    uint8_t *hole = mmap(NULL, whole + slack, PROT_READ | PROT_WRITE, flags, -1, 0);
    if (hole == MAP_FAILED) return -errno;
    uint8_t *base = slack ? (uint8_t *)(((uintptr_t)hole + BT_HUGE - 1) & ~(uintptr_t)(BT_HUGE - 1)) : hole;
    if (base > hole) munmap(hole, (size_t)(base - hole));
    if (hole + whole + slack > base + whole) munmap(base + whole, (size_t)(hole + slack - base));
    if (slack) (void)madvise(base, whole, MADV_HUGEPAGE); /* an optimisation: there may be none */
    for (size_t at = 0; there && at < whole;) {
        size_t step = whole - at < 16 * BT_HUGE ? whole - at : 16 * BT_HUGE;
        if (madvise(base + at, step, MADV_POPULATE_WRITE) == 0) at += step;
        else if (errno == EINVAL) { /* before Linux 5.14 */
            for (; at < whole; at += 4096) ((volatile uint8_t *)base)[at] = 0;
        } else if (errno != EINTR && errno != EAGAIN) {
            int error = errno;
            munmap(base, whole);
            return -error;
        }
    }
    *address = base;
    return 0;
}

/* Reserve every page of a mapped memfd, if `huge` as huge pages where that works.
 * The order matters: one touch a huge page, collapse, then reserve what is missing (0.14 ms for 2 MiB; the other
 * order costs ten times as much). Collapsing is an optimisation: the kernel may have no huge page left. */
static inline int bt_memory_reserve(int fd, void *address, size_t size, int huge) {
    for (size_t at = 0; huge && at + BT_HUGE <= size; at += BT_HUGE) {
        while (fallocate(fd, 0, (off_t)at, 4096) < 0) /* so that the touch cannot fail */
            if (errno != EINTR) return -errno;
        __atomic_fetch_or((uint8_t *)address + at, 0, __ATOMIC_RELAXED); /* a write that changes nothing */
        (void)madvise((uint8_t *)address + at, BT_HUGE, MADV_COLLAPSE);
    }
    for (size_t at = 0; at < size;) {
        size_t step = size - at < 16 * BT_HUGE ? size - at : 16 * BT_HUGE;
        if (fallocate(fd, 0, (off_t)at, (off_t)step) == 0) at += step;
        else if (errno != EINTR) return -errno;
    }
    return 0;
}

enum bt_memory_fault {
    BT_MEMORY_FINE = 0,
    BT_MEMORY_NOT_TMPFS,
    BT_MEMORY_WRONG_SEALS,
    BT_MEMORY_WRONG_SIZE,
    BT_MEMORY_NOT_RESERVED,
    BT_MEMORY_BEYOND_END
};

/* Judge a descriptor that a peer sent before it is mapped (design section 8, rule 1): a tmpfs file (nothing else
 * may stall or change size), the seals that its use needs, its size, its pages reserved (reading a sparse file
 * would allocate). Pages beyond the end would stand in for those that are missing, so there may be no more than the
 * last huge page has. Returns bt_memory_fault, or -errno. */
static inline int bt_memory_judge(int fd, size_t size, int seals) {
    struct statfs fs;
    struct stat st;
    int have = fcntl(fd, F_GET_SEALS);
    /* First what the kernel itself answers: a file system of the peer's could let fstat wait for ever. */
    if (have < 0) return errno == EBADF && fcntl(fd, F_GETFL) < 0 ? -EBADF : BT_MEMORY_NOT_TMPFS;
    if (fstatfs(fd, &fs) < 0 || fstat(fd, &st) < 0) return -errno;
    if ((unsigned long)fs.f_type != TMPFS_MAGIC || !S_ISREG(st.st_mode)) return BT_MEMORY_NOT_TMPFS;
    if ((have & seals) != seals) return BT_MEMORY_WRONG_SEALS;
    if (st.st_size < 0 || (uint64_t)st.st_size != size) return BT_MEMORY_WRONG_SIZE;
    uint64_t reserved = (uint64_t)st.st_blocks * 512;
    if (reserved < size) return BT_MEMORY_NOT_RESERVED;
    if (reserved > ((uint64_t)size + BT_HUGE - 1) / BT_HUGE * BT_HUGE) return BT_MEMORY_BEYOND_END;
    return BT_MEMORY_FINE;
}

/* Fault every page in for reading, a bounded step at a time; fails instead of killing. */
static inline int bt_memory_populate(void *address, size_t size) {
    for (size_t at = 0; at < size;) {
        size_t step = size - at < 16 * BT_HUGE ? size - at : 16 * BT_HUGE;
        if (madvise((uint8_t *)address + at, step, MADV_POPULATE_READ) == 0) at += step;
        else if (errno == EINVAL) return 0; /* before Linux 5.14: pages come on first touch */
        else if (errno != EINTR && errno != EAGAIN) return -errno;
    }
    return 0;
}

#endif
