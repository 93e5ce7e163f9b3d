/* Prints what the bench program found: as JSON with the keys of `subbyte bench --json`, or as a table. */
#include <stdio.h>
#include <stdlib.h>

#include "bench_report.h"

static double total_ns(const subbyte_model *model, const bench_result *result) {
  double total = 0.0;
  int32_t i;
  for (i = 0; i < model->operator_count; ++i) total += (double)result->measured.operators[i].ns;
  return total > 0 ? total : 1.0;
}

static void print_operators(subbyte_json *j, const subbyte_model *model, const bench_result *result) {
  const double total = total_ns(model, result);
  int32_t i;
  subbyte_json_open(j, "operators", '[');
  for (i = 0; i < model->operator_count; ++i) {
    const subbyte_bench_operator *known = &subbyte_bench_data.operators[i];
    const subbyte_operator_time *times = &result->measured.operators[i];
    subbyte_json_open(j, NULL, '{');
    subbyte_json_text(j, "name", model->operators[i].name);
    subbyte_json_whole(j, "ns", times->ns);
    subbyte_json_whole(j, "ns_median", times->ns_median);
    subbyte_json_real(j, "share", (double)times->ns / total);
    subbyte_json_text(j, "kernel", known->kernel);
    subbyte_json_text(j, "activation", known->activation);
    subbyte_json_text(j, "weights", known->weights);
    subbyte_json_whole(j, "macs", known->macs);
    subbyte_json_real(j, "gmac_per_s", known->macs && times->ns ? (double)known->macs / (double)times->ns : SUBBYTE_UNKNOWN);
    subbyte_json_text(j, "fallback", known->fallback);
    subbyte_json_close(j, '}');
  }
  subbyte_json_close(j, ']');
}

static void write_json(subbyte_json *j, const subbyte_model *model, const bench_result *result) {
  const int golden = subbyte_bench_data.outputs != NULL;
  int i;
  subbyte_json_open(j, NULL, '{');
  subbyte_json_text(j, "name", model->name);
  subbyte_json_text(j, "target", model->target);
  subbyte_json_text(j, "path", result->path);
  if (result->bundle_bytes < SUBBYTE_UNKNOWN)
    subbyte_json_whole(j, "bundle_bytes", (long long)result->bundle_bytes);
  else
    subbyte_json_null(j, "bundle_bytes"); /* of an unpacked bundle */
  subbyte_json_whole(j, "threads", result->threads);
  subbyte_json_open(j, "pinned_cpus", '[');
  for (i = 0; i < result->pinned_count; ++i) subbyte_json_whole(j, NULL, result->pinned[i]);
  subbyte_json_close(j, ']');
  subbyte_latency_json(j, &result->measured);
  subbyte_warnings_json(j, &result->warnings);
  print_operators(j, model, result);
  subbyte_json_flag(j, "golden_ok", golden ? result->golden.ok : -1);
  subbyte_json_flag(j, "golden_exact", golden ? result->golden.differing == 0 : -1);
  if (golden) {
    subbyte_json_whole(j, "golden_differing", (long long)result->golden.differing);
    subbyte_json_whole(j, "golden_moved", (long long)result->golden.moved);
  } else {
    subbyte_json_null(j, "golden_differing");
    subbyte_json_null(j, "golden_moved");
  }
  subbyte_json_real(j, "golden_max_error", golden ? result->golden.largest : SUBBYTE_UNKNOWN);
  bench_start_json(j, "cold_start", &result->start);
  bench_energy_json(j, "energy_measured", result->has_energy ? &result->energy : NULL);
  subbyte_json_text(j, "energy_measured_missing", result->has_energy ? "" : result->energy_missing);
  subbyte_json_raw(j, "energy_modelled", subbyte_bench_data.modelled);
  subbyte_machine_json(j, "machine", result->machine, subbyte_bench_data.version);
  subbyte_json_close(j, '}');
}

void bench_print_json(const subbyte_model *model, const bench_result *result) {
  subbyte_json j = {0};
  write_json(&j, model, result);
  if (j.failed) bench_fail("out of memory", NULL);
  fputs(j.text, stdout);
  free(j.text);
}

void bench_print_table(const subbyte_model *model, const bench_result *result) {
  const double total = total_ns(model, result);
  const subbyte_machine_facts *m = result->machine;
  const subbyte_latency *l = &result->measured.latency;
  int i;
  printf("%s for %s, %d thread%s, %ld runs after %ld to warm up\n", model->name, model->target, result->threads,
         result->threads == 1 ? "" : "s", (long)result->measured.timed.calls, (long)result->measured.warmup.calls);
  printf("latency ms: min %.4f  mean %.4f  p50 %.4f  p90 %.4f  p99 %.4f  std %.4f\n", l->min, l->mean, l->p50, l->p90,
         l->p99, l->std);
  printf("golden outputs: %s\n", subbyte_bench_data.outputs == NULL ? "none"
                                 : !result->golden.ok              ? "DIFFERENT"
                                 : result->golden.differing == 0UL ? "equal"
                                                                   : "within tolerance");
  for (i = 0; i < model->operator_count; ++i) {
    const double ns = (double)result->measured.operators[i].ns;
    printf("%10.1f us %5.1f%%  %s  %s\n", ns / 1e3, 100.0 * ns / total, model->operators[i].name,
           subbyte_bench_data.operators[i].kernel);
  }
  if (result->start.runs)
    printf("cold start: %.1f ms (load %.1f, first result %.1f), median of %d; resident %.3g MB\n", result->start.total_ms,
           result->start.load_ms, result->start.first_result_ms, result->start.runs, result->start.resident_bytes / 1e6);
  if (result->has_energy)
    printf("energy, measured (%s, %.1f s): %.4g mJ a call gross, %.4g mJ net of %.1f W idle\n", result->energy.source,
           result->energy.window_s, 1e3 * result->energy.gross / (double)result->energy.calls,
           1e3 * result->energy.net / (double)result->energy.calls, result->energy.idle_w);
  else
    printf("energy, measured: none. %s\n", result->energy_missing);
  printf("machine: %s, %d of %d cores, %s\n", m->cpu[0] ? m->cpu : m->architecture, m->usable_cores, m->physical_cores, m->system);
  for (i = 0; i < result->warnings.count; ++i) printf("warning: %s\n", result->warnings.text[i]);
}
