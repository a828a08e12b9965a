// The operations of a layer on word sequences, forward and backward, single precision.
//
// Every tensor is (sentences, words, channels), dense, with `length[b]` real words in sentence b; what lies beyond is
// padding, is read by nothing and written as zero. Channels are a multiple of 16. One thread; the order of every sum
// is fixed, so that a result depends on its input and on nothing else.

#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

typedef float v16 __attribute__((vector_size(64), aligned(4), may_alias));
typedef int32_t i16v __attribute__((vector_size(64), aligned(4), may_alias));
constexpr int LANES = 16;

inline v16 load(const float *p) { return *reinterpret_cast<const v16 *>(p); }
inline void store(float *p, v16 x) { *reinterpret_cast<v16 *>(p) = x; }
inline v16 all(float x) { return v16{} + x; }

// e^x within 2 ulp: x = n ln 2 + r, a polynomial of r (Cephes), and n into the exponent.
inline v16 exp16(v16 x) {
    x = x < all(-87.f) ? all(-87.f) : x;
    x = x > all(88.f) ? all(88.f) : x;
    const v16 magic = all(12582912.f);
    v16 n = x * 1.44269504088896341f + magic;
    n = n - magic;
    const v16 r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    v16 p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.f;
    const i16v power = (__builtin_convertvector(n, i16v) + 127) << 23;
    return p * reinterpret_cast<const v16 &>(power);
}
inline v16 sigmoid16(v16 x) { return 1.f / (1.f + exp16(-x)); }
inline v16 tanh16(v16 x) { return 2.f * sigmoid16(x + x) - 1.f; }

// Whether element `at` survives dropout: a hash of the seed and its place, against the threshold.
inline uint32_t hash(uint32_t at, uint32_t seed) {
    uint32_t x = at * 0x9E3779B1u + seed;
    x ^= x >> 16;
    x *= 0x85EBCA6Bu;
    x ^= x >> 13;
    x *= 0xC2B2AE35u;
    return x ^ (x >> 16);
}
inline float kept(uint32_t at, uint32_t seed, uint32_t threshold, float scale) {
    return hash(at, seed) >= threshold ? scale : 0.f;
}

// C[R, 16 V] (+)= A[R, K] B[K, 16 V]; A is read at rows `lda` apart and columns `sa` apart, so that overlapping
// windows and transposes need no copy.
template <int R, int V>
inline void tile(const float *a, long lda, long sa, const float *b, long ldb, float *c, long ldc, long K, bool add) {
    v16 acc[R][V];
    for (int r = 0; r < R; r++)
        for (int v = 0; v < V; v++) acc[r][v] = add ? load(c + r * ldc + v * LANES) : v16{};
    for (long k = 0; k < K; k++) {
        v16 row[V];
        for (int v = 0; v < V; v++) row[v] = load(b + k * ldb + v * LANES);
        for (int r = 0; r < R; r++) {
            const float s = a[r * lda + k * sa];
            for (int v = 0; v < V; v++) acc[r][v] += s * row[v];
        }
    }
    for (int r = 0; r < R; r++)
        for (int v = 0; v < V; v++) store(c + r * ldc + v * LANES, acc[r][v]);
}

template <int V>
inline void stripe(const float *a, long lda, long sa, const float *b, long ldb, float *c, long ldc, long M, long K,
                   bool add) {
    long m = 0;
    for (; m + 8 <= M; m += 8) tile<8, V>(a + m * lda, lda, sa, b, ldb, c + m * ldc, ldc, K, add);
    for (; m + 4 <= M; m += 4) tile<4, V>(a + m * lda, lda, sa, b, ldb, c + m * ldc, ldc, K, add);
    for (; m + 2 <= M; m += 2) tile<2, V>(a + m * lda, lda, sa, b, ldb, c + m * ldc, ldc, K, add);
    for (; m < M; m++) tile<1, V>(a + m * lda, lda, sa, b, ldb, c + m * ldc, ldc, K, add);
}

// C[M, N] (+)= A[M, K] B[K, N], N a multiple of 16.
inline void product(const float *a, long lda, long sa, const float *b, long ldb, float *c, long ldc, long M, long N,
                    long K, bool add) {
    long n = 0;
    for (; n + 32 <= N; n += 32) stripe<2>(a, lda, sa, b + n, ldb, c + n, ldc, M, K, add);
    for (; n < N; n += 16) stripe<1>(a, lda, sa, b + n, ldb, c + n, ldc, M, K, add);
}

// Sentences one after the other with `gap` zero rows before, between and after them.
struct Spaced {
    std::vector<float> rows;
    std::vector<long> first;  // row of each sentence's first word
    long count = 0;
    Spaced(const float *x, const int64_t *length, long B, long T, long H, long gap) : first(B) {
        count = gap;
        for (long b = 0; b < B; b++) {
            first[b] = count;
            count += length[b] + gap;
        }
        rows.assign((count + gap) * H, 0.f);
        for (long b = 0; b < B; b++) std::memcpy(&rows[first[b] * H], x + b * T * H, length[b] * H * sizeof(float));
    }
};

inline void clear_padding(float *y, const int64_t *length, long B, long T, long H) {
    for (long b = 0; b < B; b++)
        if (length[b] < T) std::memset(y + (b * T + length[b]) * H, 0, (T - length[b]) * H * sizeof(float));
}

}  // namespace

extern "C" {

// ------------------------------------------------------------------------------------------------- convolution

// w: (k, in, out); y[t] = bias + sum over i of x[t + i - k / 2] w[i].
void conv_forward(const float *x, const int64_t *length, long B, long T, long in, long out, long k, const float *w,
                  const float *bias, float *y) {
    const long half = k / 2;
    const Spaced s(x, length, B, T, in, half);
    for (long b = 0; b < B; b++) {
        float *to = y + b * T * out;
        for (long t = 0; t < length[b]; t++) std::memcpy(to + t * out, bias, out * sizeof(float));
        const float *from = &s.rows[(s.first[b] - half) * in];
        product(from, in, 1, w, out, to, out, length[b], out, k * in, true);
    }
    clear_padding(y, length, B, T, out);
}

// back: (k, out, in), w with its windows in reverse order and transposed; dw: (k, in, out).
void conv_backward(const float *x, const float *dy, const int64_t *length, long B, long T, long in, long out, long k,
                   const float *back, float *dx, float *dw, float *dbias) {
    const long half = k / 2;
    const Spaced s(x, length, B, T, in, half), d(dy, length, B, T, out, half);
    if (dx) {
        for (long b = 0; b < B; b++)
            product(&d.rows[(d.first[b] - half) * out], out, 1, back, in, dx + b * T * in, in, length[b], in, k * out,
                    false);
        clear_padding(dx, length, B, T, in);
    }
    // Rows of gaps are zero in d, so one product over all rows gives each window's share: (k in, rows) x (rows, out).
    const long rows = d.count - half;
    product(&s.rows[0], 1, in, &d.rows[half * out], out, dw, out, k * in, out, rows, false);
    std::memset(dbias, 0, out * sizeof(float));
    for (long b = 0; b < B; b++)
        for (long t = 0; t < length[b]; t++)
            for (long h = 0; h < out; h++) dbias[h] += dy[(b * T + t) * out + h];
}

// -------------------------------------------------------------------- sum, batch norm, rectifier, dropout in one

// s: the sum of n sources, kept for the backward pass (may be the one source). With `train`, mean and variance over
// the real words go to mean and var; else they are read from there. inv: 1 / sqrt(var + eps). relu, threshold: 0 for
// without.
void norm_forward(const float *const *source, long n, const int64_t *length, long B, long T, long H,
                  const float *gamma, const float *beta, float *mean, float *var, float *inv, float eps, int train,
                  int relu, uint32_t threshold, float scale, uint32_t seed, float *s, float *y) {
    if (n > 1)
        for (long b = 0; b < B; b++) {
            const long at = b * T * H, count = length[b] * H;
            std::memcpy(s + at, source[0] + at, count * sizeof(float));
            for (long i = 1; i < n; i++) {
                const float *__restrict from = source[i] + at;
                float *__restrict to = s + at;
                for (long j = 0; j < count; j++) to[j] += from[j];
            }
            std::memset(s + at + count, 0, (T * H - count) * sizeof(float));
        }
    const float *from = n > 1 ? s : source[0];
    if (train) {
        long words = 0;
        for (long b = 0; b < B; b++) words += length[b];
        std::memset(mean, 0, H * sizeof(float));
        std::memset(var, 0, H * sizeof(float));
        for (long b = 0; b < B; b++)
            for (long t = 0; t < length[b]; t++) {
                const float *row = from + (b * T + t) * H;
                for (long h = 0; h < H; h++) mean[h] += row[h];
            }
        for (long h = 0; h < H; h++) mean[h] /= words;
        for (long b = 0; b < B; b++)
            for (long t = 0; t < length[b]; t++) {
                const float *row = from + (b * T + t) * H;
                for (long h = 0; h < H; h++) var[h] += (row[h] - mean[h]) * (row[h] - mean[h]);
            }
        for (long h = 0; h < H; h++) var[h] /= words;
    }
    std::vector<float> times(H), plus(H);
    for (long h = 0; h < H; h++) {
        inv[h] = 1.f / std::sqrt(var[h] + eps);
        times[h] = gamma[h] * inv[h];
        plus[h] = beta[h] - mean[h] * times[h];
    }
    const float *__restrict w = times.data(), *__restrict c = plus.data();
    const float floor = relu ? 0.f : -INFINITY;
    for (long b = 0; b < B; b++)
        for (long t = 0; t < length[b]; t++) {
            const long at = (b * T + t) * H;
            const float *__restrict row = from + at;
            float *__restrict to = y + at;
            for (long h = 0; h < H; h++) {
                const float value = row[h] * w[h] + c[h];
                to[h] = value > floor ? value : floor;
            }
            if (threshold)
                for (long h = 0; h < H; h++) to[h] *= kept(uint32_t(at + h), seed, threshold, scale);
        }
    clear_padding(y, length, B, T, H);
}

// ds: gradient of the sum, hence of each source.
void norm_backward(const float *dy, const float *s, const float *y, const int64_t *length, long B, long T, long H,
                   const float *gamma, const float *mean, const float *inv, int train, int relu, uint32_t threshold,
                   float scale, uint32_t seed, float *ds, float *dgamma, float *dbeta) {
    long words = 0;
    for (long b = 0; b < B; b++) words += length[b];
    std::memset(dgamma, 0, H * sizeof(float));
    std::memset(dbeta, 0, H * sizeof(float));
    for (long b = 0; b < B; b++)
        for (long t = 0; t < length[b]; t++) {
            const long at = (b * T + t) * H;
            const float *__restrict d = dy + at, *__restrict row = s + at, *__restrict done = y + at;
            float *__restrict to = ds + at;
            for (long h = 0; h < H; h++) to[h] = d[h];
            if (threshold)
                for (long h = 0; h < H; h++) to[h] *= kept(uint32_t(at + h), seed, threshold, scale);
            if (relu)  // where the output was dropped its gradient is zero already
                for (long h = 0; h < H; h++) to[h] = done[h] > 0.f ? to[h] : 0.f;
            for (long h = 0; h < H; h++) {
                dbeta[h] += to[h];
                dgamma[h] += to[h] * (row[h] - mean[h]) * inv[h];
            }
        }
    std::vector<float> shift(H), slope(H), times(H);
    for (long h = 0; h < H; h++) {
        times[h] = gamma[h] * inv[h];
        shift[h] = train ? dbeta[h] / words : 0.f;
        slope[h] = train ? dgamma[h] / words * inv[h] : 0.f;
    }
    const float *__restrict w = times.data(), *__restrict c = shift.data(), *__restrict m = slope.data();
    for (long b = 0; b < B; b++)
        for (long t = 0; t < length[b]; t++) {
            const long at = (b * T + t) * H;
            const float *__restrict row = s + at;
            float *__restrict to = ds + at;
            for (long h = 0; h < H; h++) to[h] = w[h] * (to[h] - c[h] - (row[h] - mean[h]) * m[h]);
        }
    clear_padding(ds, length, B, T, H);
}

void dropout(const float *x, long count, uint32_t threshold, float scale, uint32_t seed, float *y) {
    for (long i = 0; i < count; i++) y[i] = x[i] * kept(uint32_t(i), seed, threshold, scale);
}

// ---------------------------------------------------------------------------------------------------- pooling

// Windows of three; which: the place of the largest, -1, 0 or 1 from the middle.
void maxpool_forward(const float *x, const int64_t *length, long B, long T, long H, float *y, int8_t *which) {
    for (long b = 0; b < B; b++)
        for (long t = 0; t < length[b]; t++) {
            const long at = (b * T + t) * H;
            const float *__restrict mid = x + at;
            const float *__restrict low = t > 0 ? mid - H : mid;
            const float *__restrict high = t + 1 < length[b] ? mid + H : mid;
            const int8_t before = t > 0 ? -1 : 0, after = t + 1 < length[b] ? 1 : 0;
            for (long h = 0; h < H; h++) {
                float best = low[h];
                int8_t place = before;
                place = mid[h] > best ? int8_t(0) : place;
                best = mid[h] > best ? mid[h] : best;
                place = high[h] > best ? after : place;
                best = high[h] > best ? high[h] : best;
                y[at + h] = best;
                which[at + h] = place;
            }
        }
    clear_padding(y, length, B, T, H);
}

void maxpool_backward(const float *dy, const int8_t *which, const int64_t *length, long B, long T, long H, float *dx) {
    for (long b = 0; b < B; b++)
        for (long t = 0; t < length[b]; t++) {
            const long at = (b * T + t) * H;
            float *__restrict to = dx + at;
            for (long h = 0; h < H; h++) to[h] = which[at + h] == 0 ? dy[at + h] : 0.f;
            if (t > 0)
                for (long h = 0; h < H; h++) to[h] += which[at - H + h] == 1 ? dy[at - H + h] : 0.f;
            if (t + 1 < length[b])
                for (long h = 0; h < H; h++) to[h] += which[at + H + h] == -1 ? dy[at + H + h] : 0.f;
        }
    clear_padding(dx, length, B, T, H);
}

// The mean of three, padding counted as zero; its own transpose, so this is the backward pass too.
void avgpool(const float *x, const int64_t *length, long B, long T, long H, float *y) {
    for (long b = 0; b < B; b++)
        for (long t = 0; t < length[b]; t++) {
            const long at = (b * T + t) * H;
            const float *__restrict mid = x + at;
            float *__restrict to = y + at;
            for (long h = 0; h < H; h++) to[h] = mid[h];
            if (t > 0)
                for (long h = 0; h < H; h++) to[h] += mid[h - H];
            if (t + 1 < length[b])
                for (long h = 0; h < H; h++) to[h] += mid[h + H];
            for (long h = 0; h < H; h++) to[h] *= 1.f / 3.f;
        }
    clear_padding(y, length, B, T, H);
}

// ------------------------------------------------------------------------------------------------------- GRU

// gates: (B, T, 2, 3H), the input's share of reset, update and new gate in both directions; wt: (2, H, 3H);
// y: (B, T, H), both directions summed. kept for backward: state (2, T, B, 4H) = r, z, n, the hidden share of n;
// before (2, T, B, H), the hidden state that each step starts from.
void gru_forward(const float *gates, const int64_t *length, long B, long T, long H, const float *wt, const float *bias,
                 float *y, float *state, float *before) {
    std::memset(y, 0, B * T * H * sizeof(float));
    std::vector<float> hidden(B * H), own(B * 3 * H);
    for (long dir = 0; dir < 2; dir++) {
        hidden.assign(B * H, 0.f);
        const float *w = wt + dir * H * 3 * H, *c = bias + dir * 3 * H;
        for (long step = 0; step < T; step++) {
            const long t = dir ? T - 1 - step : step;
            float *kept_h = before + (dir * T + t) * B * H;
            std::memcpy(kept_h, hidden.data(), B * H * sizeof(float));
            for (long b = 0; b < B; b++) std::memcpy(&own[b * 3 * H], c, 3 * H * sizeof(float));
            product(hidden.data(), H, 1, w, 3 * H, own.data(), 3 * H, B, 3 * H, H, true);
            for (long b = 0; b < B; b++) {
                if (t >= length[b]) continue;
                const float *g = gates + ((b * T + t) * 2 + dir) * 3 * H, *o = &own[b * 3 * H];
                float *kept_s = state + ((dir * T + t) * B + b) * 4 * H, *h = &hidden[b * H], *to = y + (b * T + t) * H;
                for (long j = 0; j < H; j += LANES) {
                    const v16 r = sigmoid16(load(g + j) + load(o + j));
                    const v16 z = sigmoid16(load(g + H + j) + load(o + H + j));
                    const v16 share = load(o + 2 * H + j);
                    const v16 n = tanh16(load(g + 2 * H + j) + r * share);
                    const v16 next = n + z * (load(h + j) - n);
                    store(kept_s + j, r);
                    store(kept_s + H + j, z);
                    store(kept_s + 2 * H + j, n);
                    store(kept_s + 3 * H + j, share);
                    store(h + j, next);
                    store(to + j, load(to + j) + next);
                }
            }
        }
    }
}

// w: (2, 3H, H). dgates as gates; dhidden: (2, T, B, 3H), the same for the hidden share.
void gru_backward(const float *dy, const int64_t *length, long B, long T, long H, const float *w, const float *state,
                  const float *before, float *dgates, float *dhidden) {
    std::vector<float> dh(B * H);
    for (long dir = 0; dir < 2; dir++) {
        dh.assign(B * H, 0.f);
        for (long step = T - 1; step >= 0; step--) {
            const long t = dir ? T - 1 - step : step;
            for (long b = 0; b < B; b++) {
                float *dg = dgates + ((b * T + t) * 2 + dir) * 3 * H;
                float *dk = dhidden + ((dir * T + t) * B + b) * 3 * H;
                if (t >= length[b]) {
                    std::memset(dg, 0, 3 * H * sizeof(float));
                    std::memset(dk, 0, 3 * H * sizeof(float));
                    continue;
                }
                const float *kept_s = state + ((dir * T + t) * B + b) * 4 * H;
                const float *h = before + ((dir * T + t) * B + b) * H, *d = dy + (b * T + t) * H;
                float *down = &dh[b * H];
                for (long j = 0; j < H; j += LANES) {
                    const v16 r = load(kept_s + j), z = load(kept_s + H + j), n = load(kept_s + 2 * H + j);
                    const v16 share = load(kept_s + 3 * H + j), whole = load(down + j) + load(d + j);
                    const v16 dn = whole * (1.f - z) * (1.f - n * n);
                    const v16 dz = whole * (load(h + j) - n) * z * (1.f - z);
                    const v16 dr = dn * share * r * (1.f - r);
                    store(dg + j, dr);
                    store(dg + H + j, dz);
                    store(dg + 2 * H + j, dn);
                    store(dk + j, dr);
                    store(dk + H + j, dz);
                    store(dk + 2 * H + j, dn * r);
                    store(down + j, whole * z);
                }
            }
            product(dhidden + (dir * T + t) * B * 3 * H, 3 * H, 1, w + dir * 3 * H * H, H, dh.data(), H, B, H, 3 * H,
                    true);
        }
    }
}

// -------------------------------------------------------------------------------------------------- attention

}  // extern "C"

namespace {

inline float total(v16 x) {
    float part[LANES];
    store(part, x);
    for (int wide = LANES / 2; wide; wide /= 2)
        for (int l = 0; l < wide; l++) part[l] += part[l + wide];
    return part[0];
}
inline float largest(v16 x) {
    float part[LANES];
    store(part, x);
    for (int wide = LANES / 2; wide; wide /= 2)
        for (int l = 0; l < wide; l++) part[l] = part[l + wide] > part[l] ? part[l + wide] : part[l];
    return part[0];
}
inline long rounded(long n) { return (n + LANES - 1) / LANES * LANES; }

// A part of a row-major matrix copied to rows of `pad` channels, and turned, to rows of `stride` words.
inline void copy(const float *x, long step, long words, long wide, long pad, int relu, std::vector<float> &rows) {
    rows.assign(words * pad, 0.f);
    for (long t = 0; t < words; t++)
        for (long j = 0; j < wide; j++) rows[t * pad + j] = relu && x[t * step + j] < 0.f ? 0.f : x[t * step + j];
}
inline void turn(const std::vector<float> &rows, long words, long wide, long pad, long stride,
                 std::vector<float> &columns) {
    columns.assign(wide * stride, 0.f);
    for (long j = 0; j < wide; j++)
        for (long t = 0; t < words; t++) columns[j * stride + t] = rows[t * pad + j];
}

// One head of one sentence: queries, keys and values by rows, keys turned, and the weights (words, stride).
struct Head {
    std::vector<float> q, k, v, turned, p;
    void weights(const float *qkv, long words, long H, long wide, long pad, long stride, float factor, int relu) {
        copy(qkv, 3 * H, words, wide, pad, relu, q);
        copy(qkv + H, 3 * H, words, wide, pad, relu, k);
        copy(qkv + 2 * H, 3 * H, words, wide, pad, relu, v);
        turn(k, words, wide, pad, stride, turned);
        p.resize(words * stride);
        product(q.data(), pad, 1, turned.data(), stride, p.data(), stride, words, stride, wide, false);
        for (long t = 0; t < words; t++) {  // each row's softmax over its `words` keys
            float *row = &p[t * stride];
            for (long s = words; s < stride; s++) row[s] = -INFINITY;
            v16 most = load(row), sum = {};
            for (long s = LANES; s < stride; s += LANES) most = load(row + s) > most ? load(row + s) : most;
            const float top = largest(most);
            for (long s = 0; s < stride; s += LANES) {
                v16 e = exp16((load(row + s) - top) * factor);
                e = load(row + s) == all(-INFINITY) ? v16{} : e;
                sum += e;
                store(row + s, e);
            }
            const float over = 1.f / total(sum);
            for (long s = 0; s < stride; s++) row[s] *= over;
        }
    }
};

}  // namespace

extern "C" {

// qkv: (B, T, 3H), three projections side by side; y: (B, T, H), heads side by side.
void attention_forward(const float *qkv, const int64_t *length, long B, long T, long H, long heads, int relu,
                       uint32_t threshold, float scale, uint32_t seed, float *y) {
    const long wide = H / heads, pad = rounded(wide), most = rounded(T);
    const float factor = 1.f / std::sqrt(float(wide));
    Head head;
    std::vector<float> out(T * pad);
    for (long b = 0; b < B; b++) {
        const long words = length[b], stride = rounded(words);
        for (long i = 0; i < heads; i++) {
            head.weights(qkv + b * T * 3 * H + i * wide, words, H, wide, pad, stride, factor, relu);
            if (threshold)
                for (long t = 0; t < words; t++) {
                    const uint32_t at = uint32_t(((b * heads + i) * T + t) * most);
                    float *row = &head.p[t * stride];
                    for (long s = 0; s < stride; s++) row[s] *= kept(at + uint32_t(s), seed, threshold, scale);
                }
            product(head.p.data(), stride, 1, head.v.data(), pad, out.data(), pad, words, pad, words, false);
            for (long t = 0; t < words; t++)
                std::memcpy(y + (b * T + t) * H + i * wide, &out[t * pad], wide * sizeof(float));
        }
    }
    clear_padding(y, length, B, T, H);
}

void attention_backward(const float *qkv, const float *dy, const int64_t *length, long B, long T, long H, long heads,
                        int relu, uint32_t threshold, float scale, uint32_t seed, float *dqkv) {
    const long wide = H / heads, pad = rounded(wide), most = rounded(T);
    const float factor = 1.f / std::sqrt(float(wide));
    Head head;
    std::vector<float> d, turned, dp, keep, down[3];
    for (long b = 0; b < B; b++) {
        const long words = length[b], stride = rounded(words);
        for (long i = 0; i < heads; i++) {
            head.weights(qkv + b * T * 3 * H + i * wide, words, H, wide, pad, stride, factor, relu);
            copy(dy + b * T * H + i * wide, H, words, wide, pad, 0, d);
            turn(head.v, words, wide, pad, stride, turned);
            dp.resize(words * stride);
            keep.resize(words * stride);
            product(d.data(), pad, 1, turned.data(), stride, dp.data(), stride, words, stride, wide, false);
            for (long t = 0; t < words; t++) {
                float *__restrict row = &head.p[t * stride], *__restrict drow = &dp[t * stride];
                float *__restrict used = &keep[t * stride];
                const uint32_t at = uint32_t(((b * heads + i) * T + t) * most);
                for (long s = 0; s < stride; s++)
                    used[s] = threshold ? kept(at + uint32_t(s), seed, threshold, scale) : 1.f;
                v16 sum = {};
                for (long s = 0; s < stride; s += LANES) {
                    store(drow + s, load(drow + s) * load(used + s));
                    sum += load(row + s) * load(drow + s);
                }
                const float dot = total(sum);
                for (long s = 0; s < stride; s++) {
                    drow[s] = row[s] * (drow[s] - dot) * factor;
                    used[s] *= row[s];
                }
            }
            for (auto &part : down) part.resize(words * pad);
            product(dp.data(), stride, 1, head.k.data(), pad, down[0].data(), pad, words, pad, words, false);
            product(dp.data(), 1, stride, head.q.data(), pad, down[1].data(), pad, words, pad, words, false);
            product(keep.data(), 1, stride, d.data(), pad, down[2].data(), pad, words, pad, words, false);
            for (long t = 0; t < words; t++)
                for (long part = 0; part < 3; part++) {
                    const float *x = qkv + (b * T + t) * 3 * H + part * H + i * wide, *from = &down[part][t * pad];
                    float *to = dqkv + (b * T + t) * 3 * H + part * H + i * wide;
                    for (long j = 0; j < wide; j++) to[j] = relu && x[j] <= 0.f ? 0.f : from[j];
                }
        }
    }
    clear_padding(dqkv, length, B, T, 3 * H);
}

// ----------------------------------------------------------------------------- what leaves the stack of layers

// y[b] = mean over words of the sum over n layers of weight[i] x_i[b]; means: (n, B, H), each layer's own.
void mix_forward(const float *const *source, long n, const int64_t *length, long B, long T, long H,
                 const float *weight, float *means, float *y) {
    std::memset(y, 0, B * H * sizeof(float));
    for (long i = 0; i < n; i++)
        for (long b = 0; b < B; b++) {
            float *__restrict mean = means + (i * B + b) * H;
            std::memset(mean, 0, H * sizeof(float));
            const float over = 1.f / length[b];
            for (long t = 0; t < length[b]; t++) {
                const float *__restrict row = source[i] + (b * T + t) * H;
                for (long h = 0; h < H; h++) mean[h] += row[h];
            }
            for (long h = 0; h < H; h++) mean[h] *= over;
            for (long h = 0; h < H; h++) y[b * H + h] += weight[i] * mean[h];
        }
}

void mix_backward(const float *dy, long n, const int64_t *length, long B, long T, long H, const float *weight,
                  float *const *down) {
    for (long i = 0; i < n; i++)
        for (long b = 0; b < B; b++) {
            const float over = weight[i] / length[b];
            const float *__restrict d = dy + b * H;
            for (long t = 0; t < length[b]; t++) {
                float *__restrict to = down[i] + (b * T + t) * H;
                for (long h = 0; h < H; h++) to[h] = over * d[h];
            }
        }
    for (long i = 0; i < n; i++) clear_padding(down[i], length, B, T, H);
}

// ------------------------------------------------------------------------------------------ Adam on some rows

// Gradients of `count` words are summed into the `distinct` rows they belong to (place[i] is the word's row among
// them), then Adam moves those rows and no others. size, root: the learning rate and the root of the second moment's
// correction, both for the present step.
void lazy_adam(float *table, float *first, float *second, const int64_t *rows, long distinct, const int64_t *place,
               long count, long wide, const float *gradient, float size, float root, float beta1, float beta2,
               float eps, float l2) {
    std::vector<float> sums(distinct * wide, 0.f);
    for (long i = 0; i < count; i++) {
        float *__restrict to = &sums[place[i] * wide];
        const float *__restrict from = gradient + i * wide;
        for (long j = 0; j < wide; j++) to[j] += from[j];
    }
    for (long i = 0; i < distinct; i++) {
        float *__restrict w = table + rows[i] * wide, *__restrict m = first + rows[i] * wide;
        float *__restrict v = second + rows[i] * wide;
        const float *__restrict g = &sums[i * wide];
        for (long j = 0; j < wide; j++) {
            const float slope = g[j] + l2 * w[j];
            m[j] += (1.f - beta1) * (slope - m[j]);
            v[j] += (1.f - beta2) * (slope * slope - v[j]);
            w[j] -= size * m[j] / (std::sqrt(v[j]) / root + eps);
        }
    }
}

}  // extern "C"
