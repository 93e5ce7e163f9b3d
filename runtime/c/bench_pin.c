/* The cores that the bench program is kept on, as `subbyte bench` keeps Python on them (runtime/benchmark.py). */
#if !defined(_GNU_SOURCE)
#define _GNU_SOURCE /* for sched_setaffinity */
#endif

#include <sched.h>

#include "bench.h"

static cpu_set_t before;
static int is_pinned;

int bench_pin(int threads, int *cpus) {
  int every[SUBBYTE_MOST_CPUS], i;
  const int count = subbyte_physical_cpus("", every);
  cpu_set_t chosen;
  if (threads > count || sched_getaffinity(0, sizeof before, &before) != 0) return 0;
  CPU_ZERO(&chosen);
  for (i = 0; i < threads; ++i) { /* the first CPU serves most interrupts */
    cpus[i] = every[count - threads + i];
    CPU_SET(cpus[i], &chosen);
  }
  is_pinned = sched_setaffinity(0, sizeof chosen, &chosen) == 0;
  return is_pinned ? threads : 0;
}

int bench_may_pin(void) {
  cpu_set_t now;
  return sched_getaffinity(0, sizeof now, &now) == 0 && sched_setaffinity(0, sizeof now, &now) == 0;
}

void bench_unpin(void) {
  if (is_pinned) (void)sched_setaffinity(0, sizeof before, &before);
  is_pinned = 0;
}
