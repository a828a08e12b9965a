// Exact int8 convolutions of two kinds that a library has no fast call for at one image: products over the channels of
// a pixel (1 x 1 convolutions and linear layers), and depthwise 3 x 3 windows.
//
// Codes are unsigned bytes, weights signed ones of at most 64 in magnitude, so pairs of products fit int16 and sums of
// four are exact whether the CPU has VNNI or not. Sums are int32 and order-free; the zero point of the input sits in
// the bias. The epilogue is float32 and exact where it matters (`graph.inexact`): sum, scale by a power of two,
// residual, clamp, one rounding to even.

#include <cstdint>
#include <cstring>

#if defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512VNNI__)
#include <immintrin.h>
typedef __m512i V;
typedef __m512 F;
enum { W = 16, B = 64, WIDEST = 4 };
static constexpr int ROWS[] = {0, 14, 12, 9, 6};  // rows * vectors + vectors + 1 registers of 32
static inline V zeros() { return _mm512_setzero_si512(); }
static inline V load(const void* p) { return _mm512_loadu_si512(p); }
static inline V all8(uint8_t v) { return _mm512_set1_epi8((char)v); }
static inline V all32(int32_t v) { return _mm512_set1_epi32(v); }
static inline F all(float v) { return _mm512_set1_ps(v); }
static inline V dot(V acc, V a, V b) {
    // As _mm512_dpbusd_epi32; GCC 12 keeps the accumulators of that one on the stack.
    __asm__("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(a), "v"(b));
    return acc;
}
static inline V add(V a, V b) { return _mm512_add_epi32(a, b); }
static inline F to_float(V v) { return _mm512_cvtepi32_ps(v); }
static inline V to_int(F v) { return _mm512_cvtps_epi32(v); }  // to nearest even
static inline F mul(F a, F b) { return _mm512_mul_ps(a, b); }
static inline F add(F a, F b) { return _mm512_add_ps(a, b); }
static inline F clamp(F v, F lo, F hi) { return _mm512_min_ps(_mm512_max_ps(v, lo), hi); }
static inline F load_floats(const float* p) { return _mm512_loadu_ps(p); }
static inline V widen(const uint8_t* p) { return _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)p)); }
static inline void narrow(uint8_t* p, V v) { _mm_storeu_si128((__m128i*)p, _mm512_cvtepi32_epi8(v)); }
static inline void store(void* p, V v) { _mm512_storeu_si512(p, v); }
static inline V load_some(const uint8_t* p, int bytes) {
    return _mm512_maskz_loadu_epi8(bytes < B ? (1ull << bytes) - 1 : ~0ull, p);
}
static inline void store_some(uint8_t* p, V v, int bytes) {
    if (bytes >= 32) {
        _mm256_storeu_si256((__m256i*)p, _mm512_castsi512_si256(v));
        if (bytes == 32) return;
        p += 32, bytes -= 32, v = _mm512_castsi256_si512(_mm512_extracti64x4_epi64(v, 1));
    }
    if (bytes >= 16) {
        _mm_storeu_si128((__m128i*)p, _mm512_castsi512_si128(v));
        if (bytes == 16) return;
        p += 16, bytes -= 16, v = _mm512_castsi128_si512(_mm512_extracti32x4_epi32(v, 1));
    }
    _mm_mask_storeu_epi8(p, (__mmask16)((1u << bytes) - 1), _mm512_castsi512_si128(v));
}
static inline V lo8(V a, V b) { return _mm512_unpacklo_epi8(a, b); }
static inline V hi8(V a, V b) { return _mm512_unpackhi_epi8(a, b); }
static inline V lo16(V a, V b) { return _mm512_unpacklo_epi16(a, b); }
static inline V hi16(V a, V b) { return _mm512_unpackhi_epi16(a, b); }
static inline V pack16(V a, V b) { return _mm512_packs_epi32(a, b); }
static inline V pack8(V a, V b) { return _mm512_packus_epi16(a, b); }
#elif defined(__AVX2__)
#include <immintrin.h>
typedef __m256i V;
typedef __m256 F;
enum { W = 8, B = 32, WIDEST = 2 };
static constexpr int ROWS[] = {0, 6, 4};
static inline V zeros() { return _mm256_setzero_si256(); }
static inline V load(const void* p) { return _mm256_loadu_si256((const __m256i*)p); }
static inline V all8(uint8_t v) { return _mm256_set1_epi8((char)v); }
static inline V all32(int32_t v) { return _mm256_set1_epi32(v); }
static inline F all(float v) { return _mm256_set1_ps(v); }
static inline V add(V a, V b) { return _mm256_add_epi32(a, b); }
static inline V dot(V acc, V a, V b) {
    return add(acc, _mm256_madd_epi16(_mm256_maddubs_epi16(a, b), _mm256_set1_epi16(1)));
}
static inline F to_float(V v) { return _mm256_cvtepi32_ps(v); }
static inline V to_int(F v) { return _mm256_cvtps_epi32(v); }
static inline F mul(F a, F b) { return _mm256_mul_ps(a, b); }
static inline F add(F a, F b) { return _mm256_add_ps(a, b); }
static inline F clamp(F v, F lo, F hi) { return _mm256_min_ps(_mm256_max_ps(v, lo), hi); }
static inline F load_floats(const float* p) { return _mm256_loadu_ps(p); }
static inline V widen(const uint8_t* p) { return _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)p)); }
static inline void narrow(uint8_t* p, V v) {
    const __m256i bytes = _mm256_packus_epi16(_mm256_packs_epi32(v, v), v);
    const int32_t halves[2] = {_mm256_extract_epi32(bytes, 0), _mm256_extract_epi32(bytes, 4)};
    std::memcpy(p, halves, 8);
}
static inline void store(void* p, V v) { _mm256_storeu_si256((__m256i*)p, v); }
static inline V load_some(const uint8_t* p, int bytes) {
    uint8_t part[B] = {};
    std::memcpy(part, p, bytes);
    return load(part);
}
static inline void store_some(uint8_t* p, V v, int bytes) {
    uint8_t part[B];
    store(part, v);
    std::memcpy(p, part, bytes);
}
static inline V lo8(V a, V b) { return _mm256_unpacklo_epi8(a, b); }
static inline V hi8(V a, V b) { return _mm256_unpackhi_epi8(a, b); }
static inline V lo16(V a, V b) { return _mm256_unpacklo_epi16(a, b); }
static inline V hi16(V a, V b) { return _mm256_unpackhi_epi16(a, b); }
static inline V pack16(V a, V b) { return _mm256_packs_epi32(a, b); }
static inline V pack8(V a, V b) { return _mm256_packus_epi16(a, b); }
#else
#define NOTHING
#endif

extern "C" {

struct Product {
    const uint8_t* x;
    uint8_t* y;               // (images, height, width, channels), contiguous
    const uint8_t* residual;  // as y, or null
    int64_t images, height, width, stride;  // height and width of the output
    int64_t x_image, x_row, x_pixel;        // strides in bytes
    int64_t depth;                          // a multiple of 4
    int64_t channels;
    const int8_t* panels;
    const int32_t* bias;  // to whole vectors
    const float* scale;   // to whole vectors
    float lo, hi, residual_scale;  // the clamp is about the zero point of y
    int32_t zero_y, zero_r;
    int64_t threads;
};

struct Depthwise {
    const uint8_t* x;  // (images, in_height, in_width, channels), contiguous
    uint8_t* y;
    int64_t images, height, width, in_height, in_width, channels, stride, pad;
    const int8_t* weight;  // (blocks, 3 columns, 4, B): see agatha_int8_lanes
    const int32_t* bias;   // (blocks, 4, W)
    const float* scale;    // (blocks, 4, W)
    float lo, hi;
    int32_t zero_x, zero_y;
    int64_t threads;
};

#ifdef NOTHING
int64_t agatha_int8_lanes(void) { return 0; }  // nothing here is faster than a library
#else
// int32 lanes of a vector. One vector of a depthwise weight holds, in each 16 bytes l, the three rows (and a zero) of
// channels 16 l + 4 j to 16 l + 4 j + 3 of a block.
int64_t agatha_int8_lanes(void) { return W; }
#endif
}

#ifndef NOTHING

static constexpr int MOST_ROWS = 14;
static constexpr int CHUNK = 168;  // rows of a task

static inline int panel_vectors(int64_t vectors, int64_t panels, int64_t p) {
    return (int)(vectors * (p + 1) / panels - vectors * p / panels);
}

struct Tile {
    const uint8_t* x[MOST_ROWS];
    uint8_t* y[MOST_ROWS];
    const uint8_t* residual[MOST_ROWS];
};

template <int R, int N>
static void compute(const Product& c, const Tile& t, const int8_t* panel, int64_t column, int lanes) {
    V acc[R][N];
#pragma GCC unroll 16
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
        for (int j = 0; j < N; j++) acc[r][j] = zeros();
    for (int64_t k = 0; k < c.depth; k += 4) {
        V b[N];
#pragma GCC unroll 4
        for (int j = 0; j < N; j++) b[j] = load(panel + j * B);
        panel += N * B;
#pragma GCC unroll 16
        for (int r = 0; r < R; r++) {
            int32_t four;
            std::memcpy(&four, t.x[r] + k, 4);
            const V a = all32(four);
#pragma GCC unroll 4
            for (int j = 0; j < N; j++) acc[r][j] = dot(acc[r][j], a, b[j]);
        }
    }
    const F lo = all(c.lo), hi = all(c.hi), of_residual = all(c.residual_scale);
    const V zero_y = all32(c.zero_y), zero_r = all32(-c.zero_r);
#pragma GCC unroll 4
    for (int j = 0; j < N; j++) {
        const V bias = load(c.bias + column + j * W);
        const F scale = load_floats(c.scale + column + j * W);
        const int width = j == N - 1 ? lanes : W;
#pragma GCC unroll 16
        for (int r = 0; r < R; r++) {
            F v = mul(to_float(add(acc[r][j], bias)), scale);
            if (c.residual) {
                uint8_t part[W] = {};
                const uint8_t* at = t.residual[r] + j * W;
                if (width < W) {
                    std::memcpy(part, at, width);
                    at = part;
                }
                v = add(v, mul(to_float(add(widen(at), zero_r)), of_residual));
            }
            const V code = add(to_int(clamp(v, lo, hi)), zero_y);
            if (width == W) {
                narrow(t.y[r] + j * W, code);
            } else {
                uint8_t part[W];
                narrow(part, code);
                std::memcpy(t.y[r] + j * W, part, width);
            }
        }
    }
}

typedef void (*Compute)(const Product&, const Tile&, const int8_t*, int64_t, int);

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
#if defined(__AVX512VNNI__) && defined(__AVX512BW__) && defined(__AVX512VL__)
        Table<3>::fill(by[3]);
        Table<4>::fill(by[4]);
#endif
    }
};
static const Kernels kernels;

extern "C" {

// (channels, depth) row-major -> panels, each (depth / 4, its columns, 4), zero columns at the end.
void agatha_int8_pack(const int8_t* weight, int64_t channels, int64_t depth, int8_t* out) {
    const int64_t vectors = (channels + W - 1) / W, panels = (vectors + WIDEST - 1) / WIDEST;
    int64_t start = 0;
    for (int64_t p = 0; p < panels; p++) {
        const int64_t width = panel_vectors(vectors, panels, p) * W;
        int8_t* panel = out + start * depth;
        for (int64_t j = 0; j < width; j++)
            for (int64_t k = 0; k < depth; k++)
                panel[(k / 4 * width + j) * 4 + k % 4] = start + j < channels ? weight[(start + j) * depth + k] : 0;
        start += width;
    }
}

void agatha_int8_product(const Product* job) {
    const Product& c = *job;
    const int64_t rows = c.images * c.height * c.width;
    const int64_t vectors = (c.channels + W - 1) / W, panels = (vectors + WIDEST - 1) / WIDEST;
    int64_t chunks = (rows + CHUNK - 1) / CHUNK;
    while (c.threads > 1 && chunks * panels < 2 * c.threads && rows / (chunks + 1) >= 12) chunks++;
#pragma omp parallel for schedule(dynamic, 1) num_threads(c.threads) if (c.threads > 1)
    for (int64_t task = 0; task < chunks * panels; task++) {
        const int64_t chunk = task / panels, p = task % panels;
        const int n = panel_vectors(vectors, panels, p);
        const int64_t column = vectors * p / panels * W;
        const int lanes = p == panels - 1 ? (int)(c.channels - (vectors - 1) * W) : W;
        const int64_t from = rows * chunk / chunks, to = rows * (chunk + 1) / chunks;
        for (int64_t m = from; m < to;) {
            const int r = (int)(to - m < ROWS[n] ? to - m : ROWS[n]);
            Tile t;
            for (int i = 0; i < r; i++) {
                const int64_t row = m + i, x = row % c.width, y = row / c.width % c.height;
                const int64_t image = row / c.width / c.height;
                t.x[i] = c.x + image * c.x_image + y * c.stride * c.x_row + x * c.stride * c.x_pixel;
                t.y[i] = c.y + row * c.channels + column;
                t.residual[i] = c.residual + (c.residual ? row * c.channels + column : 0);
            }
            kernels.by[n][r](c, t, c.panels + column * c.depth, column, lanes);
            m += r;
        }
    }
}
}

// Three rows of one column of the image, B channels, interleaved for `dot`: channel by channel, four bytes each.
struct Column {
    V part[4];
};

template <bool WHOLE>
static inline V load_part(const uint8_t* p, int channels) {
    return WHOLE ? load(p) : load_some(p, channels);
}

template <bool WHOLE>
static inline Column column_of(const uint8_t* const* row, const bool* there, int64_t at, int channels, V outside) {
    const V a = there[0] ? load_part<WHOLE>(row[0] + at, channels) : outside;
    const V b = there[1] ? load_part<WHOLE>(row[1] + at, channels) : outside;
    const V c = there[2] ? load_part<WHOLE>(row[2] + at, channels) : outside;
    const V ab_lo = lo8(a, b), ab_hi = hi8(a, b), c_lo = lo8(c, c), c_hi = hi8(c, c);  // the fourth weight is 0
    return {{lo16(ab_lo, c_lo), hi16(ab_lo, c_lo), lo16(ab_hi, c_hi), hi16(ab_hi, c_hi)}};
}

// One row of outputs of up to B channels.
template <bool WHOLE>
static void depthwise_block(const Depthwise& c, const uint8_t* const* row, const bool* there, uint8_t* out,
                            int64_t first, int channels) {
    const V outside = all8((uint8_t)c.zero_x), zero_y = all32(c.zero_y);
    const F lo = all(c.lo), hi = all(c.hi);
    const int8_t* weight = c.weight + first * 12;  // 3 * 4 vectors of B bytes for B channels
    const int32_t* bias = c.bias + first;
    const float* scale = c.scale + first;
    V w[3][4];
#pragma GCC unroll 3
    for (int k = 0; k < 3; k++)
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++) w[k][j] = load(weight + (4 * k + j) * B);
    const Column border = {{outside, outside, outside, outside}};
    Column left = border, middle = border, right = border;
    int64_t next = -c.pad;  // the column of the image that is to be read next
    for (int64_t ox = 0; ox < c.width; ox++) {
        const int64_t last = ox * c.stride - c.pad + 2;
        for (; next <= last; next++) {
            left = middle, middle = right;
            right = next < 0 || next >= c.in_width
                        ? border
                        : column_of<WHOLE>(row, there, next * c.channels + first, channels, outside);
        }
        V code[4];
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++) {
            const V acc = dot(dot(dot(load(bias + j * W), left.part[j], w[0][j]), middle.part[j], w[1][j]),
                              right.part[j], w[2][j]);
            code[j] = add(to_int(clamp(mul(to_float(acc), load_floats(scale + j * W)), lo, hi)), zero_y);
        }
        const V bytes = pack8(pack16(code[0], code[1]), pack16(code[2], code[3]));
        if (WHOLE)
            store(out + ox * c.channels + first, bytes);
        else
            store_some(out + ox * c.channels + first, bytes, channels);
    }
}

static void depthwise_row(const Depthwise& c, int64_t image, int64_t oy) {
    const uint8_t* row[3];
    bool there[3];
    for (int k = 0; k < 3; k++) {
        const int64_t iy = oy * c.stride - c.pad + k;
        there[k] = iy >= 0 && iy < c.in_height;
        row[k] = c.x + (image * c.in_height + (there[k] ? iy : 0)) * c.in_width * c.channels;
    }
    uint8_t* out = c.y + (image * c.height + oy) * c.width * c.channels;
    for (int64_t first = 0; first < c.channels; first += B) {
        if (c.channels - first >= B)
            depthwise_block<true>(c, row, there, out, first, B);
        else
            depthwise_block<false>(c, row, there, out, first, (int)(c.channels - first));
    }
}

extern "C" void agatha_int8_depthwise(const Depthwise* job) {
    const Depthwise& c = *job;
#pragma omp parallel for schedule(dynamic, 2) num_threads(c.threads) if (c.threads > 1)
    for (int64_t row = 0; row < c.images * c.height; row++) depthwise_row(c, row / c.height, row % c.height);
}
#endif
