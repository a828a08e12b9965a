/* Counts of n-grams and the matching blocks of two strings: what metrics.py and codebleu.py spend their time in. */

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef unsigned __int128 gram;

static inline gram gram_at(const int32_t *tokens, int order) {
    gram key = 0;
    for (int k = 0; k < order; k++) key = key << 32 | (uint32_t)(tokens[k] + 1);
    return key;
}

static inline uint64_t mixed(gram key) {
    uint64_t h = (uint64_t)key * 0x9E3779B97F4A7C15ull ^ (uint64_t)(key >> 64) * 0xC2B2AE3D27D4EB4Full;
    return h ^ h >> 29;
}

typedef struct {
    gram *keys;
    int32_t *counts;
    uint64_t mask;
} table;

static int table_of(table *t, uint64_t room) {
    uint64_t size = 16;
    while (size < 2 * room + 2) size *= 2;
    t->keys = malloc(size * sizeof(gram));
    t->counts = malloc(size * sizeof(int32_t));
    t->mask = size - 1;
    return t->keys && t->counts;
}

static inline uint64_t place(const table *t, uint64_t mask, gram key) {
    uint64_t at = mixed(key) & mask;
    while (t->keys[at] && t->keys[at] != key) at = (at + 1) & mask;
    return at;
}

/* matches[pair][order - 1]: n-grams of the hypothesis that the reference has, each as often as it has it.
   Tokens are ids from 0; pair p has the tokens a[a_at[p]] to a[a_at[p + 1] - 1]. Returns 0 where memory is short. */
int ngram_matches(const int32_t *hyp, const int64_t *hyp_at, const int32_t *ref, const int64_t *ref_at, int64_t pairs,
                  int64_t *matches) {
    int64_t longest = 0;
    for (int64_t p = 0; p < pairs; p++)
        if (ref_at[p + 1] - ref_at[p] > longest) longest = ref_at[p + 1] - ref_at[p];
    table t = {0};
    int ok = table_of(&t, (uint64_t)longest);
    for (int64_t p = 0; ok && p < pairs; p++) {
        const int32_t *h = hyp + hyp_at[p], *r = ref + ref_at[p];
        int64_t hs = hyp_at[p + 1] - hyp_at[p], rs = ref_at[p + 1] - ref_at[p];
        uint64_t mask = 15; /* no larger than this pair needs, so that it stays in the cache */
        while (mask < 2 * (uint64_t)rs + 1) mask = 2 * mask + 1;
        for (int order = 1; order <= 4; order++) {
            int64_t found = 0;
            if (hs >= order && rs >= order) {
                memset(t.keys, 0, (mask + 1) * sizeof(gram));
                for (int64_t i = 0; i + order <= rs; i++) {
                    gram key = gram_at(r + i, order);
                    uint64_t at = place(&t, mask, key);
                    t.counts[at] = t.keys[at] ? t.counts[at] + 1 : 1;
                    t.keys[at] = key;
                }
                for (int64_t i = 0; i + order <= hs; i++) {
                    uint64_t at = place(&t, mask, gram_at(h + i, order));
                    if (t.keys[at] && t.counts[at] > 0) t.counts[at]--, found++;
                }
            }
            matches[4 * p + order - 1] = found;
        }
    }
    free(t.keys);
    free(t.counts);
    return ok;
}

/* Per pair the weighted number of reference tokens that the hypothesis has, and of all reference tokens: sums over
   distinct tokens in the order in which the reference first has them. weight and scratch (zeroed, two a token of the
   vocabulary) are by id. */
void weighted_recall(const int32_t *hyp, const int64_t *hyp_at, const int32_t *ref, const int64_t *ref_at,
                     int64_t pairs, const double *weight, int32_t *scratch, double *found, double *total) {
    for (int64_t p = 0; p < pairs; p++) {
        for (int64_t i = ref_at[p]; i < ref_at[p + 1]; i++) scratch[2 * ref[i]]++;
        for (int64_t i = hyp_at[p]; i < hyp_at[p + 1]; i++) scratch[2 * hyp[i] + 1]++;
        double numerator = 0, denominator = 0;
        for (int64_t i = ref_at[p]; i < ref_at[p + 1]; i++) {
            int32_t *count = scratch + 2 * ref[i];
            if (!count[0]) continue;
            numerator += (count[0] < count[1] ? count[0] : count[1]) * weight[ref[i]];
            denominator += count[0] * weight[ref[i]];
            count[0] = 0;
        }
        for (int64_t i = hyp_at[p]; i < hyp_at[p + 1]; i++) scratch[2 * hyp[i] + 1] = 0;
        found[p] = numerator;
        total[p] = denominator;
    }
}

/* ------------------------------------------------------------------------------------------------- token by token */

static inline int is_space(uint8_t c) { return c == ' ' || (c >= 9 && c <= 13) || (c >= 28 && c <= 31); }

static int unscored(const char *token, int64_t length) {
    return (length == 3 && !memcmp(token, "<s>", 3)) || (length == 4 && !memcmp(token, "</s>", 4)) ||
           (length == 5 && (!memcmp(token, "<EOL>", 5) || !memcmp(token, "<pad>", 5)));
}

/* Per line: tokens here, tokens there, tokens here that count, and those of them that are the same there. Lines end
   with a line feed; `lines` of them in both. White space is that of ASCII. */
void token_matches(const char *a, const char *b, int64_t lines, int64_t *counts) {
    for (int64_t line = 0; line < lines; line++, counts += 4) {
        int64_t here = 0, there = 0, scored = 0, right = 0;
        for (;;) {
            while (*a != '\n' && is_space((uint8_t)*a)) a++;
            while (*b != '\n' && is_space((uint8_t)*b)) b++;
            if (*a == '\n' && *b == '\n') break;
            const char *one = a, *other = b;
            while (!is_space((uint8_t)*a)) a++;
            while (!is_space((uint8_t)*b)) b++;
            here += a > one, there += b > other;
            if (a > one && !unscored(one, a - one)) {
                scored++;
                right += a - one == b - other && !memcmp(one, other, (size_t)(a - one));
            }
        }
        a++, b++;
        counts[0] = here, counts[1] = there, counts[2] = scored, counts[3] = right;
    }
}

/* ------------------------------------------------------------------------------------------ Ratcliff-Obershelp */

typedef struct {
    int64_t first, count; /* positions of a character in b: places[first] to places[first + count - 1] */
    uint32_t character;
    int32_t used;
} letter;

typedef struct {
    int64_t alo, ahi, blo, bhi;
} part;

static letter *letter_of(letter *letters, uint64_t mask, uint32_t character) {
    uint64_t at = (character * 0x9E3779B97F4A7C15ull >> 32) & mask;
    while (letters[at].used && letters[at].character != character) at = (at + 1) & mask;
    return letters + at;
}

/* Characters in the matching blocks of a and b, found longest first and then left and right of it. From 200
   characters of b on, one that has more than 1 % of the places and one more starts no block. -1: memory is short. */
static int64_t matched(const uint32_t *a, int64_t as, const uint32_t *b, int64_t bs) {
    if (!as || !bs) return 0;
    uint64_t size = 16;
    while (size < 2 * (uint64_t)bs) size *= 2;
    letter *letters = calloc(size, sizeof(letter));
    int64_t *places = malloc((size_t)bs * sizeof(int64_t));
    int64_t *length = malloc((size_t)(bs + 1) * sizeof(int64_t)), *row = malloc((size_t)(bs + 1) * sizeof(int64_t));
    letter **of = malloc((size_t)as * sizeof(letter *));
    part *stack = malloc((size_t)(as + 2) * sizeof(part));
    int64_t sum = -1;
    if (letters && places && length && row && of && stack) {
        for (int64_t j = 0; j < bs; j++) {
            letter *l = letter_of(letters, size - 1, b[j]);
            l->character = b[j], l->used = 1, l->count++;
        }
        int64_t next = 0;
        for (int64_t j = 0; j < bs; j++) {
            letter *l = letter_of(letters, size - 1, b[j]);
            if (l->used == 1) l->first = next, next += l->count, l->count = 0, l->used = 2;
            places[l->first + l->count++] = j;
        }
        for (int64_t i = 0; i < as; i++) {
            letter *l = letter_of(letters, size - 1, a[i]);
            of[i] = l->used && !(bs >= 200 && l->count > bs / 100 + 1) ? l : NULL;
        }
        for (int64_t j = 0; j <= bs; j++) row[j] = -1;
        int64_t stamp = 1, top = 0;
        sum = 0;
        stack[top++] = (part){0, as, 0, bs};
        while (top) {
            part q = stack[--top];
            int64_t besti = q.alo, bestj = q.blo, best = 0;
            stamp++; /* no row of an earlier part is the row before the first */
            for (int64_t i = q.alo; i < q.ahi; i++, stamp++) {
                const letter *l = of[i];
                if (!l) continue;
                int64_t low = 0, high = l->count; /* the places in [blo, bhi), by bisection */
                const int64_t *at = places + l->first;
                while (low < high) {
                    int64_t middle = (low + high) / 2;
                    if (at[middle] < q.bhi) low = middle + 1;
                    else high = middle;
                }
                int64_t longest = 0, ends = 0;
                for (int64_t k = low - 1; k >= 0 && at[k] >= q.blo; k--) { /* from the right: row - 1 is still there */
                    int64_t j = at[k], run = j > 0 && row[j - 1] == stamp - 1 ? length[j - 1] + 1 : 1;
                    length[j] = run, row[j] = stamp;
                    if (run >= longest) longest = run, ends = j;
                }
                if (longest > best) best = longest, besti = i - best + 1, bestj = ends - best + 1;
            }
            while (besti > q.alo && bestj > q.blo && a[besti - 1] == b[bestj - 1]) besti--, bestj--, best++;
            while (besti + best < q.ahi && bestj + best < q.bhi && a[besti + best] == b[bestj + best]) best++;
            if (!best) continue;
            sum += best;
            if (q.alo < besti && q.blo < bestj) stack[top++] = (part){q.alo, besti, q.blo, bestj};
            if (besti + best < q.ahi && bestj + best < q.bhi)
                stack[top++] = (part){besti + best, q.ahi, bestj + best, q.bhi};
        }
    }
    free(letters), free(places), free(length), free(row), free(of), free(stack);
    return sum;
}

/* sums[p]: matched characters of pair p; texts as code points, pair p at a_at[p] to a_at[p + 1] - 1. */
void matched_characters(const uint32_t *a, const int64_t *a_at, const uint32_t *b, const int64_t *b_at, int64_t pairs,
                        int64_t *sums) {
    for (int64_t p = 0; p < pairs; p++)
        sums[p] = matched(a + a_at[p], a_at[p + 1] - a_at[p], b + b_at[p], b_at[p + 1] - b_at[p]);
}


/* ---------------------------------------------------------------------------------------------------- sub-trees */

typedef struct {
    int64_t start, length;
    uint64_t hash;
} span;

/* Where the remark on a part that is missing or was not expected ends, which may name a parenthesis; `from` if none
   begins there. */
static int64_t after_remark(const char *text, int64_t length, int64_t from) {
    int64_t k = from;
    if (length - k > 10 && !memcmp(text + k, "(MISSING \"", 10)) {
        for (k += 10; k + 1 < length && !(text[k] == '"' && text[k + 1] == ')'); k++) {}
        return k + 2;
    }
    if (length - k > 9 && !memcmp(text + k, "(MISSING ", 9)) {
        for (k += 9; k < length && text[k] != ')'; k++) {}
        return k + 1;
    }
    if (length - k > 14 && !memcmp(text + k, "(UNEXPECTED '", 13)) {
        for (k += 14; k + 1 < length && !(text[k] == '\'' && text[k + 1] == ')'); k++) {}
        return k + 2;
    }
    if (length - k > 12 && !memcmp(text + k, "(UNEXPECTED ", 12)) {
        for (k += 12; k < length && text[k] != ')'; k++) {}
        return k + 1;
    }
    return from;
}

/* The spans in parentheses of an S-expression that `inner` marks, or that is the whole; -1 where memory is short.
   inner: one byte a span that is no remark, in the order in which they open. into: as many as there are. */
static int64_t spans_of(const char *text, int64_t length, const uint8_t *inner, span *into) {
    uint64_t *prefix = malloc((size_t)(length + 1) * sizeof(uint64_t));
    uint64_t *powers = malloc((size_t)(length + 1) * sizeof(uint64_t));
    int64_t *open = malloc((size_t)(length + 1) * sizeof(int64_t)), count = -1;
    if (prefix && powers && open) {
        const uint64_t base = 0x9E3779B97F4A7C15ull;
        prefix[0] = 0, powers[0] = 1, count = 0;
        for (int64_t k = 0; k < length; k++)
            prefix[k + 1] = prefix[k] * base + (uint8_t)text[k] + 1, powers[k + 1] = powers[k] * base;
        int64_t depth = 0, number = 0;
        for (int64_t k = 0; k < length; k++) {
            if (text[k] == '(') {
                int64_t after = after_remark(text, length, k);
                if (after > k) {
                    k = after - 1;
                    continue;
                }
                /* the place and, in its sign, whether the span counts */
                open[depth++] = inner[number++] || k == 0 ? k + 1 : -(k + 1);
            } else if (text[k] == ')' && depth) {
                int64_t start = open[--depth];
                if (start < 0) continue;
                start--;
                int64_t size = k + 1 - start;
                into[count++] = (span){start, size, prefix[k + 1] - prefix[start] * powers[size]};
            }
        }
    }
    free(prefix), free(powers), free(open);
    return count;
}

/* How many marked spans of one S-expression are, letter by letter, marked spans of the other. */
int64_t shared_spans(const char *ref, int64_t ref_length, const uint8_t *ref_inner, const char *hyp, int64_t hyp_length,
                     const uint8_t *hyp_inner) {
    span *ours = malloc((size_t)(ref_length / 2 + 1) * sizeof(span));
    span *theirs = malloc((size_t)(hyp_length / 2 + 1) * sizeof(span));
    int64_t found = -1, *slots = NULL;
    if (ours && theirs) {
        int64_t n = spans_of(ref, ref_length, ref_inner, ours), m = spans_of(hyp, hyp_length, hyp_inner, theirs);
        uint64_t size = 16;
        while (size < 2 * (uint64_t)(m > 0 ? m : 0) + 2) size *= 2;
        slots = n < 0 || m < 0 ? NULL : calloc(size, sizeof(int64_t)); /* number of a span and one; 0: free */
        if (slots) {
            found = 0;
            for (int64_t k = 0; k < m; k++) {
                uint64_t at = (theirs[k].hash ^ theirs[k].hash >> 32) & (size - 1);
                while (slots[at]) at = (at + 1) & (size - 1);
                slots[at] = k + 1;
            }
            for (int64_t k = 0; k < n; k++) {
                uint64_t at = (ours[k].hash ^ ours[k].hash >> 32) & (size - 1);
                for (; slots[at]; at = (at + 1) & (size - 1)) {
                    const span *other = theirs + slots[at] - 1;
                    if (other->hash == ours[k].hash && other->length == ours[k].length &&
                        !memcmp(hyp + other->start, ref + ours[k].start, (size_t)ours[k].length)) {
                        found++;
                        break;
                    }
                }
            }
        }
    }
    free(ours), free(theirs), free(slots);
    return found;
}
