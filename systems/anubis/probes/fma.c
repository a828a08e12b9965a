/* The peak rate of fused multiply-adds: chains enough to cover the latency of the unit, all in registers. */
#define _GNU_SOURCE
#include "team.h"

#if defined(__AVX512F__)
#define BYTES 64
#elif defined(__AVX__)
#define BYTES 32
#else
#define BYTES 16
#endif
/* Two units of latency 5 need 10 chains; 12, the factor and the summand still fit AVX2's 16 registers. */
enum { CHAINS = 12 };

#define DEFINE(NAME, TYPE)                                                                               \
    typedef TYPE NAME##_vector __attribute__((vector_size(BYTES)));                                      \
    enum { NAME##_lanes = BYTES / sizeof(TYPE), NAME##_width = CHAINS * NAME##_lanes };                  \
    /* How many independent values one member advances. */                                               \
    int NAME##_values(void) { return NAME##_width; }                                                     \
    static void NAME##_member(long steps, TYPE x, TYPE y, TYPE *values) {                                \
        NAME##_vector v[CHAINS], vx, vy;                                                                 \
        for (int k = 0; k < NAME##_lanes; k++) vx[k] = x, vy[k] = y;                                     \
        __builtin_memcpy(v, values, sizeof v);                                                           \
        for (long s = 0; s < steps; s++) {                                                               \
            _Pragma("GCC unroll 12") for (int k = 0; k < CHAINS; k++) v[k] = v[k] * vx + vy;             \
        }                                                                                                \
        __builtin_memcpy(values, v, sizeof v);                                                           \
    }                                                                                                    \
    /* values: (members, width), each replaced `steps` times by value * x + y, row m on CPU cpus[m]. */  \
    void NAME(long steps, TYPE x, TYPE y, TYPE *values, const int *cpus, int members) {                  \
        _Pragma("omp parallel for num_threads(members) schedule(static, 1)")                             \
        for (int m = 0; m < members; m++) {                                                              \
            cpu_set_t before;                                                                            \
            enter(cpus[m], &before);                                                                     \
            NAME##_member(steps, x, y, values + (long)m * NAME##_width);                                 \
            leave(&before);                                                                              \
        }                                                                                                \
    }

DEFINE(fma64, double)
DEFINE(fma32, float)
