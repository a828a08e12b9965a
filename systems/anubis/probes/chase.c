/* Memory latency: follow a chain of pointers. Each load needs the result of the one before, so that neither
 * out-of-order execution nor a prefetcher can hide its latency (as in lat_mem_rd of lmbench, McVoy & Staelin
 * 1996). */
#define _GNU_SOURCE
#include <time.h>

/* Takes `steps` steps (rounded down to a multiple of 16) from *place, leaves the end there; seconds. */
double chase(void ***place, long steps) {
    struct timespec begin, end;
    void **p = *place;
    clock_gettime(CLOCK_MONOTONIC, &begin);
    for (long i = 0; i < steps / 16; i++) {
#define STEP p = (void **)*p;
#define STEPS4 STEP STEP STEP STEP
        STEPS4 STEPS4 STEPS4 STEPS4
    }
    /* The clock must not be read before the last load is done. */
    __asm__ volatile("" : "+r"(p) : : "memory");
    clock_gettime(CLOCK_MONOTONIC, &end);
    *place = p;
    return (double)(end.tv_sec - begin.tv_sec) + 1e-9 * (double)(end.tv_nsec - begin.tv_nsec);
}
