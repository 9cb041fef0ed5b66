/* What every native target shares: a check that sanitizers report, and bytes taken from the front of an input. */
#ifndef BT_FUZZ_H
#define BT_FUZZ_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MUST(condition)                                                                    \
    do {                                                                                   \
        if (!(condition)) {                                                                \
            fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition);        \
            abort();                                                                       \
        }                                                                                  \
    } while (0)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

typedef struct given {
    const uint8_t *data;
    size_t left;
} given;

static inline uint8_t given_byte(given *g) {
    if (!g->left) return 0;
    g->left--;
    return *g->data++;
}

/* Mostly small, or at an edge. */
static inline uint64_t given_number(given *g) {
    static const uint64_t edges[] = {0, 1, 2, 3, 4, 7, 8, 63, 64, 65, 4095, 4096, 4097, UINT32_MAX, UINT64_C(1) << 63, UINT64_MAX};
    uint8_t first = given_byte(g);
    return first < 96 ? edges[first % 16] : first < 224 ? first - 96u : (uint64_t)given_byte(g) << 8 | given_byte(g);
}

#endif
