// Binary32 operators with one fixed order of operations an output, as fast as a library that may choose its order.
//
// One output of a convolution is one chain of fused multiply-adds over (kh, kw, c), from +0. A vector register holds
// sixteen (or eight, or four) outputs, never parts of one: vectorising over outputs does not touch any chain, so the
// bits do not depend on register width, tile size, blocking or threads. Where the taps are cut into blocks, the
// accumulators rest in the output in between, which is exact.
//
// Input pixels are read in place: a row of taps of one output is a few runs of consecutive floats, since kernel rows
// lie side by side in NHWC and the planner keeps a halo of zeros around every image that is convolved with padding.
//
// Contraction is off; every fused multiply-add below is written as one.

#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#if defined(__AVX512F__)
#include <immintrin.h>
typedef __m512 V;
typedef __mmask16 Mask;
enum { W = 16, WIDEST = 4 };
static inline V zero() { return _mm512_setzero_ps(); }
static inline V load(const float* p) { return _mm512_loadu_ps(p); }
static inline V all(float v) { return _mm512_set1_ps(v); }
static inline V fma(V a, V b, V c) { return _mm512_fmadd_ps(a, b, c); }
static inline V add(V a, V b) { return _mm512_add_ps(a, b); }
static inline V mul(V a, V b) { return _mm512_mul_ps(a, b); }
static inline V above(V bound, V v) { return _mm512_max_ps(bound, v); }  // v where v is NaN
static inline V below(V bound, V v) { return _mm512_min_ps(bound, v); }
static inline V kept_nan(V a, V v) { return _mm512_mask_mov_ps(v, _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q), a); }
static inline Mask mask_of(int lanes) { return (Mask)((1u << lanes) - 1); }
static inline V load_part(const float* p, Mask m) { return _mm512_maskz_loadu_ps(m, p); }
static inline void store_part(float* p, Mask m, V v) { _mm512_mask_storeu_ps(p, m, v); }
static inline void store(float* p, V v) { _mm512_storeu_ps(p, v); }
static constexpr int ROWS[] = {0, 16, 12, 8, 6};  // rows * vectors + vectors + 1 registers of 32
#elif defined(__AVX2__) && defined(__FMA__)
#include <immintrin.h>
typedef __m256 V;
typedef __m256i Mask;
enum { W = 8, WIDEST = 2 };
static inline V zero() { return _mm256_setzero_ps(); }
static inline V load(const float* p) { return _mm256_loadu_ps(p); }
static inline V all(float v) { return _mm256_set1_ps(v); }
static inline V fma(V a, V b, V c) { return _mm256_fmadd_ps(a, b, c); }
static inline V add(V a, V b) { return _mm256_add_ps(a, b); }
static inline V mul(V a, V b) { return _mm256_mul_ps(a, b); }
static inline V above(V bound, V v) { return _mm256_max_ps(bound, v); }
static inline V below(V bound, V v) { return _mm256_min_ps(bound, v); }
static inline V kept_nan(V a, V v) { return _mm256_blendv_ps(v, a, _mm256_cmp_ps(a, a, _CMP_UNORD_Q)); }
static inline Mask mask_of(int lanes) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(lanes), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
static inline V load_part(const float* p, Mask m) { return _mm256_maskload_ps(p, m); }
static inline void store_part(float* p, Mask m, V v) { _mm256_maskstore_ps(p, m, v); }
static inline void store(float* p, V v) { _mm256_storeu_ps(p, v); }
static constexpr int ROWS[] = {0, 12, 6};
#else
// One lane: fmaf, which is correctly rounded in every libm, by an instruction where there is one. On ARM the
// compiler's vectoriser may not fuse lanes here, so NEON has its own lines.
#if defined(__aarch64__)
#include <arm_neon.h>
typedef float32x4_t V;
enum { W = 4, WIDEST = 4 };
static inline V zero() { return vdupq_n_f32(0); }
static inline V load(const float* p) { return vld1q_f32(p); }
static inline V all(float v) { return vdupq_n_f32(v); }
static inline V fma(V a, V b, V c) { return vfmaq_f32(c, a, b); }
static inline V add(V a, V b) { return vaddq_f32(a, b); }
static inline V mul(V a, V b) { return vmulq_f32(a, b); }
static inline V above(V bound, V v) { return vbslq_f32(vcgtq_f32(bound, v), bound, v); }
static inline V below(V bound, V v) { return vbslq_f32(vcltq_f32(bound, v), bound, v); }
static inline V kept_nan(V a, V v) { return vbslq_f32(vceqq_f32(a, a), v, a); }
static inline void store(float* p, V v) { vst1q_f32(p, v); }
static constexpr int ROWS[] = {0, 16, 12, 8, 6};
#else
typedef float V;
enum { W = 1, WIDEST = 4 };
static inline V zero() { return 0.0f; }
static inline V load(const float* p) { return *p; }
static inline V all(float v) { return v; }
static inline V fma(V a, V b, V c) { return __builtin_fmaf(a, b, c); }
static inline V add(V a, V b) { return a + b; }
static inline V mul(V a, V b) { return a * b; }
static inline V above(V bound, V v) { return bound > v ? bound : v; }
static inline V below(V bound, V v) { return bound < v ? bound : v; }
static inline V kept_nan(V a, V v) { return a != a ? a : v; }
static inline void store(float* p, V v) { *p = v; }
static constexpr int ROWS[] = {0, 4, 4, 4, 4};
#endif
typedef int Mask;
static inline Mask mask_of(int lanes) { return lanes; }
static inline V load_part(const float* p, Mask m) {
    float lanes[W] = {};
    std::memcpy(lanes, p, sizeof(float) * m);
    return load(lanes);
}
static inline void store_part(float* p, Mask m, V v) {
    float lanes[W];
    store(lanes, v);
    std::memcpy(p, lanes, sizeof(float) * m);
}
#endif

static constexpr int MOST_ROWS = 16;
static constexpr int BLOCK = 512;   // taps of a block: 64 columns of them are 128 KiB, which an L2 cache holds
static constexpr int CHUNK = 192;   // rows of a task

extern "C" {

// An image batch in memory: `data` is pixel (0, 0) of image 0; strides are counted in floats.
struct Image {
    float* data;
    int64_t image, row, pixel;
};

struct Conv {
    Image x, y, residual;  // residual.data may be null; x.data is where the padded image begins
    int64_t images, height, width, stride;  // height and width of the output
    int64_t runs;                           // of taps; run i covers `lengths[i]` floats from `offsets[i]`
    const int64_t* offsets;
    const int64_t* lengths;
    int64_t channels;  // of the output
    const float* panels;
    const float* bias;
    float lo, hi;
    int64_t threads;
};

struct Window {
    Image x, y, residual;
    int64_t images, height, width;  // of the output
    int64_t in_height, in_width;
    int64_t channels, kernel_height, kernel_width, stride, pad, dilation;
    const float* weight;  // (kernel_height, kernel_width, channels) of a depthwise convolution
    const float* bias;
    float lo, hi, scale;
    int64_t kind;  // 0 depthwise, 1 maximum, 2 average
    int64_t threads;
};

struct Pixelwise {
    Image a, b, y;  // b's strides are 0 where one vector is broadcast
    int64_t images, height, width, channels;
    float lo, hi;
    int64_t kind;  // 0 a + b, 1 a * b, 2 a
    int64_t threads;
};
}

static inline V finish(V v, V lo, V hi) { return add(below(hi, above(lo, v)), zero()); }  // -0 + 0 is +0

// How many vectors wide panel `p` is: the columns are spread evenly.
static inline int panel_vectors(int64_t vectors, int64_t panels, int64_t p) {
    return (int)(vectors * (p + 1) / panels - vectors * p / panels);
}

struct Run {
    int64_t offset, length;
};

struct Tile {
    const float* rows[MOST_ROWS];
    const float* residual[MOST_ROWS];
    float* y[MOST_ROWS];
};

template <int R, int N>
static void compute(const Tile& t, const Run* run, const Run* end, const float* panel, const float* bias, V lo, V hi,
                    int lanes, bool first, bool last, bool residual) {
    V acc[R][N];
    const Mask tail = mask_of(lanes);
#pragma GCC unroll 16
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
        for (int j = 0; j < N; j++)
            acc[r][j] = first ? zero()
                        : j < N - 1 || lanes == W ? load(t.y[r] + j * W)
                                                  : load_part(t.y[r] + j * W, tail);
    for (; run != end; run++) {
        const float* row[R];
#pragma GCC unroll 16
        for (int r = 0; r < R; r++) row[r] = t.rows[r] + run->offset;
        const int64_t length = run->length;
        for (int64_t k = 0; k < length; k++) {
            V b[N];
#pragma GCC unroll 4
            for (int j = 0; j < N; j++) b[j] = load(panel + j * W);
            panel += N * W;
#pragma GCC unroll 16
            for (int r = 0; r < R; r++) {
                const V a = all(row[r][k]);
#pragma GCC unroll 4
                for (int j = 0; j < N; j++) acc[r][j] = fma(a, b[j], acc[r][j]);
            }
        }
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
        for (int j = 0; j < N; j++) {
            const bool whole = j < N - 1 || lanes == W;
            V v = acc[r][j];
            if (last) {
                v = add(v, whole ? load(bias + j * W) : load_part(bias + j * W, tail));
                if (residual) v = add(v, whole ? load(t.residual[r] + j * W) : load_part(t.residual[r] + j * W, tail));
                v = finish(v, lo, hi);
            }
            if (whole)
                store(t.y[r] + j * W, v);
            else
                store_part(t.y[r] + j * W, tail, v);
        }
}

typedef void (*Compute)(const Tile&, const Run*, const Run*, const float*, const float*, V, V, int, bool, bool, bool);

template <int N, int R = ROWS[N]>
struct Table {
    static void fill(Compute* to) {
        to[R] = compute<R, N>;
        Table<N, R - 1>::fill(to);
    }
};
template <int N>
struct Table<N, 0> {
    static void fill(Compute*) {}
};

struct Kernels {
    Compute by[WIDEST + 1][MOST_ROWS + 1] = {};
    Kernels() {
        Table<1>::fill(by[1]);
        Table<2>::fill(by[2]);
#if !defined(__AVX2__) || defined(__AVX512F__)
        Table<3>::fill(by[3]);
        Table<4>::fill(by[4]);
#endif
    }
};
static const Kernels kernels;

extern "C" {

int64_t agatha_packed_size(int64_t columns, int64_t taps) { return (columns + W - 1) / W * W * taps; }

// (columns, taps) row-major -> panels, each (taps, its columns), zero columns at the end.
void agatha_pack(const float* weight, int64_t columns, int64_t taps, float* out) {
    const int64_t vectors = (columns + W - 1) / W, panels = (vectors + WIDEST - 1) / WIDEST;
    int64_t start = 0;
    for (int64_t p = 0; p < panels; p++) {
        const int64_t width = panel_vectors(vectors, panels, p) * W;
        for (int64_t k0 = 0; k0 < taps; k0 += 64) {
            const int64_t k1 = k0 + 64 < taps ? k0 + 64 : taps;
            for (int64_t j = 0; j < width; j++)
                for (int64_t k = k0; k < k1; k++)
                    out[start * taps + k * width + j] = start + j < columns ? weight[(start + j) * taps + k] : 0.0f;
        }
        start += width;
    }
}

void agatha_conv(const Conv* job) {
    const Conv& c = *job;
    std::vector<Run> pieces;
    std::vector<size_t> blocks = {0};  // where each block of taps starts among the pieces
    std::vector<int64_t> taps_before = {0};
    int64_t filled = 0, taps = 0;
    for (int64_t i = 0; i < c.runs; i++)
        for (int64_t at = 0; at < c.lengths[i];) {
            const int64_t left = c.lengths[i] - at, room = BLOCK - filled, length = left < room ? left : room;
            pieces.push_back({c.offsets[i] + at, length});
            at += length, filled += length, taps += length;
            if (filled == BLOCK) blocks.push_back(pieces.size()), taps_before.push_back(taps), filled = 0;
        }
    if (filled || taps == 0) blocks.push_back(pieces.size()), taps_before.push_back(taps);
    const int64_t rows = c.images * c.height * c.width;
    const int64_t vectors = (c.channels + W - 1) / W, panels = (vectors + WIDEST - 1) / WIDEST;
    int64_t chunks = (rows + CHUNK - 1) / CHUNK;
    while (chunks * panels < 2 * c.threads && rows / (chunks + 1) >= 12) chunks++;
    const V lo = all(c.lo), hi = all(c.hi);
#pragma omp parallel for schedule(dynamic, 1) num_threads(c.threads)
    for (int64_t task = 0; task < chunks * panels; task++) {
        const int64_t chunk = task / panels, p = task % panels;
        const int n = panel_vectors(vectors, panels, p);
        const int64_t column = vectors * p / panels * W;
        const int lanes = p == panels - 1 ? (int)(c.channels - (vectors - 1) * W) : W;
        const int64_t from = rows * chunk / chunks, to = rows * (chunk + 1) / chunks;
        for (size_t block = 0; block + 1 < blocks.size(); block++) {
            const float* panel = c.panels + column * taps + taps_before[block] * n * W;
            const bool first = block == 0, last = block + 2 == blocks.size();
            for (int64_t m = from; m < to;) {
                const int r = (int)(to - m < ROWS[n] ? to - m : ROWS[n]);
                Tile t;
                for (int i = 0; i < r; i++) {
                    const int64_t pixel = m + i, x = pixel % c.width, y = pixel / c.width % c.height;
                    const int64_t image = pixel / c.width / c.height;
                    t.rows[i] = c.x.data + image * c.x.image + y * c.stride * c.x.row + x * c.stride * c.x.pixel;
                    t.y[i] = c.y.data + image * c.y.image + y * c.y.row + x * c.y.pixel + column;
                    t.residual[i] = c.residual.data ? c.residual.data + image * c.residual.image + y * c.residual.row +
                                                          x * c.residual.pixel + column
                                                    : nullptr;
                }
                kernels.by[n][r](t, pieces.data() + blocks[block], pieces.data() + blocks[block + 1], panel,
                                 c.bias + column, lo, hi, lanes, first, last, c.residual.data != nullptr);
                m += r;
            }
        }
    }
}
}

// Neighbouring outputs of a depthwise convolution, sixteen channels of eight pixels at a time.
template <int P>
static void depthwise(const Window& c, const float* x, float* y, const float* residual, int64_t channel, Mask mask,
                      bool whole, V lo, V hi) {
    V acc[P];
#pragma GCC unroll 8
    for (int i = 0; i < P; i++) acc[i] = zero();
    const float* w = c.weight + channel;
    for (int64_t kh = 0; kh < c.kernel_height; kh++)
        for (int64_t kw = 0; kw < c.kernel_width; kw++, w += c.channels) {
            const V tap = whole ? load(w) : load_part(w, mask);
            const float* at = x + kh * c.dilation * c.x.row + kw * c.dilation * c.x.pixel + channel;
#pragma GCC unroll 8
            for (int i = 0; i < P; i++) {
                const float* pixel = at + i * c.stride * c.x.pixel;
                acc[i] = fma(whole ? load(pixel) : load_part(pixel, mask), tap, acc[i]);
            }
        }
    const V bias = whole ? load(c.bias + channel) : load_part(c.bias + channel, mask);
#pragma GCC unroll 8
    for (int i = 0; i < P; i++) {
        V v = add(acc[i], bias);
        if (residual) {
            const float* r = residual + i * c.residual.pixel + channel;
            v = add(v, whole ? load(r) : load_part(r, mask));
        }
        v = finish(v, lo, hi);
        if (whole)
            store(y + i * c.y.pixel + channel, v);
        else
            store_part(y + i * c.y.pixel + channel, mask, v);
    }
}

static void depthwise_row(const Window& c, int64_t image, int64_t oy) {
    const V lo = all(c.lo), hi = all(c.hi);
    const float* x = c.x.data + image * c.x.image + oy * c.stride * c.x.row;
    float* y = c.y.data + image * c.y.image + oy * c.y.row;
    const float* r = c.residual.data ? c.residual.data + image * c.residual.image + oy * c.residual.row : nullptr;
    for (int64_t ox = 0; ox < c.width;) {
        const int pixels = c.width - ox >= 8 ? 8 : c.width - ox >= 4 ? 4 : 1;
        const float* from = x + ox * c.stride * c.x.pixel;
        float* to = y + ox * c.y.pixel;
        const float* residual = r ? r + ox * c.residual.pixel : nullptr;
        for (int64_t channel = 0; channel < c.channels; channel += W) {
            const bool whole = channel + W <= c.channels;
            const Mask mask = mask_of(whole ? W : (int)(c.channels - channel));
            if (pixels == 8)
                depthwise<8>(c, from, to, residual, channel, mask, whole, lo, hi);
            else if (pixels == 4)
                depthwise<4>(c, from, to, residual, channel, mask, whole, lo, hi);
            else
                depthwise<1>(c, from, to, residual, channel, mask, whole, lo, hi);
        }
        ox += pixels;
    }
}

static void pool_row(const Window& c, int64_t image, int64_t oy) {
    const V lo = all(c.lo), hi = all(c.hi), scale = all(c.scale);
    const bool maximum = c.kind == 1;
    for (int64_t ox = 0; ox < c.width; ox++)
        for (int64_t channel = 0; channel < c.channels; channel += W) {
            const bool whole = channel + W <= c.channels;
            const Mask mask = mask_of(whole ? W : (int)(c.channels - channel));
            V acc = maximum ? all(-INFINITY) : zero();
            for (int64_t kh = 0; kh < c.kernel_height; kh++) {
                const int64_t iy = oy * c.stride - c.pad + kh * c.dilation;
                if (iy < 0 || iy >= c.in_height) continue;
                for (int64_t kw = 0; kw < c.kernel_width; kw++) {
                    const int64_t ix = ox * c.stride - c.pad + kw * c.dilation;
                    if (ix < 0 || ix >= c.in_width) continue;
                    const float* p = c.x.data + image * c.x.image + iy * c.x.row + ix * c.x.pixel + channel;
                    const V v = whole ? load(p) : load_part(p, mask);
                    acc = maximum ? kept_nan(acc, above(acc, v)) : add(acc, v);
                }
            }
            if (!maximum) acc = mul(acc, scale);
            float* to = c.y.data + image * c.y.image + oy * c.y.row + ox * c.y.pixel + channel;
            acc = finish(acc, lo, hi);
            if (whole)
                store(to, acc);
            else
                store_part(to, mask, acc);
        }
}

extern "C" {

void agatha_window(const Window* job) {
    const Window& c = *job;
#pragma omp parallel for schedule(dynamic, 2) num_threads(c.threads)
    for (int64_t row = 0; row < c.images * c.height; row++) {
        if (c.kind == 0)
            depthwise_row(c, row / c.height, row % c.height);
        else
            pool_row(c, row / c.height, row % c.height);
    }
}

void agatha_pixelwise(const Pixelwise* job) {
    const Pixelwise& c = *job;
    const V lo = all(c.lo), hi = all(c.hi);
#pragma omp parallel for schedule(static) num_threads(c.threads)
    for (int64_t row = 0; row < c.images * c.height; row++)
        for (int64_t x = 0; x < c.width; x++) {
            const int64_t image = row / c.height, y = row % c.height;
            const float* a = c.a.data + image * c.a.image + y * c.a.row + x * c.a.pixel;
            const float* b = c.kind == 2 ? a : c.b.data + image * c.b.image + y * c.b.row + x * c.b.pixel;
            float* to = c.y.data + image * c.y.image + y * c.y.row + x * c.y.pixel;
            for (int64_t channel = 0; channel < c.channels; channel += W) {
                const bool whole = channel + W <= c.channels;
                const Mask mask = mask_of(whole ? W : (int)(c.channels - channel));
                V v = whole ? load(a + channel) : load_part(a + channel, mask);
                if (c.kind != 2) {
                    const V other = whole ? load(b + channel) : load_part(b + channel, mask);
                    v = c.kind == 0 ? add(v, other) : mul(v, other);
                }
                v = finish(v, lo, hi);
                if (whole)
                    store(to + channel, v);
                else
                    store_part(to + channel, mask, v);
            }
        }
}
}
