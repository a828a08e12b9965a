/* Kernels of Spider for the CPU, single precision.
 *
 * A micro-tile index of a matrix S[rows, columns] is, for each block q, a list of ascending positions:
 * entries starts[q] .. starts[q + 1] of `index`, and for each entry `size` packed values of S.
 *   k_gather  S cut into groups of `size` rows; an entry is a column of the group.   (size x 1 micro-tiles)
 *   m_gather  S cut into blocks of `size` columns; an entry is a row of the block.   (1 x size micro-tiles)
 * One is the other for the transposed matrix, so that two kernels serve both a product and its gradient.
 *
 * Every output value is one chain of fused multiply-adds in ascending order of the reduction axis, whatever the
 * rule, the width of the panel or the number of threads; parts of a chain may rest in memory, which rounds
 * nothing. A zero inside a kept micro-tile adds 0 * y. So results of all rules are equal.
 *
 * Work is handed out by an atomic counter: which thread does an item changes nothing. Integers are validated by
 * the caller; addresses are computed in 64 bits. */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#if defined(__AVX__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#if defined(__AVX512F__)
#define BYTES 64
#elif defined(__AVX__)
#define BYTES 32
#else
#define BYTES 16
#endif
enum { LANES = BYTES / 4 };
#if defined(__AVX__) && !defined(__AVX512F__)
/* 16 registers: vectors of a panel for 8, 4, 2 and 1 rows at once. */
enum { V8 = 1, V4 = 2, V2 = 4, V1 = 8, SAMPLES = 1 };
#else
enum { V8 = 3, V4 = 6, V2 = 8, V1 = 8, SAMPLES = 3 };
#endif
enum { CHUNK = 1024 }; /* rows of an m_gather output panel that stay in the second-level cache */

typedef float vec __attribute__((vector_size(BYTES), aligned(4), may_alias));
typedef int32_t bits __attribute__((vector_size(BYTES)));
typedef uint8_t flags __attribute__((vector_size(LANES)));
#define UNROLL _Pragma("GCC unroll 16")
#define LOAD(p) (*(const vec *)(p))
#define STORE(p, v) (*(vec *)(p) = (v))

/* sum + a * y, rounded once where the CPU can. Said outright: left to itself, a compiler that tunes for a CPU with slow
 * chains of fused operations fuses in one loop and not in the next. */
static inline vec fused(vec a, vec y, vec sum) {
#if defined(__AVX512F__)
    return (vec)_mm512_fmadd_ps((__m512)a, (__m512)y, (__m512)sum);
#elif defined(__AVX__) && defined(__FMA__)
    return (vec)_mm256_fmadd_ps((__m256)a, (__m256)y, (__m256)sum);
#elif defined(__aarch64__)
    return (vec)vfmaq_f32((float32x4_t)sum, (float32x4_t)a, (float32x4_t)y);
#else
    return sum + a * y;
#endif
}
static inline float fused_one(float a, float y, float sum) {
#if defined(__FP_FAST_FMAF)
    return __builtin_fmaf(a, y, sum);
#else
    return sum + a * y;
#endif
}
static inline vec spread(float x) { return x - (vec){0}; } /* also -0.0 and NaN as they are */

static inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t take(int64_t *next) { return __atomic_fetch_add(next, 1, __ATOMIC_RELAXED); }

int64_t lanes(void) { return LANES; }
/* Columns of b that k_gather takes at once for groups of `size` rows. */
int64_t panel_width(int64_t size) { return LANES * (size >= 8 ? V8 : size == 4 ? V4 : size == 2 ? V2 : V1); }

/* ------------------------------------------------------------------------------------------------ detection */

/* out[c] gets bit i where x[i, c] is not zero, for up to 8 rows. NaN is not zero, -0.0 is. */
static void row_bits(const float *x, int64_t ld, int64_t rows, int64_t columns, uint8_t *out) {
    int64_t c = 0;
    for (; c + LANES <= columns; c += LANES) {
        bits found = {0};
        for (int64_t i = 0; i < rows; i++)
            found |= (bits)(LOAD(x + i * ld + c) != (vec){0}) & (int32_t)(1 << i);
        flags narrow = __builtin_convertvector(found, flags);
        memcpy(out + c, &narrow, LANES);
    }
    for (; c < columns; c++) {
        out[c] = 0;
        for (int64_t i = 0; i < rows; i++) out[c] |= (uint8_t)((x[i * ld + c] != 0) << i);
    }
}

/* Lists of groups begin .. end, written from *position on. values may be NULL. `work`: columns + 8 bytes.
 * counts[q] is the length of each list. */
void detect_k(const float *x, int64_t ld, int64_t rows, int64_t columns, int64_t size, int64_t begin, int64_t end,
              uint8_t *work, int32_t *index, float *values, int64_t *counts) {
    int64_t position = 0;
    for (int64_t q = begin; q < end; q++) {
        int64_t first = q * size, height = least(size, rows - first), before = position;
        const float *group = x + first * ld;
        row_bits(group, ld, least(height, 8), columns, work);
        for (int64_t i = 8; i < height; i++)
            for (int64_t c = 0; c < columns; c++) work[c] |= group[i * ld + c] != 0;
        memset(work + columns, 0, 8);
        for (int64_t c = 0; c < columns; c += 8) {
            uint64_t word;
            memcpy(&word, work + c, 8);
            /* the top bit of each byte that is not zero */
            word = (((word & 0x7f7f7f7f7f7f7f7fu) + 0x7f7f7f7f7f7f7f7fu) | word) & 0x8080808080808080u;
            for (; word; word &= word - 1) {
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
                int64_t column = c + (__builtin_ctzll(word) >> 3);
#else
#error "the lists would not ascend on a big-endian machine"
#endif
                index[position] = (int32_t)column;
                if (values) {
                    float *to = values + position * size;
                    const float *from = group + column;
                    if (height == 8 && size == 8) {
                        UNROLL for (int i = 0; i < 8; i++) to[i] = from[i * ld];
                    } else {
                        for (int64_t i = 0; i < height; i++) to[i] = from[i * ld];
                        for (int64_t i = height; i < size; i++) to[i] = 0;
                    }
                }
                position++;
            }
        }
        counts[q] = position - before;
    }
}

/* found[q * rows + m]: whether x[m, q * size ...] has a non-zero; rows begin .. end. */
void flag_m(const float *x, int64_t ld, int64_t rows, int64_t columns, int64_t size, int64_t begin, int64_t end,
            uint8_t *found) {
    for (int64_t m = begin; m < end; m++)
        for (int64_t q = 0, c = 0; c < columns; q++, c += size) {
            int64_t stop = least(c + size, columns), i = c;
            bits any = {0};
            for (; i + LANES <= stop; i += LANES) any |= (bits)(LOAD(x + m * ld + i) != (vec){0});
            int32_t some = 0;
            for (int l = 0; l < LANES; l++) some |= any[l];
            for (; i < stop; i++) some |= x[m * ld + i] != 0;
            found[q * rows + m] = some != 0;
        }
}

/* Turns the flags of blocks begin .. end into lists at starts[q], with `size` values each (zero past the edge). */
void list_m(const float *x, int64_t ld, int64_t rows, int64_t columns, int64_t size, int64_t begin, int64_t end,
            const uint8_t *found, const int64_t *starts, int32_t *index, float *values) {
    for (int64_t q = begin; q < end; q++) {
        int64_t position = starts[q], width = least(size, columns - q * size);
        for (int64_t m = 0; m < rows; m++)
            if (found[q * rows + m]) {
                index[position] = (int32_t)m;
                if (values) {
                    memcpy(values + position * size, x + m * ld + q * size, (size_t)width * 4);
                    memset(values + position * size + width, 0, (size_t)(size - width) * 4);
                }
                position++;
            }
    }
}

/* The values of x at the entries of an index, for groups begin .. end: in size x 1 micro-tiles with (row, column)
 * strides (si, sj) of x, of shape [rows, columns]; zero past the edge. */
void pack(const float *x, int64_t si, int64_t sj, int64_t rows, int64_t size, int64_t begin, int64_t end,
          const int64_t *starts, const int32_t *index, float *values) {
    for (int64_t q = begin; q < end; q++) {
        int64_t height = least(size, rows - q * size);
        const float *group = x + q * size * si;
        for (int64_t j = starts[q]; j < starts[q + 1]; j++) {
            const float *from = group + (int64_t)index[j] * sj;
            for (int64_t i = 0; i < height; i++) values[j * size + i] = from[i * si];
            for (int64_t i = height; i < size; i++) values[j * size + i] = 0;
        }
    }
}

/* From size x 1 lists of S[rows, columns]: for each column the rows of its non-zeros, ascending, as 1x1 lists of the
 * transposed matrix. starts_out: columns + 1, cleared; `place`: columns. Call with index_out = NULL to count only. */
void elements(const int64_t *starts, const int32_t *index, const float *values, int64_t size, int64_t groups,
              int64_t columns, int64_t *starts_out, int64_t *place, int32_t *index_out, float *values_out) {
    if (!index_out) {
        for (int64_t j = 0; j < starts[groups]; j++)
            for (int64_t i = 0; i < size; i++) starts_out[index[j] + 1] += values[j * size + i] != 0;
        for (int64_t c = 0; c < columns; c++) starts_out[c + 1] += starts_out[c];
        return;
    }
    memcpy(place, starts_out, (size_t)columns * 8);
    for (int64_t q = 0; q < groups; q++)
        for (int64_t i = 0; i < size; i++) /* rows ascend: one at a time, each over its group's list */
            for (int64_t j = starts[q]; j < starts[q + 1]; j++)
                if (values[j * size + i] != 0) {
                    int64_t to = place[index[j]]++;
                    index_out[to] = (int32_t)(q * size + i);
                    values_out[to] = values[j * size + i];
                }
}

/* Counts, over `blocks` evenly spread blocks of 8 rows, of the micro-tiles that hold a non-zero:
 * counts[0..3]: 1x1, 2x1, 4x1, 8x1; counts[4..6]: 1x16, 1x32, 1x64; counts[7]: whole rows; counts[8]: rows seen.
 * `work`: columns + 64 bytes. */
void profile(const float *x, int64_t ld, int64_t rows, int64_t columns, int64_t blocks, uint8_t *work, int64_t *counts) {
    int64_t all = (rows + 7) / 8;
    uint32_t table[256];
    for (int b = 0; b < 256; b++) {
        uint32_t pairs = 0, fours = 0;
        for (int i = 0; i < 8; i += 2) pairs += (b >> i & 3) != 0;
        for (int i = 0; i < 8; i += 4) fours += (b >> i & 15) != 0;
        table[b] = (uint32_t)__builtin_popcount((unsigned)b) | pairs << 8 | fours << 16 | (uint32_t)(b != 0) << 24;
    }
    memset(counts, 0, 9 * sizeof *counts);
    for (int64_t s = 0; s < blocks; s++) {
        int64_t first = (s * all / blocks) * 8, height = least(8, rows - first);
        row_bits(x + first * ld, ld, height, columns, work);
        memset(work + columns, 0, 64);
        uint8_t whole = 0;
        for (int64_t c = 0; c < columns; c += 64) {
            uint8_t wide = 0;
            uint64_t sums = 0;
            for (int64_t half = 0; half < 2; half++) {
                uint8_t middle = 0;
                for (int64_t quarter = 0; quarter < 2; quarter++) {
                    uint8_t narrow = 0;
                    uint32_t sum = 0; /* 16 columns: each byte stays below 129 */
                    const uint8_t *from = work + c + half * 32 + quarter * 16;
                    if (c + half * 32 + quarter * 16 >= columns) continue;
                    for (int i = 0; i < 16; i++) {
                        narrow |= from[i];
                        sum += table[from[i]];
                    }
                    sums += (sum & 0xff) | (uint64_t)(sum >> 8 & 0xff) << 16 | (uint64_t)(sum >> 16 & 0xff) << 32 |
                            (uint64_t)(sum >> 24) << 48;
                    counts[4] += __builtin_popcount(narrow);
                    middle |= narrow;
                }
                counts[5] += __builtin_popcount(middle);
                wide |= middle;
            }
            for (int i = 0; i < 4; i++) counts[i] += (int64_t)(sums >> (16 * i) & 0xffff);
            counts[6] += __builtin_popcount(wide);
            whole |= wide;
        }
        counts[7] += __builtin_popcount(whole);
        counts[8] += height;
    }
}

/* ------------------------------------------------------------------------------------------------- products */

/* A panel of b[depth, n0 .. n0 + cols] as [depth][width], zero past cols. */
static void copy_panel(const float *b, int64_t ldb, int64_t depth, int64_t cols, int64_t width, float *panel) {
    for (int64_t k = 0; k < depth; k++) {
        const float *from = b + k * ldb;
        float *to = panel + k * width;
        if (cols == width)
            for (int64_t n = 0; n < width; n += LANES) STORE(to + n, LOAD(from + n));
        else {
            memcpy(to, from, (size_t)cols * 4);
            memset(to + cols, 0, (size_t)(width - cols) * 4);
        }
    }
}

#define K_GATHER(R, V)                                                                                             \
    static void k_gather_##R##_##V(const int32_t *index, const float *values, int64_t n, int64_t stride,           \
                                   const float *b, int64_t ldb, float *c, int64_t ldc, int64_t rows,               \
                                   int64_t cols) {                                                                 \
        vec sum[R][V];                                                                                             \
        UNROLL for (int i = 0; i < R; i++) UNROLL for (int v = 0; v < V; v++) sum[i][v] = (vec){0};                \
        for (int64_t j = 0; j < n; j++) {                                                                          \
            const float *row = b + (int64_t)index[j] * ldb, *a = values + j * stride;                              \
            const float *ahead = b + (int64_t)index[j + 6 < n ? j + 6 : j] * ldb;                                  \
            UNROLL for (int v = 0; v < V; v++) __builtin_prefetch(ahead + v * LANES, 0, 3);                        \
            vec y[V];                                                                                              \
            UNROLL for (int v = 0; v < V; v++) y[v] = LOAD(row + v * LANES);                                       \
            UNROLL for (int i = 0; i < R; i++) UNROLL for (int v = 0; v < V; v++)                                  \
                sum[i][v] = fused(spread(a[i]), y[v], sum[i][v]);                                                  \
        }                                                                                                          \
        if (cols == V * LANES) {                                                                                   \
            UNROLL for (int i = 0; i < R; i++) if (i < rows) {                                                     \
                UNROLL for (int v = 0; v < V; v++) STORE(c + i * ldc + v * LANES, sum[i][v]);                      \
            }                                                                                                      \
        } else {                                                                                                   \
            float edge[V * LANES];                                                                                 \
            UNROLL for (int i = 0; i < R; i++) if (i < rows) {                                                     \
                UNROLL for (int v = 0; v < V; v++) STORE(edge + v * LANES, sum[i][v]);                             \
                memcpy(c + i * ldc, edge, (size_t)cols * 4);                                                       \
            }                                                                                                      \
        }                                                                                                          \
    }
#if defined(__AVX__) && !defined(__AVX512F__)
K_GATHER(8, 1) K_GATHER(4, 2) K_GATHER(2, 4) K_GATHER(1, 8) K_GATHER(4, 1) K_GATHER(2, 1) K_GATHER(1, 1)
#define EIGHT k_gather_8_1
#define FOUR k_gather_4_2
#define TWO k_gather_2_4
#define FOUR_EDGE k_gather_4_1
#define TWO_EDGE k_gather_2_1
#define ONE_EDGE k_gather_1_1
#else
K_GATHER(8, 3) K_GATHER(4, 6) K_GATHER(2, 8) K_GATHER(1, 8) K_GATHER(4, 3) K_GATHER(2, 3) K_GATHER(1, 3)
#define EIGHT k_gather_8_3
#define FOUR k_gather_4_6
#define TWO k_gather_2_8
#define FOUR_EDGE k_gather_4_3
#define TWO_EDGE k_gather_2_3
#define ONE_EDGE k_gather_1_3
#endif

/* out[rows, columns] = S b, S[rows, depth] in groups of `size` rows. An item of work is a panel of b times one
 * of `parts` ranges of groups. `buffer`: depth * panel_width(size) floats of this thread. packed: whether full
 * panels are copied first, which pays when their rows are used more than a few times. */
void k_gather(const int64_t *starts, const int32_t *index, const float *values, int64_t size, int64_t groups,
              const float *b, int64_t ldb, float *out, int64_t ldo, int64_t rows, int64_t columns, int64_t depth,
              int64_t parts, int64_t packed, int64_t *next, float *buffer) {
    int64_t width = panel_width(size), panels = (columns + width - 1) / width, held = -1;
    for (int64_t item; (item = take(next)) < panels * parts;) {
        int64_t p = item / parts, part = item % parts;
        int64_t n0 = p * width, cols = least(width, columns - n0), ld = ldb;
        const float *panel = b + n0;
        if (packed || cols < width) {
            if (held != p) copy_panel(panel, ldb, depth, cols, width, buffer);
            held = p;
            panel = buffer, ld = width;
        }
        for (int64_t q = groups * part / parts; q < groups * (part + 1) / parts; q++) {
            int64_t first = q * size, height = least(size, rows - first), n = starts[q + 1] - starts[q];
            const int32_t *list = index + starts[q];
            const float *value = values + starts[q] * size;
            float *c = out + first * ldo + n0;
            for (int64_t i = 0; i < height;) {
                int64_t left = size - i, wanted = height - i;
                float *to = c + i * ldo;
                const float *from = value + i;
                if (size >= 8) {
                    if (left >= 8) EIGHT(list, from, n, size, panel, ld, to, ldo, wanted, cols), i += 8;
                    else if (left >= 4) FOUR_EDGE(list, from, n, size, panel, ld, to, ldo, wanted, cols), i += 4;
                    else if (left >= 2) TWO_EDGE(list, from, n, size, panel, ld, to, ldo, wanted, cols), i += 2;
                    else ONE_EDGE(list, from, n, size, panel, ld, to, ldo, wanted, cols), i += 1;
                } else if (size == 4) FOUR(list, from, n, size, panel, ld, to, ldo, wanted, cols), i += 4;
                else if (size == 2) TWO(list, from, n, size, panel, ld, to, ldo, wanted, cols), i += 2;
                else k_gather_1_8(list, from, n, size, panel, ld, to, ldo, wanted, cols), i += 1;
            }
        }
    }
}

/* E rows: c[e][..] += sum over k of a[e][k] * b[k][..]. */
#define STRIP(E, V)                                                                                                \
    static void strip_##E(const float *const *a, int64_t steps, const float *b, int64_t ldb, float *const *c) {    \
        vec sum[E][V];                                                                                             \
        UNROLL for (int e = 0; e < E; e++) UNROLL for (int v = 0; v < V; v++) sum[e][v] = LOAD(c[e] + v * LANES);  \
        for (int64_t k = 0; k < steps; k++) {                                                                      \
            vec y[V];                                                                                              \
            UNROLL for (int v = 0; v < V; v++) y[v] = LOAD(b + k * ldb + v * LANES);                               \
            UNROLL for (int e = 0; e < E; e++) UNROLL for (int v = 0; v < V; v++)                                  \
                sum[e][v] = fused(spread(a[e][k]), y[v], sum[e][v]);                                               \
        }                                                                                                          \
        UNROLL for (int e = 0; e < E; e++) UNROLL for (int v = 0; v < V; v++) STORE(c[e] + v * LANES, sum[e][v]);  \
    }
#if defined(__AVX__) && !defined(__AVX512F__)
STRIP(8, 1) STRIP(4, 1) STRIP(1, 1)
#else
STRIP(8, 3) STRIP(4, 3) STRIP(1, 3)
#endif

static int64_t lower_bound(const int32_t *list, int64_t n, int64_t value) {
    int64_t low = 0;
    while (n > 0) {
        int64_t half = n / 2;
        if (list[low + half] < value) low += half + 1, n -= half + 1;
        else n = half;
    }
    return low;
}

/* out[rows, columns] = S b, S[rows, depth] in blocks of `size` columns. `buffer`: (depth + CHUNK) *
 * panel_width(8) floats of this thread. */
void m_gather(const int64_t *starts, const int32_t *index, const float *values, int64_t size, int64_t blocks,
              const float *b, int64_t ldb, float *out, int64_t ldo, int64_t rows, int64_t columns, int64_t depth,
              int64_t *next, float *buffer) {
    int64_t width = panel_width(8), panels = (columns + width - 1) / width, chunks = (rows + CHUNK - 1) / CHUNK;
    int64_t held = -1;
    float *sums = buffer + depth * width;
    for (int64_t item; (item = take(next)) < panels * chunks;) {
        int64_t p = item / chunks, m0 = item % chunks * CHUNK, m1 = least(m0 + CHUNK, rows);
        int64_t n0 = p * width, cols = least(width, columns - n0);
        if (held != p) copy_panel(b + n0, ldb, depth, cols, width, buffer);
        held = p;
        memset(sums, 0, (size_t)((m1 - m0) * width) * 4);
        for (int64_t q = 0; q < blocks; q++) {
            const int32_t *list = index + starts[q];
            int64_t all = starts[q + 1] - starts[q], steps = least(size, depth - q * size);
            int64_t j = lower_bound(list, all, m0), n = lower_bound(list, all, m1);
            const float *value = values + starts[q] * size, *panel = buffer + q * size * width;
            const float *a[8];
            float *c[8];
            for (; j + 8 <= n; j += 8) {
                UNROLL for (int e = 0; e < 8; e++) {
                    a[e] = value + (j + e) * size;
                    c[e] = sums + (list[j + e] - m0) * width;
                }
                strip_8(a, steps, panel, width, c);
            }
            for (int64_t e; j < n; j += e) {
                e = n - j >= 4 ? 4 : 1;
                for (int64_t i = 0; i < e; i++) {
                    a[i] = value + (j + i) * size;
                    c[i] = sums + (list[j + i] - m0) * width;
                }
                if (e == 4) strip_4(a, steps, panel, width, c);
                else strip_1(a, steps, panel, width, c);
            }
        }
        for (int64_t m = m0; m < m1; m++) memcpy(out + m * ldo + n0, sums + (m - m0) * width, (size_t)cols * 4);
    }
}

/* Experts: out[j, :] = x[row[j], :] w[e] for the entries j of starts[e] .. starts[e + 1]. w: [experts, depth,
 * columns] with strides; out: [entries, columns], contiguous. `buffer`: (depth + 8) * panel_width(8) floats. */
void grouped(const int64_t *starts, const int32_t *row, int64_t experts, const float *x, int64_t ldx, const float *w,
             int64_t expert_stride, int64_t ldw, float *out, int64_t columns, int64_t depth, int64_t *next,
             float *buffer) {
    int64_t width = panel_width(8), panels = (columns + width - 1) / width;
    float *edge = buffer + depth * width;
    for (int64_t item; (item = take(next)) < panels * experts;) {
        int64_t e = item / panels, n0 = item % panels * width, cols = least(width, columns - n0);
        int64_t begin = starts[e], end = starts[e + 1], ld = ldw;
        if (begin == end) continue;
        const float *panel = w + e * expert_stride + n0;
        if (cols < width || end - begin > 8) {
            copy_panel(panel, ldw, depth, cols, width, buffer);
            panel = buffer, ld = width;
        }
        for (int64_t j = begin, n; j < end; j += n) {
            const float *a[8];
            float *c[8];
            n = end - j >= 8 ? 8 : end - j >= 4 ? 4 : 1;
            memset(edge, 0, (size_t)(8 * width) * 4);
            for (int64_t i = 0; i < n; i++) a[i] = x + (int64_t)row[j + i] * ldx, c[i] = edge + i * width;
            if (n == 8) strip_8(a, depth, panel, ld, c);
            else if (n == 4) strip_4(a, depth, panel, ld, c);
            else strip_1(a, depth, panel, ld, c);
            for (int64_t i = 0; i < n; i++) memcpy(out + (j + i) * columns + n0, edge + i * width, (size_t)cols * 4);
        }
    }
}

/* R rows of x by n rows of y: dots[e][i]. Lanes are summed pairwise, the rest of the depth one by one. */
static inline float lane_sum(vec v) {
    float part[LANES];
    memcpy(part, &v, BYTES);
    for (int step = LANES / 2; step; step /= 2)
        for (int l = 0; l < step; l++) part[l] += part[l + step];
    return part[0];
}
#define DOTS(R, E)                                                                                                 \
    static void dots_##R##_##E(const float *x, int64_t ldx, const float *const *y, int64_t depth, float *out) {    \
        vec sum[E][R];                                                                                             \
        UNROLL for (int e = 0; e < E; e++) UNROLL for (int i = 0; i < R; i++) sum[e][i] = (vec){0};                \
        int64_t n = 0;                                                                                             \
        for (; n + LANES <= depth; n += LANES) {                                                                   \
            vec b[E];                                                                                              \
            UNROLL for (int e = 0; e < E; e++) b[e] = LOAD(y[e] + n);                                              \
            UNROLL for (int i = 0; i < R; i++) {                                                                   \
                vec a = LOAD(x + i * ldx + n);                                                                     \
                UNROLL for (int e = 0; e < E; e++) sum[e][i] = fused(a, b[e], sum[e][i]);                          \
            }                                                                                                      \
        }                                                                                                          \
        UNROLL for (int e = 0; e < E; e++) UNROLL for (int i = 0; i < R; i++) {                                    \
            float total = lane_sum(sum[e][i]);                                                                     \
            for (int64_t t = n; t < depth; t++) total = fused_one(x[i * ldx + t], y[e][t], total);                 \
            out[e * 8 + i] = total;                                                                                \
        }                                                                                                          \
    }
#if defined(__AVX__) && !defined(__AVX512F__)
DOTS(8, 1) DOTS(4, 1) DOTS(2, 1) DOTS(1, 1)
#define DOTS8 dots_8_1
#define DOTS4 dots_4_1
#define DOTS2 dots_2_1
#define DOTS1 dots_1_1
#else
DOTS(8, 3) DOTS(4, 3) DOTS(2, 3) DOTS(1, 3) DOTS(8, 1) DOTS(4, 1) DOTS(2, 1) DOTS(1, 1)
#define DOTS8 dots_8_3
#define DOTS4 dots_4_3
#define DOTS2 dots_2_3
#define DOTS1 dots_1_3
#endif

/* out[i, j] = x[i, :] . y[j, :] where S[i, j] is not zero; out was cleared by the caller. S is indexed in groups
 * of `size` rows of x, with strides (so, sj) of out; y has `others` rows, cut into `parts` that stay in cache.
 * packed: out is [entries, size] instead, in the order of the index. */
void sampled(const int64_t *starts, const int32_t *index, const float *values, int64_t size, int64_t groups,
             const float *x, int64_t ldx, const float *y, int64_t ldy, float *out, int64_t so, int64_t sj,
             int64_t rows, int64_t others, int64_t depth, int64_t parts, int64_t packed, int64_t *next) {
    for (int64_t part; (part = take(next)) < parts;) {
        int64_t first_y = others * part / parts, last_y = others * (part + 1) / parts;
        for (int64_t q = 0; q < groups; q++) {
            const int32_t *list = index + starts[q];
            int64_t all = starts[q + 1] - starts[q];
            int64_t begin = lower_bound(list, all, first_y), end = lower_bound(list, all, last_y);
            int64_t height = least(size, rows - q * size);
            for (int64_t i = 0, r; i < height; i += r) {
                int64_t left = height - i;
                r = left >= 8 ? 8 : left >= 4 ? 4 : left >= 2 ? 2 : 1;
                const float *a = x + (q * size + i) * ldx;
                for (int64_t j = begin, n; j < end; j += n) {
                    const float *b[SAMPLES];
                    float dots[SAMPLES * 8];
                    n = end - j >= SAMPLES ? SAMPLES : 1;
                    for (int64_t e = 0; e < n; e++) b[e] = y + (int64_t)list[j + e] * ldy;
                    if (n == SAMPLES) {
                        if (r == 8) DOTS8(a, ldx, b, depth, dots);
                        else if (r == 4) DOTS4(a, ldx, b, depth, dots);
                        else if (r == 2) DOTS2(a, ldx, b, depth, dots);
                        else DOTS1(a, ldx, b, depth, dots);
                    } else {
                        if (r == 8) dots_8_1(a, ldx, b, depth, dots);
                        else if (r == 4) dots_4_1(a, ldx, b, depth, dots);
                        else if (r == 2) dots_2_1(a, ldx, b, depth, dots);
                        else dots_1_1(a, ldx, b, depth, dots);
                    }
                    for (int64_t e = 0; e < n; e++)
                        for (int64_t k = 0; k < r; k++) {
                            int64_t entry = (starts[q] + j + e) * size + i + k;
                            float dot = values[entry] != 0 ? dots[e * 8 + k] : 0;
                            if (packed) out[entry] = dot;
                            else if (values[entry] != 0)
                                out[(q * size + i + k) * so + (int64_t)list[j + e] * sj] = dot;
                        }
                }
            }
        }
    }
}
