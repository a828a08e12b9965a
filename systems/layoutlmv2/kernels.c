/* The relative bias of spatial-aware attention in one pass, and the gradients of its tables in another.

   Every pair (i, j) of a page adds three entries of expanded tables: by the difference of positions, of left edges and
   of bottom edges. The tables are as wide as all differences, with difference 0 in the middle. */

#include <stdint.h>
#include <string.h>

/* one, x, y: (heads, 2 * reach + 1). pos, left, low: (batch, length), already of absolute value at most reach.
   keep: (batch, length), 0 where a key is padding. out: (batch, heads, length, length), -inf at padding keys. */
void bias_forward(const float *one, const float *x, const float *y, const int32_t *pos, const int32_t *left,
                  const int32_t *low, const uint8_t *keep, float *out, int64_t batch, int64_t heads, int64_t length,
                  int64_t reach1, int64_t reach2, int threads) {
    const int64_t width1 = 2 * reach1 + 1, width2 = 2 * reach2 + 1;
    const float none = -__builtin_inff();
#pragma omp parallel for collapse(2) schedule(static) num_threads(threads)
    for (int64_t b = 0; b < batch; b++)
        for (int64_t h = 0; h < heads; h++) {
            const int32_t *restrict p = pos + b * length, *restrict l = left + b * length,
                          *restrict w = low + b * length;
            const uint8_t *restrict k = keep + b * length;
            for (int64_t i = 0; i < length; i++) {
                const float *restrict e1 = one + h * width1 + reach1 - p[i];
                const float *restrict ex = x + h * width2 + reach2 - l[i];
                const float *restrict ey = y + h * width2 + reach2 - w[i];
                float *restrict row = out + ((b * heads + h) * length + i) * length;
                for (int64_t j = 0; j < length; j++) {
                    const float sum = e1[p[j]] + ex[l[j]] + ey[w[j]];
                    row[j] = k[j] ? sum : none;
                }
            }
        }
}

/* grad: (batch, heads, length, length). one, x, y: (heads, 2 * reach + 1) double, sums by difference. */
void bias_backward(const float *grad, const int32_t *pos, const int32_t *left, const int32_t *low,
                   const uint8_t *keep, double *one, double *x, double *y, int64_t batch, int64_t heads,
                   int64_t length, int64_t reach1, int64_t reach2, int threads) {
    const int64_t width1 = 2 * reach1 + 1, width2 = 2 * reach2 + 1;
    /* A head is summed by one thread in a fixed order, so the sums do not depend on the number of threads. */
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t h = 0; h < heads; h++) {
        memset(one + h * width1, 0, width1 * sizeof(double));
        memset(x + h * width2, 0, width2 * sizeof(double));
        memset(y + h * width2, 0, width2 * sizeof(double));
        for (int64_t b = 0; b < batch; b++) {
            const int32_t *restrict p = pos + b * length, *restrict l = left + b * length,
                          *restrict w = low + b * length;
            const uint8_t *restrict k = keep + b * length;
            for (int64_t i = 0; i < length; i++) {
                double *restrict g1 = one + h * width1 + reach1 - p[i];
                double *restrict gx = x + h * width2 + reach2 - l[i];
                double *restrict gy = y + h * width2 + reach2 - w[i];
                const float *restrict row = grad + ((b * heads + h) * length + i) * length;
                for (int64_t j = 0; j < length; j++) {
                    if (!k[j]) continue;
                    const double g = row[j];
                    g1[p[j]] += g;
                    gx[l[j]] += g;
                    gy[w[j]] += g;
                }
            }
        }
    }
}
