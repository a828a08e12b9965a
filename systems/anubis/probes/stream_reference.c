/* The peer of stream.c: what STREAM does, in its plainest form. Own arrays, ordinary memory, ordinary loops,
 * and nothing shared with the probe; built with no more than -O3 -fopenmp. */
#include <stdlib.h>

static double *a, *b, *c;
static long n;

void reference_close(void) {
    free(a);
    free(b);
    free(c);
    a = b = c = 0;
}

/* 0, or 1 when memory is short. Values as in the original: a = 1, b = 2, c = 0, then a is doubled. */
int reference_open(long elements) {
    reference_close();
    n = elements;
    a = malloc(n * sizeof *a);
    b = malloc(n * sizeof *b);
    c = malloc(n * sizeof *c);
    if (!a || !b || !c) {
        reference_close();
        return 1;
    }
#pragma omp parallel for
    for (long i = 0; i < n; i++) {
        a[i] = 1.0;
        b[i] = 2.0;
        c[i] = 0.0;
    }
#pragma omp parallel for
    for (long i = 0; i < n; i++) a[i] = 2.0 * a[i];
    return 0;
}

double *reference_array(int which) { return which == 0 ? a : which == 1 ? b : c; }

void reference_triad(double scalar) {
#pragma omp parallel for
    for (long j = 0; j < n; j++) a[j] = b[j] + scalar * c[j];
}
