/* What every test program here shares: a check that says where it failed, a watchdog, dice, a count of descriptors. */
#ifndef BT_CHECK_H
#define BT_CHECK_H

#include <dirent.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#define CHECK(condition)                                                                   \
    do {                                                                                   \
        if (!(condition)) {                                                                \
            fprintf(stderr, "%s:%d: %s: not so: %s\n", __FILE__, __LINE__, __func__, #condition); \
            abort();                                                                       \
        }                                                                                  \
    } while (0)

#define CHECK_EQUAL(left, right)                                                                               \
    do {                                                                                                       \
        long long left_ = (long long)(left), right_ = (long long)(right);                                      \
        if (left_ != right_) {                                                                                 \
            fprintf(stderr, "%s:%d: %s: %s is %lld, not %lld (%s)\n", __FILE__, __LINE__, __func__, #left, left_, \
                    right_, #right);                                                                           \
            abort();                                                                                           \
        }                                                                                                      \
    } while (0)

/* Says what runs, and ends the process if this and what follows, up to the next test, hangs. */
static inline void test(const char *name) {
    alarm(100); /* long for a machine on which others are busy; the kernel's default action: no handler that a sanitizer could hold back */
    if (getenv("VERBOSE")) fprintf(stderr, "  %s\n", name);
}

/* splitmix64: dice that fall the same way in every run. */
static inline uint64_t dice(uint64_t *state) {
    uint64_t z = (*state += UINT64_C(0x9e3779b97f4a7c15));
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

static inline uint32_t dice_below(uint64_t *state, uint32_t end) { return (uint32_t)(dice(state) % end); }

static inline int open_descriptors(void) {
    DIR *dir = opendir("/proc/self/fd");
    int count = -3; /* ".", "..", and the directory's own */
    CHECK(dir != NULL);
    while (readdir(dir)) count++;
    closedir(dir);
    return count;
}

#endif
