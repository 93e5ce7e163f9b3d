/* Prints what the bench program found: as JSON with the keys of `subbyte bench --json`, or as a table. */
#include <stdio.h>

#include "bench_report.h"

void bench_latency(bench_result *result, double *samples) {
  const long count = result->iterations;
  double sum = 0.0, squares = 0.0;
  long i;
  bench_sort(samples, count);
  for (i = 0; i < count; ++i) sum += samples[i];
  result->mean = sum / (double)count;
  for (i = 0; i < count; ++i) squares += (samples[i] - result->mean) * (samples[i] - result->mean);
  result->min = samples[0];
  result->p50 = bench_percentile(samples, count, 50);
  result->p90 = bench_percentile(samples, count, 90);
  result->p99 = bench_percentile(samples, count, 99);
  result->std = sqrt(squares / (double)count);
}

static double total_ns(const subbyte_model *model, const bench_result *result) {
  double total = 0.0;
  int32_t i;
  for (i = 0; i < model->operator_count; ++i) total += (double)result->times[i].ns;
  return total > 0 ? total : 1.0;
}

static void print_operators(const subbyte_model *model, const bench_result *result) {
  const double total = total_ns(model, result);
  int32_t i;
  bench_json_open("operators", '[');
  for (i = 0; i < model->operator_count; ++i) {
    const subbyte_bench_operator *known = &subbyte_bench_data.operators[i];
    const bench_times *times = &result->times[i];
    bench_json_open(NULL, '{');
    bench_json_text("name", model->operators[i].name);
    bench_json_whole("ns", times->ns);
    bench_json_whole("ns_median", times->ns_median);
    bench_json_real("share", (double)times->ns / total);
    bench_json_text("kernel", known->kernel);
    bench_json_text("activation", known->activation);
    bench_json_text("weights", known->weights);
    bench_json_whole("macs", known->macs);
    bench_json_real("gmac_per_s", known->macs && times->ns ? (double)known->macs / (double)times->ns : BENCH_UNKNOWN);
    bench_json_text("fallback", known->fallback);
    bench_json_close('}');
  }
  bench_json_close(']');
}

void bench_print_json(const subbyte_model *model, const bench_result *result) {
  const int golden = subbyte_bench_data.outputs != NULL;
  int i;
  bench_json_open(NULL, '{');
  bench_json_text("name", model->name);
  bench_json_text("target", model->target);
  bench_json_text("path", result->path);
  if (result->bundle_bytes < BENCH_UNKNOWN)
    bench_json_whole("bundle_bytes", (long long)result->bundle_bytes);
  else
    bench_json_null("bundle_bytes"); /* of an unpacked bundle */
  bench_json_whole("threads", result->threads);
  bench_json_open("pinned_cpus", '[');
  for (i = 0; i < result->pinned_count; ++i) bench_json_whole(NULL, result->pinned[i]);
  bench_json_close(']');
  bench_json_whole("warmup", result->warmup);
  bench_json_whole("iterations", result->iterations);
  bench_json_open("latency_ms", '{');
  bench_json_real("min", result->min);
  bench_json_real("mean", result->mean);
  bench_json_real("p50", result->p50);
  bench_json_real("p90", result->p90);
  bench_json_real("p99", result->p99);
  bench_json_real("std", result->std);
  bench_json_close('}');
  bench_json_real("throughput_per_s", 1e3 / result->mean);
  bench_json_open("warnings", '[');
  for (i = 0; i < result->warnings.count; ++i) bench_json_text(NULL, result->warnings.text[i]);
  bench_json_close(']');
  print_operators(model, result);
  bench_json_flag("golden_ok", golden ? result->golden.ok : -1);
  bench_json_flag("golden_exact", golden ? result->golden.differing == 0 : -1);
  if (golden) {
    bench_json_whole("golden_differing", (long long)result->golden.differing);
    bench_json_whole("golden_moved", (long long)result->golden.moved);
  } else {
    bench_json_null("golden_differing");
    bench_json_null("golden_moved");
  }
  bench_json_real("golden_max_error", golden ? result->golden.largest : BENCH_UNKNOWN);
  bench_start_json("cold_start", &result->start);
  bench_energy_json("energy_measured", result->has_energy ? &result->energy : NULL);
  bench_json_text("energy_measured_missing", result->has_energy ? "" : result->energy_missing);
  bench_json_raw("energy_modelled", subbyte_bench_data.modelled);
  bench_machine_json("machine", result->machine);
  bench_json_close('}');
}

void bench_print_table(const subbyte_model *model, const bench_result *result) {
  const double total = total_ns(model, result);
  const bench_machine *m = result->machine;
  int i;
  printf("%s for %s, %d thread%s, %ld runs after %ld to warm up\n", model->name, model->target, result->threads,
         result->threads == 1 ? "" : "s", result->iterations, result->warmup);
  printf("latency ms: min %.4f  mean %.4f  p50 %.4f  p90 %.4f  p99 %.4f  std %.4f\n", result->min, result->mean, result->p50,
         result->p90, result->p99, result->std);
  printf("golden outputs: %s\n", subbyte_bench_data.outputs == NULL ? "none"
                                 : !result->golden.ok              ? "DIFFERENT"
                                 : result->golden.differing == 0UL ? "equal"
                                                                   : "within tolerance");
  for (i = 0; i < model->operator_count; ++i)
    printf("%10.1f us %5.1f%%  %s  %s\n", (double)result->times[i].ns / 1e3, 100.0 * (double)result->times[i].ns / total,
           model->operators[i].name, subbyte_bench_data.operators[i].kernel);
  if (result->start.runs)
    printf("cold start: %.1f ms (load %.1f, first result %.1f), median of %d; resident %.3g MB\n", result->start.total_ms,
           result->start.load_ms, result->start.first_result_ms, result->start.runs, result->start.resident_bytes / 1e6);
  if (result->has_energy)
    printf("energy, measured (%s, %.1f s): %.4g mJ a call gross, %.4g mJ net of %.1f W idle\n", result->energy.source,
           result->energy.window_s, 1e3 * result->energy.gross / (double)result->energy.calls,
           1e3 * result->energy.net / (double)result->energy.calls, result->energy.idle_w);
  else
    printf("energy, measured: none. %s\n", result->energy_missing);
  printf("machine: %s, %d of %d cores, %s\n", m->cpu, m->usable_cores, m->physical_cores, m->system);
  for (i = 0; i < result->warnings.count; ++i) printf("warning: %s\n", result->warnings.text[i]);
}
