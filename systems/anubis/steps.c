/* The best piecewise constant fit of a series in L1 norm, by dynamic programming over segment ends.

   The cost of a segment is the sum of |y - median|. For a fixed end r, segments [l, r] are taken from the longest to
   the shortest: a list of the values in sorted order loses one member at a time, its median moves by one place at
   most, and the sums below and above it follow. So all n^2 / 2 costs take constant time each, and memory is linear. */

#include <stdint.h>
#include <stdlib.h>

#if defined(__GNUC__)
#define EXPORT __attribute__((visibility("default")))
#else
#define EXPORT
#endif

/* y (n): values; rank (n): place of each in sorted order; order (n): its inverse. best (n + 1): least cost of the
   first i values, each segment but the first charged `penalty`; from (n + 1): where the last segment of it begins.
   Returns 0, or 1 without memory. */
EXPORT int maat_fit_steps(const double *y, const int32_t *rank, const int32_t *order, int64_t n, double penalty,
                          int64_t shortest, double *best, int32_t *from) {
    int32_t *next = malloc((size_t)(n + 2) * sizeof *next), *previous = malloc((size_t)(n + 2) * sizeof *previous);
    if (!next || !previous) {
        free(next);
        free(previous);
        return 1;
    }
    const double unreachable = 1e300;
    best[0] = -penalty;
    from[0] = 0;
    for (int64_t r = 0; r < n; r++) {
        /* Places 1..n in sorted order; 0 and n + 1 end the list, which holds the places of y[0..r]. */
        int32_t last = 0;
        double total = 0.0;
        for (int64_t place = 1; place <= n; place++) {
            if (order[place - 1] <= r) {
                next[last] = (int32_t)place;
                previous[place] = last;
                last = (int32_t)place;
                total += y[order[place - 1]];
            }
        }
        next[last] = (int32_t)(n + 1);
        previous[n + 1] = last;

        int64_t below = r / 2, above = r - below; /* members besides the median */
        int32_t middle = next[0];
        double low = 0.0;
        for (int64_t k = 0; k < below; k++) {
            low += y[order[middle - 1]];
            middle = next[middle];
        }
        double high = total - low - y[order[middle - 1]];

        double least = unreachable;
        int32_t start = 0;
        for (int64_t l = 0; l + shortest <= r + 1; l++) {
            const double median = y[order[middle - 1]];
            const double cost = best[l] + penalty + (high - (double)above * median) + ((double)below * median - low);
            if (cost < least) {
                least = cost;
                start = (int32_t)l;
            }
            const int32_t gone = rank[l] + 1;
            if (gone == middle) {
                if (below > above || (below && !above)) {
                    middle = previous[middle];
                    low -= y[order[middle - 1]];
                    below--;
                } else if (above) {
                    middle = next[middle];
                    high -= y[order[middle - 1]];
                    above--;
                }
            } else if (gone < middle) {
                low -= y[l];
                below--;
            } else {
                high -= y[l];
                above--;
            }
            next[previous[gone]] = next[gone];
            previous[next[gone]] = previous[gone];
            if (above > below + 1) {
                low += y[order[middle - 1]];
                below++;
                middle = next[middle];
                high -= y[order[middle - 1]];
                above--;
            } else if (below > above) {
                high += y[order[middle - 1]];
                above++;
                middle = previous[middle];
                low -= y[order[middle - 1]];
                below--;
            }
        }
        best[r + 1] = least;
        from[r + 1] = start;
    }
    free(next);
    free(previous);
    return 0;
}
