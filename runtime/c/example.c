/* How to call the model: run it on the golden inputs, compare the outputs, count instructions where a timer allows.
 *
 * Your own program needs kernels.c, model.c, weights.c, run.c, needs.c and the headers; this file, golden.c, startup.c and the
 * linker script are for trying it out, e.g. in an emulator:
 *
 *   make run
 */
#include "compare.h"
#include "console.h"
#include "model.h"

/* The only memory the model needs beside its constants. */
static uint8_t arena[SUBBYTE_EXAMPLE_ARENA_BYTES + 1] __attribute__((aligned(SUBBYTE_ALIGNMENT)));
static uint8_t workspace[SUBBYTE_EXAMPLE_WORKSPACE_BYTES + 1] __attribute__((aligned(SUBBYTE_ALIGNMENT)));
static uint8_t results[SUBBYTE_EXAMPLE_OUTPUT_BYTES] __attribute__((aligned(SUBBYTE_ALIGNMENT)));

static uint32_t started;

static void after_operator(void *user, int32_t index, uint64_t ns) {
  const subbyte_model *model = (const subbyte_model *)user;
  const uint32_t now = console_ticks();
  (void)ns;
  console_text("operator ");
  console_number((uint32_t)index);
  console_text(" ticks ");
  console_number(now - started);
  console_text(" ");
  console_text(model->operators[index].name);
  console_text("\n");
  started = console_ticks();
}

int main(void) {
  const subbyte_model *model = subbyte_get_example_model();
  void *outputs[SUBBYTE_EXAMPLE_OUTPUT_COUNT];
  subbyte_buffers buffers;
  const subbyte_tolerance tolerance = {SUBBYTE_EXAMPLE_GOLDEN_RELATIVE, SUBBYTE_EXAMPLE_GOLDEN_ABSOLUTE,
                                       SUBBYTE_EXAMPLE_GOLDEN_MOST_MOVED};
  subbyte_comparison found = {0, 0, 0.0, 1};
  uint32_t ticks;
  size_t place = 0;
  int32_t i, status;

  for (i = 0; i < model->output_count; ++i) {
    outputs[i] = results + place;
    place += (model->outputs[i].nbytes + SUBBYTE_ALIGNMENT - 1) / SUBBYTE_ALIGNMENT * SUBBYTE_ALIGNMENT;
  }
  buffers.weights = subbyte_example_weights;
  buffers.arena = arena;
  buffers.workspace = workspace;
  buffers.inputs = subbyte_example_golden_inputs;
  buffers.outputs = outputs;

  console_start();
  ticks = console_ticks();
  status = subbyte_run(model, &buffers, NULL, NULL);
  ticks = console_ticks() - ticks;
  if (status != SUBBYTE_OK) {
    char text[256];
    (void)subbyte_failure_text(model, &buffers.failure, text, sizeof text);
    console_text("error: ");
    console_text(text);
    console_text("\n");
    return 1;
  }
  console_text("ticks ");
  console_number(ticks);
  console_text("\n");
  started = console_ticks();
  (void)subbyte_run(model, &buffers, after_operator, (void *)(uintptr_t)model);

  for (i = 0; i < model->output_count; ++i) {
    const unsigned long before = found.differing;
    if (subbyte_example_golden_outputs[i] == NULL) continue; /* compiled without golden outputs */
    subbyte_compare(&model->outputs[i], outputs[i], subbyte_example_golden_outputs[i], &tolerance,
                    subbyte_example_golden_ties[i], &found);
    console_text("output ");
    console_number((uint32_t)i);
    console_text(" differing ");
    console_number((uint32_t)(found.differing - before));
    console_text("\n");
  }
  console_text(found.ok ? "golden ok\n" : "golden DIFFERENT\n");
  return found.ok ? 0 : 1;
}
