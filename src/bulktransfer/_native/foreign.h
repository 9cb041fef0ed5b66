/* Letting go of descriptors that a peer sent, without being held up by what they are.
 *
 * Knows: that close() waits where a socket lingers or a file system in user space is asked to flush, and that a socket
 * that is closed lets go of the descriptors in its unread messages the same way. Must not know: what they came for.
 * What certainly closes at once is closed here, anything else by a thread of its own, which may wait as long as the
 * peer likes. Neither question below asks a file system.
 */
#ifndef BT_FOREIGN_H
#define BT_FOREIGN_H

#include <fcntl.h>
#include <pthread.h>

#include "message.h"
#include "registry.h"

typedef struct bt_stuck {
    bt_registry *registry;
    int count;
    int fds[];
} bt_stuck;

/* Memory (memfds and other files of tmpfs) and pipes. */
static inline int bt_closes_at_once(int fd) { return fcntl(fd, F_GET_SEALS) >= 0 || fcntl(fd, F_GETPIPE_SZ) > 0; }

static void *bt_stuck_main(void *argument) {
    bt_stuck *stuck = argument;
    for (int i = 0; i < stuck->count; i++) bt_registry_close(stuck->registry, stuck->fds[i]);
    free(stuck);
    return NULL;
}

/* Close descriptors in a thread of their own; here, if there can be none. They are in the registry. */
static inline void bt_close_apart(bt_registry *r, const int *fds, int count) {
    pthread_t thread;
    pthread_attr_t attributes;
    bt_stuck *stuck = malloc(sizeof *stuck + (size_t)count * sizeof *fds);
    int started = 0;
    if (stuck && pthread_attr_init(&attributes) == 0) {
        *stuck = (bt_stuck){.registry = r, .count = count};
        memcpy(stuck->fds, fds, (size_t)count * sizeof *fds);
        pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
        pthread_attr_setstacksize(&attributes, (size_t)128 << 10);
        started = pthread_create(&thread, &attributes, bt_stuck_main, stuck) == 0;
        pthread_attr_destroy(&attributes);
    }
    if (started) return;
    free(stuck);
    for (int i = 0; i < count; i++) bt_registry_close(r, fds[i]);
}

/* Close a descriptor that a peer sent; it is in the registry. */
static inline void bt_close_foreign(bt_registry *r, int fd) {
    if (bt_closes_at_once(fd)) bt_registry_close(r, fd);
    else bt_close_apart(r, &fd, 1);
}

/* The same for those of a message, which are in nobody's registry yet. */
static inline void bt_close_received(bt_registry *r, const bt_message *m) {
    int stuck[BT_FDS_MAX], count = 0;
    for (int i = 0; i < m->fd_count; i++) {
        if (bt_closes_at_once(m->fds[i]) || bt_registry_add_fd(r, m->fds[i]) < 0) close(m->fds[i]);
        else stuck[count++] = m->fds[i];
    }
    if (count) bt_close_apart(r, stuck, count);
}

/* Close a socket to a peer; it is in the registry. What lies unread in it is read first, and nothing more can come. */
static inline void bt_hang_up(bt_registry *r, int sock) {
    bt_message m;
    int size;
    shutdown(sock, SHUT_RD);
    while ((size = bt_message_receive(sock, &m)) > 0 && !m.deprived) bt_close_received(r, &m);
    if (size > 0) {
        bt_close_received(r, &m);
        bt_close_apart(r, &sock, 1);
    } else bt_registry_close(r, sock);
}

#endif
