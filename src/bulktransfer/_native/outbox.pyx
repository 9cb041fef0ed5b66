"""Outboxes as memory: how large one is, its header written and judged.

Knows: layout.h. Must not know: what goes through them (link.pyx), or where the memory comes from (core/memory.py).
"""

from libc.stdint cimport uint32_t, uint64_t

from bulktransfer._native.kernel cimport Mapping

cdef extern from "ring.h" nogil:
    enum: BT_MAGIC, BT_LAYOUT_VERSION
    ctypedef struct bt_outbox:
        uint32_t magic
        uint32_t version
        uint32_t slot_count
        uint32_t meta_size
        uint64_t stage_size
    int bt_stage_sane(uint64_t size)
    void bt_outbox_init(bt_outbox* box, uint32_t slot_count, uint32_t meta_size)
    int bt_outbox_sane(uint32_t slot_count, uint32_t meta_size)
    uint64_t bt_outbox_size(uint32_t slot_count, uint32_t meta_size)


def init_outbox(Mapping mapping not None, uint32_t slot_count, uint32_t meta_size, uint64_t stage_size):
    """Write the header of an own outbox."""
    bt_outbox_init(<bt_outbox*> mapping.base, slot_count, meta_size)
    (<bt_outbox*> mapping.base).stage_size = stage_size


def judge_outbox(Mapping mapping not None, uint32_t slot_count, uint32_t meta_size, uint64_t stage_size):
    """Whether the header of a peer's outbox says what was agreed."""
    cdef bt_outbox* box = <bt_outbox*> mapping.base
    return (box.magic == BT_MAGIC and box.version == BT_LAYOUT_VERSION and box.slot_count == slot_count
            and box.meta_size == meta_size and box.stage_size == stage_size)


def outbox_size(uint32_t slot_count, uint32_t meta_size, uint64_t stage_size):
    """Bytes of an outbox; its staging area (0: none) comes last. Raises: ValueError (no such outbox)."""
    if not bt_outbox_sane(slot_count, meta_size) or not bt_stage_sane(stage_size):
        raise ValueError(f"an outbox of {slot_count} slots with {meta_size} bytes of meta data, {stage_size} of stage")
    return bt_outbox_size(slot_count, meta_size) + stage_size
