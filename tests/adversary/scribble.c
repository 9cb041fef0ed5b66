/* scribble FD SIZE [FD SIZE ...]: writes over every byte of the memory behind the descriptors, again and again.
 *
 * Says so on its standard output once all is mapped, so that whoever started it may seal what it must not map any more.
 * Three ways in turn: whole pages of noise, single bits, words that are nearly right (small numbers).
 */
#define _GNU_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <signal.h>
#include <unistd.h>

static uint64_t seed = 1;

static uint64_t dice(void) {
    uint64_t z = (seed += UINT64_C(0x9e3779b97f4a7c15));
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

int main(int argc, char **argv) {
    int count = (argc - 1) / 2;
    volatile uint8_t *base[8];
    size_t size[8];
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    alarm(60);
    if (count < 1 || count > 8) return 2;
    for (int i = 0; i < count; i++) {
        size[i] = strtoull(argv[2 + 2 * i], NULL, 10);
        void *at = mmap(NULL, size[i], PROT_READ | PROT_WRITE, MAP_SHARED, atoi(argv[1 + 2 * i]), 0);
        if (at == MAP_FAILED) return 3;
        base[i] = at;
    }
    puts("mapped");
    fflush(stdout);
    if (getchar() == EOF) return 0; /* begin when told to */
    for (;;)
        for (int i = 0; i < count; i++) {
            for (size_t at = 0; at + 8 <= size[i]; at += 8)
                *(volatile uint64_t *)(base[i] + at) = dice() & (dice() % 4 ? UINT64_MAX : 0xff);
            for (int n = 0; n < 4096; n++) base[i][dice() % size[i]] ^= (uint8_t)(1u << dice() % 8);
            for (int n = 0; n < 4096; n++) *(volatile uint32_t *)(base[i] + dice() % (size[i] / 4) * 4) = (uint32_t)(dice() % 70);
        }
}
