/* Control messages on a socket: any bytes, any number of descriptors; none is lost, none is left open. */
#include "fuzz.h"

#include "../../native/check.h"
#include "foreign.h"

static bt_registry registry = {.lock = PTHREAD_MUTEX_INITIALIZER, .generation = 1};

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    given g = {data, size};
    int socks[2], before = open_descriptors();
    MUST(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, socks) == 0);
    MUST(bt_registry_add_fd(&registry, socks[1]) == 0);
    static int null = -1;
    if (null < 0) null = memfd_create("fuzz", MFD_ALLOW_SEALING), before++;
    unsigned sent = 0, received = 0;
    while (g.left) {
        uint8_t what = given_byte(&g);
        if (what % 4 == 3) {
            bt_message m;
            int got = bt_message_receive(socks[1], &m);
            MUST(got == -EAGAIN || (got > 0 && got <= BT_MESSAGE_MAX));
            if (got > 0) received++, bt_close_received(&registry, &m);
            MUST(got != -EAGAIN || received == sent);
        } else if (what % 4 == 2) {
            MUST(bt_ring_bell(socks[0]) == 0);
            sent++;
        } else {
            size_t length = 1 + given_byte(&g) % 16 * (what & 64 ? 300u : 1u);
            static uint8_t bytes[5000];
            int fds[BT_FDS_MAX], count = what >> 2 & 1 ? given_byte(&g) % (BT_FDS_MAX + 1) : 0;
            for (int i = 0; i < count; i++) fds[i] = null;
            if (bt_message_send(socks[0], bytes, length, fds, count) == 0) sent++;
        }
        if (sent - received > 200) break;
    }
    close(socks[0]);
    bt_hang_up(&registry, socks[1]); /* with all that is unread */
    MUST(open_descriptors() == before);
    return 0;
}
