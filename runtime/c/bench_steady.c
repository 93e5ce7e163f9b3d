/* Are the latencies steady, and if not, why? The tests and words of runtime/steadiness.py and runtime/machine.py. */
#if !defined(_GNU_SOURCE)
#define _GNU_SOURCE /* for RUSAGE_THREAD */
#endif

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "bench.h"
#include "internal.h"

static const double MAX_VARIATION = 0.10; /* standard deviation over mean */
static const double MAX_DRIFT = 0.05;     /* of the median, from the first third to the last */
static const double MAX_TAIL = 1.5;       /* 99th percentile over median */
static const double MAX_STEAL = 0.01;     /* share of CPU time that a hypervisor took away */

static int by_value(const void *a, const void *b) {
  const double left = *(const double *)a, right = *(const double *)b;
  return left < right ? -1 : left > right;
}

void bench_sort(double *values, long count) { qsort(values, (size_t)count, sizeof *values, by_value); }

double bench_percentile(const double *sorted, long count, double percent) {
  const double place = percent / 100.0 * (double)(count - 1);
  const long below = (long)place;
  if (below + 1 >= count) return sorted[count - 1];
  return sorted[below] + (sorted[below + 1] - sorted[below]) * (place - (double)below);
}

void bench_warn(bench_warnings *w, const char *format, ...) {
  va_list values;
  if (w->count == (int)(sizeof w->text / sizeof *w->text)) return;
  va_start(values, format);
  vsnprintf(w->text[w->count++], sizeof w->text[0], format, values);
  va_end(values);
}

static double preemptions(void) {
  struct rusage usage;
  return getrusage(RUSAGE_THREAD, &usage) == 0 ? (double)usage.ru_nivcsw : BENCH_UNKNOWN;
}

/* Stolen and all ticks since boot, of the machine. */
static void cpu_ticks(const char *root, double *stolen, double *ticks) {
  char *text = bench_text_of(root, "/proc/stat"), *rest = NULL, *word;
  double sum = 0.0, field = BENCH_UNKNOWN;
  int count = 0;
  *stolen = *ticks = -1;
  if (text != NULL) text[strcspn(text, "\n")] = '\0';
  word = text != NULL ? strtok_r(text, " ", &rest) : NULL;
  if (word != NULL && strcmp(word, "cpu") == 0)
    for (; count < 8 && (word = strtok_r(NULL, " ", &rest)) != NULL; ++count) {
      field = bench_number_in(word, 0);
      if (!(field < BENCH_UNKNOWN)) break;
      sum += field;
    }
  if (count == 8) {
    *stolen = field;
    *ticks = sum;
  }
  free(text);
}

void bench_watch_start(bench_watch *watch, const char *root) {
  double quota;
  watch->start = subbyte_now();
  watch->preemptions = preemptions();
  watch->root = root;
  cpu_ticks(root, &watch->stolen, &watch->ticks);
  bench_group_find(&watch->group, root);
  bench_group_read(&watch->group, &quota, &watch->throttled);
}

static double median_of(const double *values, long count) {
  double *sorted = (double *)bench_allocate(sizeof(double) * (size_t)count);
  double median;
  memcpy(sorted, values, sizeof(double) * (size_t)count);
  bench_sort(sorted, count);
  median = bench_percentile(sorted, count, 50);
  free(sorted);
  return median;
}

void bench_unsteadiness(bench_warnings *w, const double *samples, long count, const bench_watch *watch) {
  const double elapsed = fmax(1e-9, (double)(subbyte_now() - watch->start) / 1e9);
  const double rate = (preemptions() - watch->preemptions) / elapsed;
  const long third = count / 3;
  double *sorted = (double *)bench_allocate(sizeof(double) * (size_t)count);
  double stolen, ticks, quota, throttled, mean = 0.0, squares = 0.0, middle, high;
  char reason[96] = ": other load, a changing clock, or interrupts";
  long i;
  cpu_ticks(watch->root, &stolen, &ticks);
  bench_group_read(&watch->group, &quota, &throttled);
  throttled = throttled < BENCH_UNKNOWN && watch->throttled < BENCH_UNKNOWN ? throttled - watch->throttled : 0.0;
  if (throttled > 0)
    snprintf(reason, sizeof reason, ": the CPU quota stopped the process");
  else if (rate > 20 && rate < HUGE_VAL)
    snprintf(reason, sizeof reason, ": other programs took the core %.0f times a second", rate);
  memcpy(sorted, samples, sizeof(double) * (size_t)count);
  bench_sort(sorted, count);
  for (i = 0; i < count; ++i) mean += samples[i] / (double)count;
  for (i = 0; i < count; ++i) squares += (samples[i] - mean) * (samples[i] - mean);
  middle = bench_percentile(sorted, count, 50);
  high = bench_percentile(sorted, count, 99);
  free(sorted);

  if (throttled > 0)
    bench_warn(w,
               "the CPU quota of this process's cgroup ran out in %.0f of its periods, and the process was stopped until "
               "the next: raise the quota (cpu.max, docker --cpus), or use fewer threads",
               throttled);
  if (count < 30) bench_warn(w, "only %ld calls were timed: percentiles need more, measure for longer", count);
  if (sqrt(squares / (double)count) / mean > MAX_VARIATION)
    bench_warn(w, "latency varies by %.0f%% (standard deviation over mean)%s",
               100.0 * sqrt(squares / (double)count) / mean, reason);
  else if (high > MAX_TAIL * middle)
    bench_warn(w, "one call in a hundred takes %.1f times the median%s", high / middle, reason);
  if (third >= 3) {
    const double drift = median_of(samples + count - third, third) / median_of(samples, third) - 1.0;
    if (drift > MAX_DRIFT)
      bench_warn(w, "latency rose by %.0f%% from the first third to the last: the processor heats up or slows its clock",
                 100.0 * drift);
    else if (drift < -MAX_DRIFT)
      bench_warn(w, "latency fell by %.0f%% from the first third to the last: warm up for longer", -100.0 * drift);
  }
  if (ticks > watch->ticks && watch->ticks >= 0 && (stolen - watch->stolen) / (ticks - watch->ticks) > MAX_STEAL)
    bench_warn(w, "the virtual machine's host took %.0f%% of the CPU away: measure on a quiet host",
               100.0 * (stolen - watch->stolen) / (ticks - watch->ticks));
}

void bench_disturbances(bench_warnings *w, const bench_machine *m, int threads) {
  if (m->load_1min < BENCH_UNKNOWN && m->load_1min > fmax(0.5, (double)(m->logical_cpus - threads)))
    bench_warn(w, "other programs load this machine (load %.1f on %d CPUs): stop them", m->load_1min, m->logical_cpus);
  if (m->governor[0] && strcmp(m->governor, "performance") != 0)
    bench_warn(w, "the clock follows the load (governor '%.60s'): cpupower frequency-set -g performance", m->governor);
  if (m->virtualised > 0) bench_warn(w, "this is a virtual machine: its host may take the CPU away unseen");
  if (m->temperature_c < BENCH_UNKNOWN && m->temperature_c > 85)
    bench_warn(w, "the CPU is at %.0f C and may throttle: cool it", m->temperature_c);
  if (m->usable_cores < threads)
    bench_warn(w, "%d threads share %d cores: use fewer threads", threads, m->usable_cores);
}
