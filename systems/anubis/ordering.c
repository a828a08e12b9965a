/* Orders of the rows of a matrix, and every column's total distance to all columns, from them.
 *
 * A row of doubles is sorted by the leading bits of its range, in two counting passes, and repaired by insertion:
 * values that share 22 bits of the range are rare. Where they are not (one far outlier stretches the range), the
 * repair stops at a budget and the row is sorted by all of its bits instead. Either way the order is exact. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { DIGIT = 11, BUCKETS = 1 << DIGIT, MASK = BUCKETS - 1 };

typedef struct {
    uint64_t key;
    int32_t at;
} entry;

/* Order-preserving: negative numbers have all bits flipped, the others their sign bit. */
static inline uint64_t key_of(double value) {
    uint64_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits ^ ((uint64_t)((int64_t)bits >> 63) | 0x8000000000000000u);
}

static void counting_pass(const entry *from, entry *to, int64_t n, int shift, uint32_t *count) {
    memset(count, 0, BUCKETS * sizeof *count);
    for (int64_t i = 0; i < n; i++) count[(from[i].key >> shift) & MASK]++;
    uint32_t sum = 0;
    for (int b = 0; b < BUCKETS; b++) {
        uint32_t here = count[b];
        count[b] = sum;
        sum += here;
    }
    for (int64_t i = 0; i < n; i++) to[count[(from[i].key >> shift) & MASK]++] = from[i];
}

/* Insertion within `budget` moves; 0 where that was not enough, and the entries are then in no order. */
static int repair(entry *sorted, int64_t n, int64_t budget) {
    for (int64_t i = 1; i < n; i++) {
        entry it = sorted[i];
        int64_t j = i;
        while (j > 0 && sorted[j - 1].key > it.key) {
            sorted[j] = sorted[j - 1];
            j--;
            if (--budget < 0) {
                sorted[j] = it;
                return 0;
            }
        }
        sorted[j] = it;
    }
    return 1;
}

/* Sorts `a` (n entries), with `b` (n) to work in; returns which of the two holds the result. */
static entry *sort_row(const double *row, entry *a, entry *b, int64_t n, uint32_t *count) {
    uint64_t least = UINT64_MAX, most = 0;
    for (int64_t i = 0; i < n; i++) {
        uint64_t key = key_of(row[i]);
        a[i].key = key;
        a[i].at = (int32_t)i;
        if (key < least) least = key;
        if (key > most) most = key;
    }
    uint64_t range = most - least;
    if (range == 0) return a;
    for (int64_t i = 0; i < n; i++) a[i].key -= least;
    int bits = 64 - __builtin_clzll(range);
    int shift = bits > 2 * DIGIT ? bits - 2 * DIGIT : 0;
    counting_pass(a, b, n, shift, count);
    if (bits > DIGIT) {
        counting_pass(b, a, n, shift + DIGIT, count);
    } else {
        entry *swap = a;
        a = b;
        b = swap;
    }
    if (shift == 0 || repair(a, n, 8 * n)) return a;
    for (int done = 0; done < bits; done += DIGIT) {
        counting_pass(a, b, n, done, count);
        entry *swap = a;
        a = b;
        b = swap;
    }
    return a;
}

static void add_totals(const double *row, const int32_t *order, int64_t n, double *totals) {
    double centre = row[order[n / 2]]; /* distances stay, and are no longer small differences of large sums */
    double sum = 0.0, before = 0.0;
    for (int64_t i = 0; i < n; i++) sum += row[order[i]] - centre;
    for (int64_t i = 0; i < n; i++) {
        double y = row[order[i]] - centre;
        before += y;
        totals[order[i]] += y * (double)(2 * i + 2 - n) + sum - 2.0 * before;
    }
}

/* X (q, n): orders (q, n), per row the columns in ascending order. 0, or -1 without memory. */
int maat_row_orders(const double *X, int64_t q, int64_t n, int32_t *orders) {
    entry *a = malloc((size_t)n * sizeof *a), *b = malloc((size_t)n * sizeof *b);
    uint32_t *count = malloc(BUCKETS * sizeof *count);
    int failed = !a || !b || !count;
    for (int64_t k = 0; !failed && k < q; k++) {
        const entry *sorted = sort_row(X + k * n, a, b, n, count);
        for (int64_t i = 0; i < n; i++) orders[k * n + i] = sorted[i].at;
    }
    free(a);
    free(b);
    free(count);
    return failed ? -1 : 0;
}

/* X (q, n), orders (q, m) of m of its columns: adds each one's distances to the m to totals (n). */
void maat_add_totals(const double *X, const int32_t *orders, int64_t q, int64_t n, int64_t m, double *totals) {
    for (int64_t k = 0; k < q; k++) add_totals(X + k * n, orders + k * m, m, totals);
}
