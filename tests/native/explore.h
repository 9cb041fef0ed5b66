/* Runs the real headers in every order of events that x86 allows, and finds what gets stuck.
 *
 * Include this before any header of src/: atomics, mutexes, sockets and epoll are replaced by models. Actors are
 * coroutines that stop before each operation that others can see. A store that is not seq_cst lingers in its actor's
 * store buffer (TSO) until it is flushed, which is an event of its own; seq_cst stores and read-modify-writes flush.
 * Depth-first search over all choices; a state seen before is not followed again. What an actor has read decides
 * where it stands, so a state is: what each has read, the store buffers, and the memory that they share.
 * Relaxed loads are no events: headers use them for own words and under locks only. Plain accesses are not modelled
 * (ThreadSanitizer judges those).
 */
#ifndef BT_EXPLORE_H
#define BT_EXPLORE_H

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <ucontext.h>
#include <unistd.h>

#include "check.h"

#define ACTORS 3
#define STACK 12288 /* a message with its descriptors is 5 KiB of it (bt_hang_up) */
#define HEAP 4096
#define BOXES 2
#define BOX_BYTES 320 /* of a header, and of a ring: as much as is looked at */
#define WAKE_FD 100
#define EPOLL_FD 101

typedef struct pending_store {
    void *at;
    uint64_t value;
    int size;
} pending_store;

typedef struct actor {
    ucontext_t context;
    void (*run)(void);
    int (*ready)(const void *); /* not NULL: it waits for this */
    const void *wanted;
    const char *doing;
    uint64_t history; /* a hash of all that it has read */
    pending_store buffer[8];
    int buffered, done, daemon;
    _Alignas(64) uint8_t stack[STACK];
} actor;

/* All that changes while actors run, so that a state can be kept and gone back to. */
static struct world {
    actor actors[ACTORS];
    int count;
    struct machine {
        int bells[2];  /* messages to be read at this end of the socket */
        int closed[2];
        int watched[2], edge[2];
        void *watcher[2];
        int wake_watched, wake_edge, started, timed;
        int result; /* of a scenario */
        size_t used;
        _Alignas(64) uint8_t heap[HEAP];
    } m;
    uint8_t boxes[BOXES][2][BOX_BYTES]; /* copies of what lies in box_memory */
} world;

static _Alignas(4096) uint8_t box_memory[BOXES][2][4096];
static actor *me;
static ucontext_t scheduler;

/* What a scenario chooses. */
static int socket_room = 1000;   /* bells that fit */
static int always_writable = 1;  /* whether epoll has EPOLLOUT to report */
static int clock_runs = 0;       /* whether epoll_wait times out where nothing else can happen */

static void (*forget)(void);     /* clears what makes no difference, so that states become equal */

static uint64_t mix(uint64_t hash, uint64_t value) {
    hash = (hash ^ value) * UINT64_C(0x9e3779b97f4a7c15);
    return hash ^ (hash >> 29);
}

static void remember(uint64_t value) { me->history = mix(me->history, value + 1); }

static void step(const char *doing) {
    me->doing = doing;
    swapcontext(&me->context, &scheduler);
    remember(0); /* it is one step further, whatever it finds */
}

static void wait_until(int (*ready)(const void *), const void *wanted, const char *doing) {
    me->ready = ready;
    me->wanted = wanted;
    step(doing);
    me->ready = NULL;
}

/* ---- memory ---- */

static uint64_t word(const volatile void *at, int size) {
    return size == 8 ? *(const volatile uint64_t *)at : *(const volatile uint32_t *)at;
}

static void set_word(void *at, uint64_t value, int size) {
    if (size == 8) *(uint64_t *)at = value;
    else *(uint32_t *)at = (uint32_t)value;
}

static void flush_one(actor *a) {
    set_word(a->buffer[0].at, a->buffer[0].value, a->buffer[0].size);
    a->buffered--;
    memmove(a->buffer, a->buffer + 1, sizeof *a->buffer * (size_t)a->buffered);
    memset(&a->buffer[a->buffered], 0, sizeof *a->buffer);
}

static void flush_all(actor *a) {
    while (a->buffered) flush_one(a);
}

static uint64_t model_load(const volatile void *at, int size, memory_order order) {
    if (!me) return word(at, size); /* before the search */
    if (order != memory_order_relaxed) step("load");
    uint64_t value = word(at, size);
    for (int i = 0; i < me->buffered; i++)
        if (me->buffer[i].at == at) value = me->buffer[i].value;
    remember(value);
    return value;
}

static void model_store(volatile void *at, int size, uint64_t value, memory_order order) {
    if (!me) {
        set_word((void *)at, value, size);
        return;
    }
    step(order == memory_order_seq_cst ? "store, seq_cst" : "store");
    CHECK(me->buffered < 8);
    me->buffer[me->buffered++] = (pending_store){(void *)at, value, size};
    if (order == memory_order_seq_cst) flush_all(me);
}

static uint64_t model_add(volatile void *at, int size, uint64_t value, memory_order order) {
    if (order != memory_order_relaxed) step("add");
    flush_all(me);
    uint64_t before = word(at, size);
    set_word((void *)at, before + value, size);
    remember(before);
    return before;
}

static void *model_calloc(size_t count, size_t size) {
    size_t bytes = (count * size + 15) & ~(size_t)15;
    void *at = world.m.heap + world.m.used;
    CHECK(world.m.used + bytes <= HEAP);
    world.m.used += bytes;
    memset(at, 0, bytes);
    return at;
}

/* ---- mutexes: the first word says whether it is held ---- */

static int is_free(const void *mutex) { return *(const int *)mutex == 0; }

static int model_lock(pthread_mutex_t *mutex) {
    wait_until(is_free, mutex, "lock");
    flush_all(me);
    *(int *)mutex = 1;
    return 0;
}

static int model_unlock(pthread_mutex_t *mutex) {
    if (me->buffered) step("unlock");
    flush_all(me);
    *(int *)mutex = 0;
    return 0;
}

/* ---- the socket between end 0 and end 1, and one epoll ---- */

static ssize_t model_send(int sock) {
    step("ring");
    flush_all(me);
    int to = 1 - sock;
    if (world.m.bells[to] >= socket_room) {
        errno = EAGAIN;
        return -1;
    }
    world.m.bells[to]++;
    if (world.m.watched[to]) world.m.edge[to] = 1;
    return 1;
}

static int has_bells(const void *sock) { return world.m.bells[*(const int *)sock] > 0; }

static void model_poll(const int *sock) { wait_until(has_bells, sock, "poll"); }

static void read_bells(int sock, int all) {
    step("read bells");
    int there = world.m.bells[sock];
    if (world.m.bells[sock] && world.m.watched[1 - sock] && always_writable) world.m.edge[1 - sock] = 1;
    world.m.bells[sock] = all || there == 0 ? 0 : there - 1;
    remember((uint64_t)there);
}

static int model_epoll_ctl(int what, int fd, struct epoll_event *event) {
    step("epoll_ctl");
    flush_all(me);
    if (fd == WAKE_FD) world.m.wake_watched = 1;
    else {
        world.m.watched[fd] = what == EPOLL_CTL_ADD;
        world.m.edge[fd] = what == EPOLL_CTL_ADD && (world.m.bells[fd] || always_writable);
        world.m.watcher[fd] = what == EPOLL_CTL_ADD ? event->data.ptr : NULL;
    }
    return 0;
}

static int has_edge(const void *unused) {
    (void)unused;
    return world.m.edge[0] || world.m.edge[1] || world.m.wake_edge || world.m.timed;
}

static int model_epoll_wait(struct epoll_event *events, int room, int timeout) {
    int count = 0;
    memset(events, 0, sizeof *events * (size_t)room); /* what was there makes no difference */
    while (count == 0) {
        me->wanted = timeout >= 0 ? "timed" : NULL;
        wait_until(has_edge, me->wanted, "epoll_wait");
        flush_all(me);
        if (world.m.timed) {
            world.m.timed = 0;
            break;
        }
        for (int s = 0; s < 2; s++)
            if (world.m.edge[s]) {
                uint32_t what = (world.m.bells[s] ? EPOLLIN : 0) | (always_writable ? EPOLLOUT : 0);
                world.m.edge[s] = 0;
                if (what) events[count++] = (struct epoll_event){.events = what, .data.ptr = world.m.watcher[s]};
            }
        if (world.m.wake_edge) {
            world.m.wake_edge = 0;
            events[count++] = (struct epoll_event){.events = EPOLLIN, .data.ptr = NULL};
        }
    }
    remember((uint64_t)count);
    for (int i = 0; i < count; i++) remember((uint64_t)(uintptr_t)events[i].data.ptr + events[i].events);
    return count;
}

static ssize_t model_write_wake(void) {
    step("wake");
    flush_all(me);
    world.m.wake_edge = world.m.wake_watched;
    return 8;
}

static int model_close(int fd) {
    if (fd < 2) world.m.closed[fd] = 1;
    return 0;
}

static int model_start(void) {
    world.m.started = 1;
    return 0;
}

#undef atomic_load_explicit
#undef atomic_store_explicit
#undef atomic_fetch_add_explicit
#undef atomic_fetch_sub_explicit
#define atomic_load_explicit(at, order) model_load((at), sizeof *(at), (order))
#define atomic_store_explicit(at, value, order) model_store((at), sizeof *(at), (uint64_t)(value), (order))
#define atomic_fetch_add_explicit(at, value, order) model_add((at), sizeof *(at), (uint64_t)(value), (order))
#define atomic_fetch_sub_explicit(at, value, order) model_add((at), sizeof *(at), -(uint64_t)(value), (order))
#define pthread_mutex_init(mutex, how) ((void)(mutex), 0)
#define pthread_mutex_destroy(mutex) ((void)(mutex))
#define pthread_mutex_lock(mutex) model_lock(mutex)
#define pthread_mutex_unlock(mutex) model_unlock(mutex)
#define pthread_cond_broadcast(condition) ((void)(condition))
#define pthread_cond_timedwait(condition, mutex, when) ((void)(condition), (void)(mutex), (void)(when), ETIMEDOUT)
#define pthread_create(thread, how, run, with) ((void)(thread), (void)(how), (void)(run), (void)(with), model_start())
static inline int model_nothing(const void *what) { return what ? 0 : EINVAL; }
#define pthread_attr_init(how) model_nothing(how)
#define pthread_attr_destroy(how) ((void)(how))
#define pthread_attr_setdetachstate(how, what) ((void)(how), (void)(what))
#define pthread_attr_setstacksize(how, size) ((void)(how), (void)(size))
#define pthread_sigmask(how, set, old) ((void)(how), (void)(set), (void)(old))
#define send(sock, data, size, flags) ((void)(data), model_send(sock))
#define epoll_create1(flags) EPOLL_FD
#define eventfd(count, flags) WAKE_FD
#define epoll_ctl(epoll, what, fd, event) ((void)(epoll), model_epoll_ctl((what), (fd), (event)))
#define epoll_wait(epoll, events, room, timeout) ((void)(epoll), model_epoll_wait((events), (room), (timeout)))
#define write(fd, data, size) ((void)(fd), (void)(data), model_write_wake())
#define close(fd) model_close(fd)
#define munmap(address, size) ((void)(address), (void)(size))
#define calloc(count, size) model_calloc((count), (size))
#define malloc(size) model_calloc(1, (size))
#define realloc(at, size) ((void)(at), model_calloc(1, (size))) /* only ever from nothing, here */
#define free(at) ((void)(at))

/* ---- the search ---- */

static uint64_t *seen; /* hashes of states, open addressing */
static size_t seen_room, seen_count;

static void world_keep(void) {
    for (int b = 0; b < BOXES; b++)
        for (int p = 0; p < 2; p++) memcpy(world.boxes[b][p], box_memory[b][p], BOX_BYTES);
}

static void world_restore(const struct world *from) {
    memcpy(&world, from, sizeof world);
    for (int b = 0; b < BOXES; b++)
        for (int p = 0; p < 2; p++) memcpy(box_memory[b][p], world.boxes[b][p], BOX_BYTES);
}

static uint64_t hash_bytes(uint64_t hash, const void *at, size_t size) {
    const uint64_t *words = at;
    for (size_t i = 0; i < size / 8; i++) hash = mix(hash, words[i]);
    return hash;
}

/* Where an actor stands: its registers and its stack. What it has read says so too, but tells ways apart that lead
 * to the same place. */
static uint64_t where_it_stands(const actor *a) {
#ifdef __x86_64__
    static const int registers[] = {REG_RSP, REG_RIP, REG_RBX, REG_RBP, REG_R12, REG_R13, REG_R14, REG_R15};
    uint64_t hash = 2;
    if (a->done) return hash;
    for (size_t i = 0; i < sizeof registers / sizeof *registers; i++)
        hash = mix(hash, (uint64_t)a->context.uc_mcontext.gregs[registers[i]]);
    const uint8_t *top = (const uint8_t *)(uintptr_t)a->context.uc_mcontext.gregs[REG_RSP];
    return hash_bytes(hash, top, (size_t)(a->stack + STACK - top));
#else
    return a->history;
#endif
}

static uint64_t world_hash(void) {
    uint64_t hash = 1;
    for (int i = 0; i < world.count; i++) {
        const actor *a = &world.actors[i];
        hash = mix(mix(hash, where_it_stands(a)), (uint64_t)a->done);
        hash = hash_bytes(hash, a->buffer, sizeof *a->buffer * (size_t)a->buffered);
    }
    hash = hash_bytes(hash, &world.m, offsetof(struct machine, heap) + world.m.used);
    return hash_bytes(hash, world.boxes, sizeof world.boxes) | 1;
}

static int seen_before(uint64_t hash) {
    size_t at = hash & (seen_room - 1);
    while (seen[at]) {
        if (seen[at] == hash) return 1;
        at = (at + 1) & (seen_room - 1);
    }
    CHECK(++seen_count < seen_room / 2); /* else: a smaller scenario, or more room */
    seen[at] = hash;
    return 0;
}

typedef struct moment {
    struct world world;
    int moves[2 * ACTORS], count, next;
} moment;

static void list_moves(moment *t) {
    t->count = t->next = 0;
    for (int i = 0; i < world.count; i++) {
        const actor *a = &world.actors[i];
        if (!a->done && (!a->ready || a->ready(a->wanted))) t->moves[t->count++] = 2 * i;
        if (a->buffered) t->moves[t->count++] = 2 * i + 1;
    }
    if (t->count || !clock_runs) return;
    for (int i = 0; i < world.count; i++) /* nothing moves but the clock */
        if (world.actors[i].ready == has_edge && world.actors[i].wanted) {
            world.m.timed = 1;
            t->moves[t->count++] = 2 * i;
        }
}

static void make_move(int move) {
    me = &world.actors[move / 2];
    if (move % 2) flush_one(me);
    else swapcontext(&scheduler, &me->context);
    CHECK(me->stack[0] == 0 && me->stack[64] == 0); /* no stack was too small */
    if (forget) forget();
    world_keep();
}

static void actor_main(void) {
    remember(1);
    me->run();
    flush_all(me);
    me->done = 1;
}

static void add_actor(void (*run)(void), int daemon) {
    actor *a = &world.actors[world.count++];
    CHECK(world.count <= ACTORS);
    a->run = run;
    a->daemon = daemon;
    getcontext(&a->context);
    a->context.uc_stack.ss_sp = a->stack;
    a->context.uc_stack.ss_size = STACK;
    a->context.uc_link = &scheduler;
    makecontext(&a->context, actor_main, 0);
    a->doing = "nothing yet";
}

#define MOMENTS 4096
static moment *moments[MOMENTS];

static void show_path(int depth) {
    fprintf(stderr, "stuck after:");
    for (int i = 0; i < depth; i++) {
        int move = moments[i]->moves[moments[i]->next - 1];
        const actor *a = &moments[i]->world.actors[move / 2];
        fprintf(stderr, "\n  actor %d: %s", move / 2, move % 2 ? "its oldest store is seen" : a->doing);
    }
    fprintf(stderr, "\n");
}

/* Runs `set_up`, then every order of what its actors do. The number of endings where somebody is stuck, or where
 * `good` (asked in the end) says no. Stops at the first one. */
static int explore(const char *name, void (*set_up)(void), int (*good)(void)) {
    int depth = 0, bad = 0;
    uint64_t endings = 0;
    alarm(60);
    memset(&world, 0, sizeof world);
    memset(box_memory, 0, sizeof box_memory);
    seen_room = (size_t)1 << 23;
    seen = mmap(NULL, seen_room * sizeof *seen, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    CHECK(seen != MAP_FAILED);
    seen_count = 0;
    me = NULL;
    set_up();
    world_keep();
    for (int descend = 1; depth >= 0;) {
        if (descend) {
            CHECK(depth < MOMENTS - 1);
            if (!moments[depth]) CHECK((moments[depth] = (malloc)(sizeof(moment))) != NULL);
            moment *t = moments[depth];
            list_moves(t);
            if (t->count == 0) {
                int stuck = 0;
                me = NULL;
                endings++;
                for (int i = 0; i < world.count; i++) stuck |= !world.actors[i].done && !world.actors[i].daemon;
                if (stuck || (good && !good())) {
                    bad = 1;
                    if (getenv("VERBOSE")) show_path(depth);
                    break;
                }
            }
            memcpy(&t->world, &world, sizeof world);
        }
        moment *t = moments[depth];
        if (t->next == t->count) {
            depth--;
            descend = 0;
            continue;
        }
        if (!descend || t->next) world_restore(&t->world);
        make_move(t->moves[t->next++]);
        descend = !seen_before(world_hash());
        if (descend) depth++;
    }
    (munmap)(seen, seen_room * sizeof *seen);
    printf("model: %s: %zu states, %s\n", name, seen_count, bad ? "a way to get stuck" : "no way to get stuck");
    CHECK(bad || endings);
    return bad;
}

#endif
