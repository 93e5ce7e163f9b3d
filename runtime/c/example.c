/* How to call the model: run it on the golden inputs, compare the outputs, count instructions where a timer allows.
 *
 * Your own program needs kernels.c, model.c, weights.c, run.c, needs.c and the headers; this file, golden.c, startup.c and the
 * linker script are for trying it out, e.g. in an emulator:
 *
 *   make run
 */
#include <float.h>
#include <string.h>

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

static int64_t integer(int32_t dtype, const void *values, size_t i) {
  switch (dtype) {
    case SUBBYTE_UINT8: return ((const uint8_t *)values)[i];
    case SUBBYTE_INT8: return ((const int8_t *)values)[i];
    case SUBBYTE_INT64: return ((const int64_t *)values)[i];
    default: return ((const int32_t *)values)[i];
  }
}

static float magnitude(float value) { return value < 0.0f ? -value : value; }

/* The largest finite magnitude of an output, or 1 if that is larger: the absolute tolerance grows with it. */
static float scale_of(const float *values, size_t count) {
  float largest = 1.0f;
  size_t i;
  for (i = 0; i < count; ++i) {
    const float size = magnitude(values[i]);
    if (size > largest && size <= FLT_MAX) largest = size;
  }
  return largest;
}

/* As in runtime/golden.py: of integers one in so many, or one, may have moved over a rounding tie. */
enum { MOST_MOVED = 20 };

/* How two floats are: 0 as near as the bundle allows, 1 moved over a tie, 2 wrong. `scale`: of the golden output. */
static int compared(float got, float want, float scale, float tie) {
  const float difference = magnitude(got - want);
  const float near = SUBBYTE_EXAMPLE_GOLDEN_RELATIVE * magnitude(want) + SUBBYTE_EXAMPLE_GOLDEN_ABSOLUTE * scale;
  if (got != got || want != want) return got != got && want != want ? 0 : 2;
  if (!(difference <= FLT_MAX)) return 2; /* an infinity against anything else */
  if (difference <= near) return 0;
  return tie > 0.0f && difference <= tie ? 1 : 2;
}

/* The same of two integers that differ; as floats they would be rounded. */
static int compared_integers(int64_t got, int64_t want, float tie) {
  const uint64_t difference = got > want ? (uint64_t)got - (uint64_t)want : (uint64_t)want - (uint64_t)got;
  if (!(tie > 0.0f)) return 2;
  return tie >= 18446744073709551616.0f || difference <= (uint64_t)tie ? 1 : 2;
}

static uint32_t element_bytes(int32_t dtype) {
  return dtype == SUBBYTE_UINT8 || dtype == SUBBYTE_INT8 ? 1 : dtype == SUBBYTE_INT64 ? 8 : 4;
}

int main(void) {
  const subbyte_model *model = subbyte_get_example_model();
  void *outputs[SUBBYTE_EXAMPLE_OUTPUT_COUNT];
  subbyte_buffers buffers;
  uint32_t ticks, wrong = 0;
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
    const uint8_t *got = (const uint8_t *)outputs[i];
    const uint8_t *want = (const uint8_t *)subbyte_example_golden_outputs[i];
    const int32_t dtype = model->outputs[i].dtype;
    const uint32_t size = element_bytes(dtype);
    const float tie = subbyte_example_golden_ties[i];
    const size_t count = model->outputs[i].nbytes / size;
    uint32_t differing = 0, moved = 0;
    const float *golden = (const float *)subbyte_example_golden_outputs[i]; /* where it is float32 */
    float scale = 1.0f;
    size_t k;
    if (want == NULL) continue; /* compiled without golden outputs */
    if (dtype == SUBBYTE_FLOAT32) scale = scale_of(golden, count);
    for (k = 0; k < count; ++k) {
      int how;
      if (memcmp(got + k * size, want + k * size, size) == 0) continue;
      ++differing;
      how = dtype == SUBBYTE_FLOAT32
                ? compared(((const float *)outputs[i])[k], golden[k], scale, tie)
                : compared_integers(integer(dtype, got, k), integer(dtype, want, k), tie);
      moved += how == 1;
      wrong += how == 2;
    }
    if (dtype != SUBBYTE_FLOAT32 && moved > (count < MOST_MOVED ? 1 : count / MOST_MOVED)) ++wrong;
    console_text("output ");
    console_number((uint32_t)i);
    console_text(" differing ");
    console_number(differing);
    console_text("\n");
  }
  console_text(wrong ? "golden DIFFERENT\n" : "golden ok\n");
  return wrong ? 1 : 0;
}
