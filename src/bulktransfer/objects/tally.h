/* What the processes of a queue know of each other beside its socket: a table in memory that they share.
 *
 * Knows: who has how much, the file locks that say who lives and whose turn it is. Must not know: messages, Python.
 * Both kinds of lock belong to a descriptor that one process alone has opened, so the kernel ends them with it.
 * Who sends or takes a task makes two changes, one of them the kernel's, that must be seen as one: it takes a *turn*, in
 * which its row's version is odd. Who counts holds the gate, says so, and waits until no living process is in its turn;
 * who finds that somebody counts goes through the gate instead. Without a count no turn costs a system call.
 */
#ifndef BT_TALLY_H
#define BT_TALLY_H

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/futex.h>
#include <sched.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define BT_ROWS 4095 /* processes of one queue that put, or get tasks */
#define BT_GATE ((off_t)1 << 40)
#define BT_LOOKS 1000

typedef struct bt_row {
    int64_t pending; /* put, and not in the socket yet */
    int64_t held;    /* tasks got and not done */
    uint64_t version; /* odd during a turn of its process */
    uint8_t pad[40];
} bt_row;

typedef struct bt_tally {
    uint32_t changes; /* counts what waiters wait for; a futex */
    uint32_t waiters;
    int64_t early; /* tasks that were said to be done before anybody got them */
    uint32_t used; /* rows beyond were never anybody's */
    uint32_t counting;
    uint8_t pad[40];
    bt_row rows[BT_ROWS];
} bt_tally;
static_assert(sizeof(bt_row) == 64 && offsetof(bt_tally, rows) == 64, "processes share it");

static inline int bt_file_lock(int fd, int how, short kind, off_t at) {
    struct flock lock = {.l_type = kind, .l_whence = SEEK_SET, .l_start = at, .l_len = 1};
    return fcntl(fd, how, &lock) < 0 ? -errno : lock.l_type;
}

/* 0, or -EAGAIN: another process is in. */
static inline int bt_gate_try(int fd) {
    int result = bt_file_lock(fd, F_OFD_SETLK, F_WRLCK, BT_GATE);
    return result == -EACCES ? -EAGAIN : result < 0 ? result : 0;
}

static inline int bt_gate_wait(int fd) {
    int result;
    do result = bt_file_lock(fd, F_OFD_SETLKW, F_WRLCK, BT_GATE);
    while (result == -EINTR);
    return result < 0 ? result : 0;
}

static inline void bt_gate_leave(bt_tally *t, int fd) {
    __atomic_store_n(&t->counting, 0, __ATOMIC_SEQ_CST); /* also what a killed process left */
    (void)bt_file_lock(fd, F_OFD_SETLK, F_UNLCK, BT_GATE);
}

/* Make a row this process's, as long as it has `fd`: its number, or -errno. Within the gate. */
static inline int bt_row_claim(bt_tally *t, int fd) {
    for (int i = 0; i < BT_ROWS; i++) {
        int result = bt_file_lock(fd, F_OFD_SETLK, F_WRLCK, i);
        if (result == -EAGAIN || result == -EACCES) continue;
        if (result < 0) return result;
        __atomic_store_n(&t->rows[i].pending, 0, __ATOMIC_RELAXED);
        __atomic_store_n(&t->rows[i].version, 0, __ATOMIC_RELAXED);
        __atomic_store_n(&t->rows[i].held, 0, __ATOMIC_RELAXED);
        if (t->used < (uint32_t)i + 1) t->used = (uint32_t)i + 1;
        return i;
    }
    return -ENOSPC;
}

static inline int bt_row_lives(int fd, int row, int mine) {
    return row == mine || bt_file_lock(fd, F_OFD_GETLK, F_WRLCK, row) != F_UNLCK;
}

/* Begin a turn: 0 where somebody counts, so that it takes the gate. seq_cst: the version is stored before `counting` is
 * read here, and `counting` before the version there, so at least one of the two sees the other. */
static inline int bt_turn_begin(bt_tally *t, int row) {
    __atomic_fetch_add(&t->rows[row].version, 1, __ATOMIC_SEQ_CST);
    if (!__atomic_load_n(&t->counting, __ATOMIC_SEQ_CST)) return 1;
    __atomic_fetch_add(&t->rows[row].version, 1, __ATOMIC_SEQ_CST);
    return 0;
}

static inline void bt_turn_end(bt_tally *t, int row) { __atomic_fetch_add(&t->rows[row].version, 1, __ATOMIC_SEQ_CST); }

static inline int bt_rows_still(const bt_tally *t, int fd, int mine) {
    for (uint32_t i = 0; i < t->used && i < BT_ROWS; i++)
        if (__atomic_load_n(&t->rows[i].version, __ATOMIC_SEQ_CST) & 1 && bt_row_lives(fd, (int)i, mine)) return 0;
    return 1;
}

/* Have no turn begin, and wait for those under way, which are short. Within the gate; leaving it ends the count. A
 * process that was stopped in its turn is not waited for for ever: the count may be one too high then. */
static inline void bt_count_begin(bt_tally *t, int fd, int mine) {
    __atomic_store_n(&t->counting, 1, __ATOMIC_SEQ_CST);
    for (int looks = 0; looks < BT_LOOKS && !bt_rows_still(t, fd, mine); looks++) sched_yield();
}

/* Sums over the rows of living processes; what a dead one had not sent is gone, and what it had got. */
static inline void bt_rows_sum(const bt_tally *t, int fd, int mine, int64_t *pending, int64_t *held) {
    *pending = *held = 0;
    for (uint32_t i = 0; i < t->used && i < BT_ROWS; i++) {
        /* relaxed: its own process publishes nothing else by it, and a message by way of the kernel */
        int64_t p = __atomic_load_n(&t->rows[i].pending, __ATOMIC_RELAXED), h = __atomic_load_n(&t->rows[i].held, __ATOMIC_RELAXED);
        if ((p || h) && bt_row_lives(fd, (int)i, mine)) {
            *pending += p;
            *held += h;
        }
    }
}

/* Take a task that is done off a row; 0: it has none. seq_cst: with others that do the same. */
static inline int bt_row_done(bt_row *row) {
    int64_t held = __atomic_load_n(&row->held, __ATOMIC_SEQ_CST);
    while (held > 0)
        if (__atomic_compare_exchange_n(&row->held, &held, held - 1, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) return 1;
    return 0;
}

/* Take a task that is done off whatever living process has one, this one first. 0: nobody has. */
static inline int bt_rows_done(bt_tally *t, int fd, int mine) {
    if (mine >= 0 && bt_row_done(&t->rows[mine])) return 1;
    for (uint32_t i = 0; i < t->used && i < BT_ROWS; i++)
        if (bt_row_lives(fd, (int)i, mine) && bt_row_done(&t->rows[i])) return 1;
    return 0;
}

/* Tell who waits that something changed. The count is stored before the waiters are read, and a waiter counts itself
 * before the kernel compares the count: both seq_cst, so one of the two sees the other. */
static inline void bt_changed(bt_tally *t) {
    __atomic_fetch_add(&t->changes, 1, __ATOMIC_SEQ_CST);
    if (__atomic_load_n(&t->waiters, __ATOMIC_SEQ_CST))
        syscall(SYS_futex, &t->changes, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
}

/* Until `changes` is no longer `seen`, or the time is over. */
static inline void bt_await_change(bt_tally *t, uint32_t seen, int64_t ns) {
    struct timespec time = {ns / 1000000000, ns % 1000000000};
    __atomic_fetch_add(&t->waiters, 1, __ATOMIC_SEQ_CST);
    syscall(SYS_futex, &t->changes, FUTEX_WAIT, seen, &time, NULL, 0);
    __atomic_fetch_sub(&t->waiters, 1, __ATOMIC_SEQ_CST);
}

#endif
