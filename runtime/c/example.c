/* How to call the model: run it on the golden inputs, compare the outputs, count instructions where a timer allows.
 *
 * Your own program needs kernels.c, model.c, weights.c, run.c, needs.c, state.c where there is one, and the headers; failure.c if
 * it calls subbyte_failure_text or subbyte_status_text; this file, golden.c, startup.c and the linker script are for trying it out,
 * e.g. in an emulator:
 *
 *   make run
 */
#include <string.h>

#include "compare.h"
#include "console.h"
#include "model.h"

/* The only memory the model needs beside its constants; an array of C has an element. */
#define ROOM(bytes) ((bytes) ? (bytes) : 1)
static uint8_t arena[ROOM(SUBBYTE_EXAMPLE_ARENA_BYTES)] __attribute__((aligned(SUBBYTE_ALIGNMENT)));
static uint8_t workspace[ROOM(SUBBYTE_EXAMPLE_WORKSPACE_BYTES)] __attribute__((aligned(SUBBYTE_ALIGNMENT)));
static uint8_t given[ROOM(SUBBYTE_EXAMPLE_INPUT_BYTES)] __attribute__((aligned(SUBBYTE_ALIGNMENT)));
static uint8_t results[ROOM(SUBBYTE_EXAMPLE_OUTPUT_BYTES)] __attribute__((aligned(SUBBYTE_ALIGNMENT)));

#if SUBBYTE_EXAMPLE_STATE_COUNT
static uint8_t state[SUBBYTE_EXAMPLE_STATE_BYTES] __attribute__((aligned(SUBBYTE_ALIGNMENT)));
#endif

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

/* Whether a call failed; prints why. */
static int failed(int32_t status, const subbyte_buffers *buffers) {
  char text[256];
  if (status == SUBBYTE_OK) return 0;
  (void)subbyte_failure_text(subbyte_get_example_model(), &buffers->failure, text, sizeof text);
  console_text("error: ");
  console_text(text);
  console_text("\n");
  return 1;
}

/* Before the first run, and whenever a new sequence begins; nothing where nothing lives between runs. */
static int32_t begin_sequence(subbyte_buffers *buffers) {
#if SUBBYTE_EXAMPLE_STATE_COUNT
  buffers->state = state;
  return subbyte_reset(subbyte_get_example_model(), buffers);
#else
  (void)buffers;
  return SUBBYTE_OK;
#endif
}

static subbyte_comparison found = {0, 0, 0.0, 1};

/* What the golden run `run` gave; adds to the elements of each output, then state, that differ. */
static void compare(int32_t run, void *const *outputs, unsigned long *differing) {
  const subbyte_model *model = subbyte_get_example_model();
  const subbyte_tolerance tolerance = {SUBBYTE_EXAMPLE_GOLDEN_RELATIVE, SUBBYTE_EXAMPLE_GOLDEN_ABSOLUTE,
                                       SUBBYTE_EXAMPLE_GOLDEN_MOST_MOVED};
  int32_t i;
  for (i = 0; i < model->output_count; ++i) {
    const uint8_t *golden = (const uint8_t *)subbyte_example_golden_outputs[i];
    const unsigned long before = found.differing;
    if (golden == NULL) continue; /* compiled without golden outputs */
    subbyte_compare(&model->outputs[i], outputs[i], golden + (size_t)run * model->outputs[i].nbytes, &tolerance,
                    subbyte_example_golden_ties[i], &found);
    differing[i] += found.differing - before;
  }
#if SUBBYTE_EXAMPLE_STATE_COUNT
  for (i = 0; i < model->states->count && run + 1 == SUBBYTE_EXAMPLE_GOLDEN_RUNS; ++i) {
    const subbyte_state *kept = &model->states->states[i];
    const unsigned long before = found.differing;
    if (subbyte_example_golden_states[i] == NULL) continue;
    subbyte_compare(kept->tensor, state + kept->offset, subbyte_example_golden_states[i], &tolerance,
                    subbyte_example_golden_ties[model->output_count + i], &found);
    differing[model->output_count + i] = found.differing - before;
  }
#endif
}

/* Bytes from the start of a buffer to that of the next one. */
static size_t aligned_bytes(size_t nbytes) {
  return (nbytes + SUBBYTE_ALIGNMENT - 1) / SUBBYTE_ALIGNMENT * SUBBYTE_ALIGNMENT;
}

/* Fills the inputs with those of the golden run `run`, as your program would with what a sensor measured. */
static void fill_inputs(int32_t run) {
  const subbyte_model *model = subbyte_get_example_model();
  uint8_t *to = given;
  int32_t i;
  for (i = 0; i < model->input_count; ++i) {
    const size_t nbytes = model->inputs[i].nbytes;
    memcpy(to, (const uint8_t *)subbyte_example_golden_inputs[i] + (size_t)run * nbytes, nbytes);
    to += aligned_bytes(nbytes);
  }
}

static void report(const char *kind, int32_t index, unsigned long differing) {
  console_text(kind);
  console_number((uint32_t)index);
  console_text(" differing ");
  console_number((uint32_t)differing);
  console_text("\n");
}

int main(void) {
  const subbyte_model *model = subbyte_get_example_model();
  const void *inputs[SUBBYTE_EXAMPLE_INPUT_COUNT + 1];
  void *outputs[SUBBYTE_EXAMPLE_OUTPUT_COUNT];
  unsigned long differing[SUBBYTE_EXAMPLE_OUTPUT_COUNT + SUBBYTE_EXAMPLE_STATE_COUNT] = {0};
  subbyte_buffers buffers;
  uint32_t ticks;
  size_t place = 0;
  int32_t i, run, status;

  for (i = 0; i < model->input_count; ++i) {
    inputs[i] = given + place;
    place += aligned_bytes(model->inputs[i].nbytes);
  }
  for (i = 0, place = 0; i < model->output_count; ++i) {
    outputs[i] = results + place;
    place += aligned_bytes(model->outputs[i].nbytes);
  }
  buffers.weights = subbyte_example_weights;
  buffers.arena = arena;
  buffers.workspace = workspace;
  buffers.inputs = inputs;
  buffers.outputs = outputs;

  console_start();
  fill_inputs(0);
  if (failed(begin_sequence(&buffers), &buffers)) return 1;
  ticks = console_ticks();
  status = subbyte_run(model, &buffers, NULL, NULL);
  ticks = console_ticks() - ticks;
  if (failed(status, &buffers)) return 1;
  console_text("ticks ");
  console_number(ticks);
  console_text("\n");

  if (failed(begin_sequence(&buffers), &buffers)) return 1;
  for (run = 0; run < SUBBYTE_EXAMPLE_GOLDEN_RUNS; ++run) {
    fill_inputs(run);
    started = console_ticks();
    status = subbyte_run(model, &buffers, run ? NULL : after_operator, (void *)(uintptr_t)model);
    if (failed(status, &buffers)) return 1;
    compare(run, outputs, differing);
  }
  for (i = 0; i < model->output_count; ++i)
    if (subbyte_example_golden_outputs[i] != NULL) report("output ", i, differing[i]);
  for (i = 0; i < SUBBYTE_EXAMPLE_STATE_COUNT; ++i)
    if (subbyte_example_golden_states[i] != NULL) report("state ", i, differing[model->output_count + i]);
  console_text(found.ok ? "golden ok\n" : "golden DIFFERENT\n");
  return found.ok ? 0 : 1;
}
