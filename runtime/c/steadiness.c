/* Are the latencies steady, and if not, why? */
#if !defined(_GNU_SOURCE)
#define _GNU_SOURCE /* for RUSAGE_THREAD */
#endif

#include "measure.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "internal.h"

static const double MAX_VARIATION = 0.10; /* standard deviation over mean */
static const double MAX_DRIFT = 0.05;     /* of the median, from the first third to the last */
static const double MAX_TAIL = 1.5;       /* 99th percentile over median */
static const double MAX_STEAL = 0.01;     /* share of CPU time that a hypervisor took away */

static int by_value(const void *a, const void *b) {
  const double left = *(const double *)a, right = *(const double *)b;
  return left < right ? -1 : left > right;
}

void subbyte_sort(double *values, long count) { qsort(values, (size_t)count, sizeof *values, by_value); }

double subbyte_percentile(const double *sorted, long count, double percent) {
  const double place = percent / 100.0 * (double)(count - 1);
  const long below = (long)place;
  if (below + 1 >= count) return sorted[count - 1];
  return sorted[below] + (sorted[below + 1] - sorted[below]) * (place - (double)below);
}

void subbyte_warn(subbyte_warnings *w, const char *format, ...) {
  va_list values;
  if (w->count == (int)(sizeof w->text / sizeof *w->text)) return;
  va_start(values, format);
  vsnprintf(w->text[w->count++], sizeof w->text[0], format, values);
  va_end(values);
}

void subbyte_warnings_json(subbyte_json *j, const subbyte_warnings *w) {
  int i;
  subbyte_json_open(j, "warnings", '[');
  for (i = 0; i < w->count; ++i) subbyte_json_text(j, NULL, w->text[i]);
  subbyte_json_close(j, ']');
}

static double preemptions(void) {
  struct rusage usage;
  return getrusage(RUSAGE_THREAD, &usage) == 0 ? (double)usage.ru_nivcsw : SUBBYTE_UNKNOWN;
}

/* Stolen and all ticks since boot, of the machine. */
static void cpu_ticks(const char *root, double *stolen, double *ticks) {
  char *text = subbyte_text_of(root, "/proc/stat"), *rest = NULL, *word;
  double sum = 0.0, field = SUBBYTE_UNKNOWN;
  int count = 0;
  *stolen = *ticks = -1;
  if (text != NULL) text[strcspn(text, "\n")] = '\0';
  word = text != NULL ? strtok_r(text, " ", &rest) : NULL;
  if (word != NULL && strcmp(word, "cpu") == 0)
    for (; count < 8 && (word = strtok_r(NULL, " ", &rest)) != NULL; ++count) {
      field = subbyte_number_in(word, 0);
      if (!(field < SUBBYTE_UNKNOWN)) break;
      sum += field;
    }
  if (count == 8) {
    *stolen = field;
    *ticks = sum;
  }
  free(text);
}

void subbyte_watch_start(subbyte_watch *watch, const char *root) {
  double quota;
  watch->start = subbyte_now();
  watch->preemptions = preemptions();
  watch->root = root;
  cpu_ticks(root, &watch->stolen, &watch->ticks);
  subbyte_group_find(&watch->group, root);
  subbyte_group_read(&watch->group, &quota, &watch->throttled);
}

void subbyte_latency_of(subbyte_latency *latency, const double *samples, long count, double *sorted) {
  double sum = 0.0, squares = 0.0;
  long i;
  memcpy(sorted, samples, sizeof(double) * (size_t)count);
  subbyte_sort(sorted, count);
  for (i = 0; i < count; ++i) sum += samples[i];
  latency->mean = sum / (double)count;
  for (i = 0; i < count; ++i) squares += (samples[i] - latency->mean) * (samples[i] - latency->mean);
  latency->min = sorted[0];
  latency->p50 = subbyte_percentile(sorted, count, 50);
  latency->p90 = subbyte_percentile(sorted, count, 90);
  latency->p99 = subbyte_percentile(sorted, count, 99);
  latency->std = sqrt(squares / (double)count);
}

static double median_of(const double *values, long count, double *sorted) {
  memcpy(sorted, values, sizeof(double) * (size_t)count);
  subbyte_sort(sorted, count);
  return subbyte_percentile(sorted, count, 50);
}

/* The median of the last third over that of the first, less one. */
static void warn_of_drift(subbyte_warnings *w, const double *samples, long count, double *scratch) {
  const long third = count / 3;
  double drift;
  if (third < 3) return;
  drift = median_of(samples + count - third, third, scratch) / median_of(samples, third, scratch) - 1.0;
  if (drift > MAX_DRIFT)
    subbyte_warn(w, "latency rose by %.0f%% from the first third to the last: the processor heats up or slows its clock",
                 100.0 * drift);
  else if (drift < -MAX_DRIFT)
    subbyte_warn(w, "latency fell by %.0f%% from the first third to the last: warm up for longer", -100.0 * drift);
}

void subbyte_unsteadiness(subbyte_warnings *w, const double *samples, long count, const subbyte_latency *latency,
                          double *scratch, const subbyte_watch *watch) {
  const double elapsed = (double)(subbyte_now() - watch->start) / 1e9;
  const double rate = (preemptions() - watch->preemptions) / (elapsed > 1e-9 ? elapsed : 1e-9);
  const double variation = latency->std / latency->mean, tail = latency->p99 / latency->p50;
  double stolen, ticks, quota, throttled;
  char reason[96] = ": other load, a changing clock, or interrupts";
  cpu_ticks(watch->root, &stolen, &ticks);
  subbyte_group_read(&watch->group, &quota, &throttled);
  throttled = throttled < SUBBYTE_UNKNOWN && watch->throttled < SUBBYTE_UNKNOWN ? throttled - watch->throttled : 0.0;
  if (throttled > 0)
    snprintf(reason, sizeof reason, ": the CPU quota stopped the process");
  else if (rate > 20 && rate < HUGE_VAL)
    snprintf(reason, sizeof reason, ": other programs took the core %.0f times a second", rate);

  if (throttled > 0)
    subbyte_warn(w,
                 "the CPU quota of this process's cgroup ran out in %.0f of its periods, and the process was stopped until "
                 "the next: raise the quota (cpu.max, docker --cpus), or use fewer threads",
                 throttled);
  if (count < 30) subbyte_warn(w, "only %ld calls were timed: percentiles need more, measure for longer", count);
  if (variation > MAX_VARIATION)
    subbyte_warn(w, "latency varies by %.0f%% (standard deviation over mean)%s", 100.0 * variation, reason);
  else if (tail > MAX_TAIL)
    subbyte_warn(w, "one call in a hundred takes %.1f times the median%s", tail, reason);
  warn_of_drift(w, samples, count, scratch);
  if (ticks > watch->ticks && watch->ticks >= 0 && (stolen - watch->stolen) / (ticks - watch->ticks) > MAX_STEAL)
    subbyte_warn(w, "the virtual machine's host took %.0f%% of the CPU away: measure on a quiet host",
                 100.0 * (stolen - watch->stolen) / (ticks - watch->ticks));
}
