// Graph layout: stable counting sorts and 2D chunks. Vertex ids are int32, offsets int64.

#include <stdint.h>
#include <string.h>

// offsets: (buckets + 1), zeroed by the caller. Gives where each bucket begins.
void count(const int32_t *keys, int64_t n, int64_t buckets, int64_t *offsets) {
    for (int64_t i = 0; i < n; ++i) ++offsets[keys[i] + 1];
    for (int64_t b = 0; b < buckets; ++b) offsets[b + 1] += offsets[b];
}

// A stable counting sort of the positions `order` (NULL: 0, 1, ...) by keys[position].
// cursor: (buckets), a copy of the offsets, which this destroys. out: (n).
void arrange(const int32_t *keys, const int32_t *order, int64_t n, int64_t *cursor, int32_t *out) {
    for (int64_t i = 0; i < n; ++i) {
        int32_t position = order ? order[i] : (int32_t)i;
        out[cursor[keys[position]]++] = position;
    }
}

// Arcs by row (offsets, ids ascending in a row) to chunks of `side` x `side`, row interval by row interval.
// Called twice: with rows NULL it counts the arcs and the non-empty rows of each chunk into arc_begin[1 ...] and
// row_begin[1 ...] (zeroed before, summed by the caller after); then it fills. A chunk of r rows has r + 1 row ends,
// at row_begin[chunk] + chunk, relative to arc_begin[chunk]. place: (intervals), the next free arc; spot: next row.
void chunk(const int64_t *offsets, const int32_t *ids, int64_t vertices, int64_t side, int64_t intervals,
           int64_t *arc_begin, int64_t *row_begin, int64_t *place, int64_t *spot,
           uint16_t *rows, uint32_t *row_ends, uint16_t *locals, int32_t *arcs) {
    for (int64_t interval = 0; interval < intervals; ++interval) {
        int64_t first = interval * side, last = first + side < vertices ? first + side : vertices;
        int64_t base = interval * intervals;
        if (rows)
            for (int64_t j = 0; j < intervals; ++j) {
                place[j] = arc_begin[base + j];
                spot[j] = row_begin[base + j];
                row_ends[spot[j] + base + j] = 0;
            }
        for (int64_t row = first; row < last; ++row) {
            int64_t p = offsets[row], end = offsets[row + 1];
            while (p < end) {
                int64_t j = ids[p] / side, stop = p, bound = (j + 1) * side;
                while (stop < end && ids[stop] < bound) ++stop;
                if (!rows) {
                    arc_begin[base + j + 1] += stop - p;
                    ++row_begin[base + j + 1];
                } else {
                    rows[spot[j]] = (uint16_t)(row - first);
                    for (int64_t q = p; q < stop; ++q) {
                        locals[place[j]] = (uint16_t)(ids[q] - j * side);
                        arcs[place[j]++] = (int32_t)q;
                    }
                    ++spot[j];
                    row_ends[spot[j] + base + j] = (uint32_t)(place[j] - arc_begin[base + j]);
                }
                p = stop;
            }
        }
    }
}

// The gradient of max or min over plain source columns: each element of a result sends its gradient to the source
// of the arc that won. Rows in ascending order, features from..to: threads share no element.
#define SCATTER(T)                                                                                                  \
    void scatter_##T(const T *upstream, const int32_t *winner, const int32_t *sources, int64_t rows, int64_t width, \
                     int64_t from, int64_t to, T *out) {                                                            \
        for (int64_t row = 0; row < rows; ++row)                                                                    \
            for (int64_t k = from; k < to; ++k) {                                                                   \
                int32_t arc = winner[row * width + k];                                                              \
                if (arc >= 0) out[sources[arc] * width + k] += upstream[row * width + k];                           \
            }                                                                                                       \
    }
SCATTER(float)
SCATTER(double)
