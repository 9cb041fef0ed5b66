/* Ring and outbox words: whatever the peer publishes, this side's indices stay within its ring, and what it takes is
 * what it checked. */
#include "fuzz.h"

#include "ring.h"

enum { SLOTS = 8, META = 100 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static _Alignas(BT_PAGE) uint8_t own[BT_PAGE * 4], peer[BT_PAGE * 4];
    given g = {data, size};
    bt_tx tx;
    bt_rx rx;
    bt_entry entry;
    uint8_t meta[BT_META_MAX];
    uint64_t size_of_box = bt_outbox_size(SLOTS, META);
    MUST(bt_outbox_sane(SLOTS, META) && size_of_box <= sizeof own);
    memset(own, 0, sizeof own);
    memset(peer, 0, sizeof peer);
    bt_outbox *theirs = (bt_outbox *)peer;
    bt_rings_init(&tx, &rx, (bt_outbox *)own, theirs, SLOTS, META);
    while (g.left) {
        switch (given_byte(&g) % 6) {
        case 0: { /* the peer writes something into an entry, its meta data, or over a word */
            uint64_t at = given_number(&g) % size_of_box;
            for (unsigned n = given_byte(&g) % 17; n-- && at < size_of_box; at++) peer[at] = given_byte(&g);
            break;
        }
        case 1: theirs->tail += given_byte(&g) % 3 ? given_byte(&g) % (SLOTS + 1) : given_number(&g); break;
        case 2: theirs->consumed += given_byte(&g) % 3 ? given_byte(&g) % 3 : given_number(&g); break;
        case 3: { /* take what there is */
            int64_t there = given_byte(&g) % 2 ? bt_rx_look(&rx) : bt_rx_look_again(&rx);
            uint32_t all = 0;
            MUST(there >= -1 && there <= SLOTS);
            if (there < 0) return 0;
            MUST(bt_rx_refusals(&rx, given_byte(&g), &all) <= (int)all && all <= SLOTS);
            while (there-- > 0) {
                uint32_t limit = given_byte(&g) % (META + 1);
                if (bt_rx_take(&rx, &entry, meta, limit) < 0) return 0;
                MUST(entry.meta_size <= limit);
                if (entry.meta_size > BT_META_INLINE) MUST(bt_rx_meta(&rx) < peer + size_of_box);
            }
            bt_rx_publish(&rx);
            break;
        }
        case 4:
            if (bt_tx_refresh(&tx) < 0) return 0;
            MUST(bt_tx_room(&tx) <= SLOTS);
            break;
        default:
            if (!bt_tx_room(&tx)) break;
            entry = (bt_entry){.kind = BT_MOVE, .meta_size = given_byte(&g) % (META + 1)};
            bt_tx_fill(&tx, 0, &entry, meta);
            bt_tx_publish(&tx, 1);
        }
        MUST(tx.tail - tx.consumed <= SLOTS && rx.tail - rx.head <= SLOTS);
    }
    return 0;
}
