/* Synchronous transfers of one file by several threads, each with one transfer in flight: the timed loop of disk.py.
 *
 * Times are of CLOCK_MONOTONIC, the clock of Python's perf_counter on Linux, in nanoseconds. */

#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

enum { SHORT_TRANSFER = -1 };

struct work {
    int descriptor;
    int64_t count, block, deadline;
    const int64_t *offsets;
    const uint8_t *writes;
    char *buffer;
    int64_t *started, *finished;
    _Atomic int64_t next, failed;
    _Atomic int error;
};

static int64_t now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (int64_t)time.tv_sec * 1000000000 + time.tv_nsec;
}

static void *transfer(void *argument) {
    struct work *work = argument;
    while (!atomic_load_explicit(&work->error, memory_order_relaxed)) {
        int64_t index = atomic_fetch_add(&work->next, 1);
        int64_t began = now();
        /* The first transfer is always made, so that there is something to report. */
        if (index >= work->count || (index > 0 && began >= work->deadline)) break;
        char *block = work->buffer + index * work->block;
        ssize_t done;
        do {
            done = work->writes[index] ? pwrite(work->descriptor, block, work->block, work->offsets[index])
                                       : pread(work->descriptor, block, work->block, work->offsets[index]);
        } while (done < 0 && errno == EINTR);
        int cause = done < 0 ? errno : SHORT_TRANSFER;
        if (done != work->block) {
            int none = 0;
            if (atomic_compare_exchange_strong(&work->error, &none, cause)) atomic_store(&work->failed, index);
            break;
        }
        work->started[index] = began;
        work->finished[index] = now();
    }
    return NULL;
}

/* Make `count` transfers of `block` bytes between buffer + i * block and offsets[i], `depth` at a time, until
 * `deadline`. started, finished: set for the transfers made, untouched for the others. Returns 0, an errno, or
 * SHORT_TRANSFER; *failed is then the index of the transfer at fault, or -1 where no thread could be started. */
int maat_transfer(int descriptor, int64_t count, int64_t block, int64_t deadline, const int64_t *offsets,
                  const uint8_t *writes, char *buffer, int64_t *started, int64_t *finished, int depth,
                  int64_t *failed) {
    struct work work = {.descriptor = descriptor, .count = count, .block = block, .deadline = deadline,
                        .offsets = offsets, .writes = writes, .buffer = buffer, .started = started,
                        .finished = finished, .failed = -1};
    pthread_t *threads = calloc((size_t)depth, sizeof *threads);
    if (!threads) return ENOMEM;
    int running = 1; /* this thread is the first */
    for (int error; running < depth; running++) {
        if ((error = pthread_create(&threads[running], NULL, transfer, &work))) {
            atomic_store(&work.error, error);
            break;
        }
    }
    transfer(&work);
    for (int each = 1; each < running; each++) pthread_join(threads[each], NULL);
    free(threads);
    *failed = atomic_load(&work.failed);
    return atomic_load(&work.error);
}
