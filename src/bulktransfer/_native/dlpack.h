/* DLPack 1.0, as its specification lays it out (https://dmlc.github.io/dlpack/latest/c_api.html), and what one export
 * of ours needs beside it.
 *
 * Knows: layouts. Must not know: Python.
 */
#ifndef BT_DLPACK_H
#define BT_DLPACK_H

#include <assert.h>
#include <stddef.h>
#include <stdint.h>

enum { BT_DL_CPU = 1, BT_DL_UINT = 1, BT_DL_READ_ONLY = 1, BT_DL_IS_COPIED = 2 };

typedef struct {
    uint32_t major;
    uint32_t minor;
} bt_dl_version;

typedef struct {
    void *data;
    int32_t device_type;
    int32_t device_id;
    int32_t ndim;
    uint8_t code;
    uint8_t bits;
    uint16_t lanes;
    int64_t *shape;
    int64_t *strides;
    uint64_t byte_offset;
} bt_dl_tensor;

typedef struct bt_dl_legacy {
    bt_dl_tensor tensor;
    void *context;
    void (*deleter)(struct bt_dl_legacy *);
} bt_dl_legacy;

typedef struct bt_dl_versioned {
    bt_dl_version version;
    void *context;
    void (*deleter)(struct bt_dl_versioned *);
    uint64_t flags;
    bt_dl_tensor tensor;
} bt_dl_versioned;

static_assert(sizeof(void *) == 8, "the offsets below are those of 64-bit machines");
static_assert(offsetof(bt_dl_tensor, ndim) == 16 && offsetof(bt_dl_tensor, code) == 20, "DLTensor");
static_assert(offsetof(bt_dl_tensor, lanes) == 22 && offsetof(bt_dl_tensor, shape) == 24, "DLTensor");
static_assert(offsetof(bt_dl_tensor, byte_offset) == 40 && sizeof(bt_dl_tensor) == 48, "DLTensor");
static_assert(offsetof(bt_dl_legacy, context) == 48 && sizeof(bt_dl_legacy) == 64, "DLManagedTensor");
static_assert(offsetof(bt_dl_versioned, context) == 8, "DLManagedTensorVersioned");
static_assert(offsetof(bt_dl_versioned, flags) == 24, "DLManagedTensorVersioned");
static_assert(offsetof(bt_dl_versioned, tensor) == 32 && sizeof(bt_dl_versioned) == 80, "DLManagedTensorVersioned");

#endif
