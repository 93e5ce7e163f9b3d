/* All that the bench program found, and its two forms. */
#ifndef SUBBYTE_BENCH_REPORT_H
#define SUBBYTE_BENCH_REPORT_H

#include "bench.h"

typedef struct {
  char path[4096]; /* of this program */
  double bundle_bytes;
  int threads;
  int pinned[SUBBYTE_MOST_CPUS], pinned_count;
  subbyte_measurement measured;
  subbyte_warnings warnings; /* all of them */
  subbyte_comparison golden;
  bench_start start;
  bench_energy energy;
  int has_energy;
  char energy_missing[2048]; /* why there is none */
  const subbyte_machine_facts *machine;
} bench_result;

/* The keys of BenchResult in runtime/benchmark.py, in its order. */
void bench_print_json(const subbyte_model *model, const bench_result *result);
void bench_print_table(const subbyte_model *model, const bench_result *result);

#endif
