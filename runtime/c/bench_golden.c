/* The golden runs of the bundle: one, or of a model with state several in a row from the initial state on. */
#include <stdio.h>
#include <string.h>

#include "bench.h"

void **bench_tensors(int32_t count, const subbyte_tensor *kinds, int32_t runs, const bench_bundle *bundle,
                     const subbyte_bench_member *members) {
  void **made = (void **)bench_allocate(sizeof(void *) * (size_t)count);
  int32_t i;
  for (i = 0; i < count; ++i)
    made[i] = members != NULL ? bench_member(bundle, &members[i]) : bench_allocate((size_t)runs * kinds[i].nbytes);
  return made;
}

/* Pointers to what a run has of tensors that hold all runs. */
static void of_run(int32_t run, int32_t count, const subbyte_tensor *kinds, void *const *all, void **one) {
  int32_t i;
  for (i = 0; i < count; ++i) one[i] = (char *)all[i] + (size_t)run * kinds[i].nbytes;
}

static void dump_outputs(const subbyte_model *model, int32_t runs, void *const *outputs, const char *folder) {
  int32_t i;
  for (i = 0; i < model->output_count; ++i) {
    const size_t bytes = (size_t)runs * model->outputs[i].nbytes;
    char path[512];
    FILE *file;
    snprintf(path, sizeof path, "%s/output_%d.bin", folder, (int)i);
    file = fopen(path, "wb");
    if (file == NULL || fwrite(outputs[i], 1, bytes, file) != bytes) bench_fail("cannot write", path);
    fclose(file);
  }
}

/* Of all runs together, as runtime/golden.py compares them. */
static void compare_outputs(const subbyte_model *model, const bench_bundle *bundle, void *const *outputs,
                            subbyte_comparison *found) {
  const subbyte_bench_content *data = &subbyte_bench_data;
  void **golden = bench_tensors(model->output_count, model->outputs, data->runs, bundle, data->outputs);
  int32_t i;
  for (i = 0; i < model->output_count; ++i) {
    subbyte_tensor all = model->outputs[i];
    all.nbytes *= (size_t)data->runs;
    subbyte_compare(&all, outputs[i], golden[i], &data->tolerance, data->ties[i], found);
  }
}

static void compare_states(const subbyte_model *model, const bench_bundle *bundle, subbyte_session *session,
                           subbyte_comparison *found) {
  const subbyte_bench_content *data = &subbyte_bench_data;
  int32_t i;
  for (i = 0; model->states != NULL && i < model->states->count; ++i)
    subbyte_compare(model->states->states[i].tensor, subbyte_session_state(session, i),
                    bench_member(bundle, &data->states[i]), &data->tolerance, data->ties[model->output_count + i], found);
}

void bench_golden(subbyte_session *session, const bench_bundle *bundle, void *const *inputs, const char *dump,
                  subbyte_comparison *found) {
  const subbyte_model *model = subbyte_get_model();
  const int32_t runs = subbyte_bench_data.runs;
  void **given = bench_tensors(model->input_count, model->inputs, 0, bundle, NULL);
  void **made = bench_tensors(model->output_count, model->outputs, 0, bundle, NULL);
  void **outputs = bench_tensors(model->output_count, model->outputs, runs, bundle, NULL);
  int32_t run;
  bench_check(session, subbyte_session_reset(session));
  for (run = 0; run < runs; ++run) {
    of_run(run, model->input_count, model->inputs, inputs, given);
    of_run(run, model->output_count, model->outputs, outputs, made);
    bench_check(session, subbyte_session_run(session, (const void *const *)given, made, NULL, NULL));
  }
  memset(found, 0, sizeof *found);
  found->ok = 1;
  if (subbyte_bench_data.outputs != NULL) {
    compare_outputs(model, bundle, outputs, found);
    compare_states(model, bundle, session, found);
  }
  if (dump != NULL) dump_outputs(model, runs, outputs, dump);
}
