/* Memory bandwidth: STREAM's four kernels (J. D. McCalpin, 1995), a read, and two mixes that update in place.
 *
 * Copy, scale, add and triad overwrite an array that they do not read. Ordinary stores make the hardware
 * fetch each line first, traffic that STREAM does not count; streaming stores avoid it. Both forms are here,
 * and the caller measures which is faster. The mixes read what they write, so their counted bytes are the
 * real ones.
 */
#define _GNU_SOURCE
#include "team.h"
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
#define LANES 8
typedef __m512d vector;
#define LOAD _mm512_loadu_pd
#define STREAM_STORE _mm512_stream_pd
#define SPREAD _mm512_set1_pd
#elif defined(__AVX__)
#define LANES 4
typedef __m256d vector;
#define LOAD _mm256_loadu_pd
#define STREAM_STORE _mm256_stream_pd
#define SPREAD _mm256_set1_pd
#elif defined(__SSE2__)
#define LANES 2
typedef __m128d vector;
#define LOAD _mm_loadu_pd
#define STREAM_STORE _mm_stream_pd
#define SPREAD _mm_set1_pd
#endif

enum { COPY, SCALE, ADD, TRIAD, READ, READ1_WRITE1, READ3_WRITE1 };

int stream_has_streaming_stores(void) {
#ifdef LANES
    return 1;
#else
    return 0;
#endif
}

static void plain(int kernel, long i, long end, double q, double *restrict a, const double *restrict b,
                  const double *restrict c) {
    switch (kernel) {
    case COPY: for (; i < end; i++) a[i] = b[i]; break;
    case SCALE: for (; i < end; i++) a[i] = q * b[i]; break;
    case ADD: for (; i < end; i++) a[i] = b[i] + c[i]; break;
    case TRIAD: for (; i < end; i++) a[i] = b[i] + q * c[i]; break;
    case READ1_WRITE1: for (; i < end; i++) a[i] = q * a[i]; break;
    case READ3_WRITE1: for (; i < end; i++) a[i] = a[i] + b[i] * c[i]; break;
    }
}

#ifdef LANES
/* `a` is aligned to a vector at every part's begin: the arrays are, and parts are whole cache lines. */
static void streaming(int kernel, long i, long end, double q, double *restrict a, const double *restrict b,
                      const double *restrict c) {
    const vector factor = SPREAD(q);
    const long whole = i + (end - i) / LANES * LANES;
    switch (kernel) {
    case COPY: for (; i < whole; i += LANES) STREAM_STORE(a + i, LOAD(b + i)); break;
    case SCALE: for (; i < whole; i += LANES) STREAM_STORE(a + i, factor * LOAD(b + i)); break;
    case ADD: for (; i < whole; i += LANES) STREAM_STORE(a + i, LOAD(b + i) + LOAD(c + i)); break;
    case TRIAD: for (; i < whole; i += LANES) STREAM_STORE(a + i, LOAD(b + i) + factor * LOAD(c + i)); break;
    }
    _mm_sfence();
    plain(kernel, i, end, q, a, b, c);
}
#endif

/* Many running sums, or the addition's latency would bound the rate instead of the memory. */
static double read_all(long i, long end, const double *restrict a) {
    enum { SUMS = 64 };
    double sums[SUMS] = {0}, total = 0;
    for (; i + SUMS <= end; i += SUMS)
        for (int k = 0; k < SUMS; k++) sums[k] += a[i + k];
    for (; i < end; i++) total += a[i];
    for (int k = 0; k < SUMS; k++) total += sums[k];
    return total;
}

/* One pass over arrays of n doubles; the sum of `a` for READ, else 0. */
double stream_pass(int kernel, int use_streaming_stores, long n, double q, double *a, const double *b,
                   const double *c, const int *cpus, int members) {
    double total = 0;
#pragma omp parallel for num_threads(members) schedule(static, 1) reduction(+ : total)
    for (int m = 0; m < members; m++) {
        const long begin = part_begin(n, m, members), end = part_begin(n, m + 1, members);
        cpu_set_t before;
        enter(cpus[m], &before);
        if (kernel == READ)
            total += read_all(begin, end, a);
#ifdef LANES
        else if (use_streaming_stores && kernel <= TRIAD)
            streaming(kernel, begin, end, q, a, b, c);
#endif
        else
            plain(kernel, begin, end, q, a, b, c);
        leave(&before);
    }
    return total;
}

/* Repeat a table of `period` values through each array. Each page is first touched by the thread that will
 * use it, which is what places it in the memory of that thread's NUMA node. */
void stream_fill(long n, double *a, double *b, double *c, const double *ta, const double *tb,
                 const double *tc, long period, const int *cpus, int members) {
#pragma omp parallel for num_threads(members) schedule(static, 1)
    for (int m = 0; m < members; m++) {
        const long begin = part_begin(n, m, members), end = part_begin(n, m + 1, members);
        cpu_set_t before;
        enter(cpus[m], &before);
        for (long i = begin, k = begin % period; i < end; i++) {
            a[i] = ta[k];
            b[i] = tb[k];
            c[i] = tc[k];
            k = k + 1 == period ? 0 : k + 1;
        }
        leave(&before);
    }
}
