/* Heads of frames: what unpacks packs again, and what has no fault names nothing beyond its bounds. */
#include "fuzz.h"

#include "frame.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    bt_frame frame;
    uint8_t again[BT_FRAME_SIZE];
    for (; size >= BT_FRAME_SIZE; data += BT_FRAME_SIZE, size -= BT_FRAME_SIZE) {
        bt_frame_unpack(&frame, data);
        bt_frame_pack(again, &frame);
        MUST(memcmp(again, data, BT_FRAME_SIZE) == 0);
        if (bt_frame_fault(&frame)) continue;
        MUST(frame.kind >= BT_MOVE && frame.kind < BT_FRAME_KIND_END);
        MUST(frame.meta_size <= BT_META_MAX && frame.slot < BT_FRAME_SLOTS);
        MUST(!frame.length || bt_frame_has_contents(&frame) || frame.length <= BT_FRAME_MESSAGE_MAX);
    }
    return 0;
}
