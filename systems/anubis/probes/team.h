/* A team of threads, each bound to a CPU of its own, or to none.
 *
 * A kernel splits its work into `members` parts and runs part m on CPU cpus[m], or where the system likes if
 * that is negative. The CPUs that the threads were allowed before are restored at the end, so that nothing
 * else in the process notices.
 *
 *     #pragma omp parallel for num_threads(members) schedule(static, 1)
 *     for (int m = 0; m < members; m++) {
 *         cpu_set_t before;
 *         enter(cpus[m], &before);
 *         ... part m ...
 *         leave(&before);
 *     }
 *
 * Without OpenMP the parts run one after the other, each on its CPU.
 */
#ifndef TEAM_H
#define TEAM_H
#ifndef _GNU_SOURCE
#error "define _GNU_SOURCE before the first include"
#endif
#include <sched.h>

/* Failure (a CPU taken away meanwhile) leaves the thread where it is: slower perhaps, never wrong. */
static inline void enter(int cpu, cpu_set_t *before) {
    cpu_set_t only;
    CPU_ZERO(before);
    if (cpu < 0) return;
    sched_getaffinity(0, sizeof *before, before);
    CPU_ZERO(&only);
    CPU_SET(cpu, &only);
    sched_setaffinity(0, sizeof only, &only);
}

static inline void leave(const cpu_set_t *before) {
    if (CPU_COUNT(before) > 0) sched_setaffinity(0, sizeof *before, before);
}

/* First element of part m of n elements: parts are whole cache lines of 8 doubles, the last takes the rest.
 * */
static inline long part_begin(long n, int m, int members) {
    return m >= members ? n : (long)((__int128)n * m / members) / 8 * 8;
}

#endif
