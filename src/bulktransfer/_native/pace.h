/* Copying bytes to where another core reads them: by ordinary stores, or past the caches.
 *
 * Knows: what a copy took. Must not know: what is copied, or why.
 * The lines that are written were read last by the other core, and the lines that it reads next were written by this
 * one. Where both share a cache nothing is faster than that: 30 GB/s. Where they do not, each line is fetched from a
 * cache far away, twice: 0.4 GB/s, where stores past the caches bring 24 (measured on one virtual machine, whose cores
 * move between such places while it runs; with shared caches those bring 20). So copies are timed, and when ordinary
 * stores are slow several times in a row, others are used for a while, a longer one each time that nothing had changed.
 */
#ifndef BT_PACE_H
#define BT_PACE_H

#include <stdint.h>
#include <string.h>
#include <time.h>

#include "layout.h"

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#define BT_PACED_MIN ((uint64_t)4 << 10) /* below, neither the clock nor the detour through memory pays */
#define BT_SLOW_TIMES 3                  /* in a row: once may be another process that got the core */
#define BT_SLOW_BYTES_PER_US 4096
#define BT_STREAMED_MIN ((uint64_t)4 << 20) /* bytes until ordinary stores are tried again */
#define BT_STREAMED_MAX ((uint64_t)256 << 20)

typedef struct bt_pace {
    uint64_t left;   /* bytes that still go past the caches */
    uint64_t streak; /* as many as went so the last time; 0: ordinary stores did well since */
    uint32_t slow;   /* how often in a row they were slow */
} bt_pace;

static inline uint64_t bt_now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* Copy past the caches; `to` is on a line. */
static inline void bt_copy_past(uint8_t *to, const uint8_t *from, uint64_t size) {
#if defined(__SSE2__)
    uint64_t whole = size / BT_LINE * BT_LINE;
    for (uint64_t at = 0; at < whole; at += BT_LINE) {
        __m128i a = _mm_loadu_si128((const __m128i *)(from + at));
        __m128i b = _mm_loadu_si128((const __m128i *)(from + at + 16));
        __m128i c = _mm_loadu_si128((const __m128i *)(from + at + 32));
        __m128i d = _mm_loadu_si128((const __m128i *)(from + at + 48));
        _mm_stream_si128((__m128i *)(to + at), a);
        _mm_stream_si128((__m128i *)(to + at + 16), b);
        _mm_stream_si128((__m128i *)(to + at + 32), c);
        _mm_stream_si128((__m128i *)(to + at + 48), d);
    }
    _mm_sfence(); /* such stores are in no order with the index that is published after them */
    to += whole;
    from += whole;
    size -= whole;
#endif
    memcpy(to, from, size);
}

/* Ordinary stores of `size` bytes took `took_ns`: by which ones to go on. */
static inline void bt_pace_judge(bt_pace *p, uint64_t size, uint64_t took_ns) {
    if (took_ns * BT_SLOW_BYTES_PER_US <= size * 1000) {
        p->slow = 0;
        p->streak = 0;
    } else if (++p->slow >= BT_SLOW_TIMES) {
        p->streak = p->streak ? 2 * p->streak : BT_STREAMED_MIN;
        if (p->streak > BT_STREAMED_MAX) p->streak = BT_STREAMED_MAX;
        p->left = p->streak;
        p->slow = BT_SLOW_TIMES - 1; /* one slow copy is enough to go on so */
    }
}

/* Copy `size` bytes; `to` is on a line. */
static inline void bt_paced_copy(bt_pace *p, uint8_t *to, const uint8_t *from, uint64_t size) {
    if (size < BT_PACED_MIN) {
        memcpy(to, from, size);
    } else if (p->left) {
        bt_copy_past(to, from, size);
        p->left -= p->left < size ? p->left : size;
    } else {
        uint64_t start_ns = bt_now_ns();
        memcpy(to, from, size);
        bt_pace_judge(p, size, bt_now_ns() - start_ns);
    }
}

#endif
