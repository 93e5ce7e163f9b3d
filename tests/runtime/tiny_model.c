/* A model small enough to check by hand, as an emitter would write one: quantize, take signs, scale, count. */
#include <math.h>

#include "subbyte.h"

enum { CHANNELS = 3, ROWS = 4, COLUMNS = 4, PIXELS = ROWS * COLUMNS };

/* x float32 [1, 3, 4, 4] -> codes uint8 [1, 4, 4, 3], zero point 128; a tile is a row. x = 1234 makes the kernel fail. */
static int32_t quantize(void *const *args, int32_t begin, int32_t end) {
  const float *x = (const float *)args[0];
  uint8_t *codes = (uint8_t *)args[1];
  for (int32_t pixel = begin * COLUMNS; pixel < end * COLUMNS; ++pixel)
    for (int32_t c = 0; c < CHANNELS; ++c) {
      const float value = x[c * PIXELS + pixel];
      if (value == 1234.0f) return 1;
      codes[pixel * CHANNELS + c] = (uint8_t)(fmaxf(-127.0f, fminf(127.0f, nearbyintf(value * 4.0f))) + 128.0f);
    }
  return 0;
}

/* codes -> bits uint32 [1, 4, 4, 1] of 3 channels, through the workspace */
static int32_t take_signs(void *const *args, int32_t begin, int32_t end) {
  const uint8_t *codes = (const uint8_t *)args[0];
  uint32_t *bits = (uint32_t *)args[1];
  uint32_t *scratch = (uint32_t *)args[2];
  for (int32_t pixel = begin * COLUMNS; pixel < end * COLUMNS; ++pixel) {
    scratch[0] = 0;
    for (int32_t c = 0; c < CHANNELS; ++c) scratch[0] |= (uint32_t)(codes[pixel * CHANNELS + c] >= 128) << c;
    bits[pixel] = scratch[0];
  }
  return 0;
}

/* codes -> y float32 [1, 3, 4, 4] = level * scale[c] */
static int32_t scale(void *const *args, int32_t begin, int32_t end) {
  const uint8_t *codes = (const uint8_t *)args[0];
  const float *scales = (const float *)args[1];
  float *y = (float *)args[2];
  for (int32_t pixel = begin * COLUMNS; pixel < end * COLUMNS; ++pixel)
    for (int32_t c = 0; c < CHANNELS; ++c) y[c * PIXELS + pixel] = (float)(codes[pixel * CHANNELS + c] - 128) * scales[c];
  return 0;
}

/* bits -> count int32 [1]: how many are +1 */
static int32_t count(void *const *args, int32_t begin, int32_t end) {
  const uint32_t *bits = (const uint32_t *)args[0];
  int32_t *total = (int32_t *)args[1];
  (void)begin;
  (void)end;
  *total = 0;
  for (int32_t pixel = 0; pixel < PIXELS; ++pixel) *total += __builtin_popcount(bits[pixel]);
  return 0;
}

static const int64_t image[] = {1, CHANNELS, ROWS, COLUMNS};
static const int64_t one[] = {1};
static const subbyte_tensor inputs[] = {{"x", SUBBYTE_FLOAT32, 4, image, 4 * CHANNELS * PIXELS}};
static const subbyte_tensor outputs[] = {
    {"y", SUBBYTE_FLOAT32, 4, image, 4 * CHANNELS * PIXELS},
    {"count", SUBBYTE_INT32, 1, one, 4},
};
static const subbyte_argument quantize_arguments[] = {{SUBBYTE_INPUT, 0}, {SUBBYTE_ARENA, 0}};
static const subbyte_argument signs_arguments[] = {{SUBBYTE_ARENA, 0}, {SUBBYTE_ARENA, 64}, {SUBBYTE_WORKSPACE, 0}};
static const subbyte_argument scale_arguments[] = {{SUBBYTE_ARENA, 0}, {SUBBYTE_WEIGHTS, 64}, {SUBBYTE_OUTPUT, 0}};
static const subbyte_argument count_arguments[] = {{SUBBYTE_ARENA, 64}, {SUBBYTE_OUTPUT, 1}};
static const subbyte_operator operators[] = {
    {"quantize", quantize, quantize_arguments, 2, ROWS},
    {"take_signs", take_signs, signs_arguments, 3, ROWS},
    {"scale", scale, scale_arguments, 3, ROWS},
    {"count", count, count_arguments, 2, 1},
};
static const subbyte_model model = {
    .abi = SUBBYTE_ABI,
    .name = "tiny",
    .target = "host",
    .input_count = 1,
    .output_count = 2,
    .operator_count = 4,
    .inputs = inputs,
    .outputs = outputs,
    .operators = operators,
    .arena_bytes = 128,
    .workspace_bytes = 64,
    .weights_bytes = 128,
#ifdef TINY_FEATURES
    .features = TINY_FEATURES,
#endif
};

const subbyte_model *subbyte_get_model(void) { return &model; }
