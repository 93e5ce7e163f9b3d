/* Measuring a session: what subbyte_measure (subbyte.h) and the bench program share. Linux only. */
#ifndef SUBBYTE_MEASURE_H
#define SUBBYTE_MEASURE_H

#include "json.h"
#include "subbyte.h"
#include "system_files.h"

/* ---- steadiness.c: why the figures should not be trusted ---- */

typedef struct {
  double min, mean, p50, p90, p99, std; /* in the unit of the samples */
} subbyte_latency;

typedef struct {
  uint64_t start;
  const char *root;     /* "" but in tests */
  double preemptions;   /* of this thread; SUBBYTE_UNKNOWN: not told */
  double stolen, ticks; /* of all CPUs; negative: not told */
  subbyte_group group;
  double throttled; /* periods; SUBBYTE_UNKNOWN: not told */
} subbyte_watch;

typedef struct {
  char text[16][256];
  int count;
} subbyte_warnings;

/* Linear between the two nearest of sorted values, as numpy.percentile does. */
double subbyte_percentile(const double *sorted, long count, double percent);

/* Sorts; as numpy.sort. */
void subbyte_sort(double *values, long count);

/* Of samples [count]; `sorted` [count] becomes that. */
void subbyte_latency_of(subbyte_latency *latency, const double *samples, long count, double *sorted);

void subbyte_warn(subbyte_warnings *w, const char *format, ...);
void subbyte_warnings_json(subbyte_json *j, const subbyte_warnings *w); /* "warnings": [...] */
void subbyte_watch_start(subbyte_watch *watch, const char *root);
/* Of samples in the order of time, which were taken since subbyte_watch_start; `scratch` [count] is written to. */
void subbyte_unsteadiness(subbyte_warnings *w, const double *samples, long count, const subbyte_latency *latency,
                          double *scratch, const subbyte_watch *watch);

/* ---- measure.c ---- */

typedef struct {
  uint64_t start_ns, end_ns; /* of the monotonic clock */
  int64_t calls;
} subbyte_window;

typedef struct {
  long long ns; /* the fastest of the profiled runs */
  long long ns_median;
} subbyte_operator_time;

typedef struct {
  subbyte_window warmup, timed;
  int has_latency;
  subbyte_latency latency; /* ms */
  subbyte_warnings warnings;
  subbyte_operator_time *operators; /* [operator_count], to be freed; NULL: not profiled */
} subbyte_measurement;

/* As subbyte_measure, into a measurement of zeros. */
int32_t subbyte_measure_session(subbyte_session *session, const void *const *inputs, void *const *outputs,
                                subbyte_measure_options *options, subbyte_measurement *found);

/* The keys warmup, iterations, latency_ms and throughput_per_s. */
void subbyte_latency_json(subbyte_json *j, const subbyte_measurement *found);

#endif
