/* Where there is no libFuzzer: `TARGET RUNS FILE...` runs the seeds in the files (one a line, in hexadecimal digits) and
 * RUNS inputs that dice make of them, the same in every run. */
#include "../../native/check.h"
#include "fuzz.h"

enum { SEEDS = 64, SIZE = 1024 };

static uint8_t seeds[SEEDS][SIZE], input[SIZE];
static size_t sizes[SEEDS], seed_count;

static void read_seeds(const char *path) {
    FILE *file = fopen(path, "r");
    unsigned byte;
    char digits[3] = "";
    if (!file) exit(2);
    while (seed_count < SEEDS && fscanf(file, "%2[0-9a-f]", digits) == 1) {
        do {
            byte = (unsigned)strtoul(digits, NULL, 16);
            if (sizes[seed_count] < SIZE) seeds[seed_count][sizes[seed_count]++] = (uint8_t)byte;
        } while (fscanf(file, "%2[0-9a-f]", digits) == 1);
        seed_count++;
        (void)!fscanf(file, "%*[\n]");
    }
    fclose(file);
}

int main(int argc, char **argv) {
    uint64_t state = 1, runs = argc > 1 ? strtoull(argv[1], NULL, 10) : 0, done = 0;
    for (int i = 2; i < argc; i++) read_seeds(argv[i]);
    for (size_t i = 0; i < seed_count; i++, done++) LLVMFuzzerTestOneInput(seeds[i], sizes[i]);
    for (uint64_t run = 0; run < runs; run++, done++) {
        size_t size = 0;
        if (seed_count && dice_below(&state, 4)) {
            size_t which = dice_below(&state, (uint32_t)seed_count);
            memcpy(input, seeds[which], size = sizes[which]);
        }
        for (uint32_t n = 1 + dice_below(&state, 24); n--;) {
            uint32_t at = dice_below(&state, (uint32_t)size + 1);
            if (at == size && size < SIZE) input[size++] = (uint8_t)dice(&state);
            else if (at < size) input[at] = (uint8_t)(dice_below(&state, 2) ? dice(&state) : input[at] ^ 1u << dice_below(&state, 8));
        }
        LLVMFuzzerTestOneInput(input, size);
    }
    printf("%llu executions\n", (unsigned long long)done);
    return 0;
}
