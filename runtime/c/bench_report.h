/* All that the bench program found, and its two forms. */
#ifndef SUBBYTE_BENCH_REPORT_H
#define SUBBYTE_BENCH_REPORT_H

#include "bench.h"

typedef struct {
  long long ns; /* the fastest of the profiled runs */
  long long ns_median;
} bench_times;

typedef struct {
  char path[4096]; /* of this program */
  double bundle_bytes;
  int threads;
  int pinned[BENCH_MOST_CPUS], pinned_count;
  long warmup, iterations;
  double min, mean, p50, p90, p99, std; /* ms */
  bench_warnings warnings;
  bench_times *times; /* [model->operator_count] */
  subbyte_comparison golden;
  bench_start start;
  bench_energy energy;
  int has_energy;
  char energy_missing[2048]; /* why there is none */
  const bench_machine *machine;
} bench_result;

/* Fills in the latencies from result->iterations samples, ms; sorts them. */
void bench_latency(bench_result *result, double *samples);

/* The keys of BenchResult in runtime/benchmark.py, in its order. */
void bench_print_json(const subbyte_model *model, const bench_result *result);
void bench_print_table(const subbyte_model *model, const bench_result *result);

#endif
