/* A model written by hand, as the compiler would write it: y = x * w (4 tiles, through a workspace), then z[row] = sum y[row].
 *
 *   gcc -shared -fPIC -I runtime/c tests/c_core/tiny_model.c runtime/c/{run,needs,session,threads,cores}.c -lpthread -o tiny.so
 *
 * Weights: 16 float32. Input "x": float32 [4, 16]. Outputs "y": float32 [4, 16] and "z": float32 [4].
 */
#include "subbyte.h"

enum { ROWS = 4, COLUMNS = 16 };

static int32_t scale_rows(void *const *args, int32_t begin, int32_t end) {
  const float *x = (const float *)args[0];
  const float *w = (const float *)args[1];
  float *y = (float *)args[2];
  float *scratch = (float *)args[3];
  int32_t row, column;
  for (row = begin; row < end; ++row) {
    for (column = 0; column < COLUMNS; ++column) scratch[column] = x[row * COLUMNS + column];
    for (column = 0; column < COLUMNS; ++column) y[row * COLUMNS + column] = scratch[column] * w[column];
  }
  return 0;
}

static int32_t copy_and_sum(void *const *args, int32_t begin, int32_t end) {
  const float *hidden = (const float *)args[0];
  float *y = (float *)args[1];
  float *z = (float *)args[2];
  int32_t row, column;
  (void)begin;
  (void)end;
  for (row = 0; row < ROWS; ++row) {
    z[row] = 0.0f;
    for (column = 0; column < COLUMNS; ++column) {
      y[row * COLUMNS + column] = hidden[row * COLUMNS + column];
      z[row] += hidden[row * COLUMNS + column];
    }
    if (!(z[row] < 1e30f)) return 1; /* lets a test see a kernel fail */
  }
  return 0;
}

static const int64_t shape_x[] = {ROWS, COLUMNS};
static const int64_t shape_z[] = {ROWS};
static const subbyte_tensor inputs[] = {{"x", SUBBYTE_FLOAT32, 2, shape_x, ROWS * COLUMNS * 4}};
static const subbyte_tensor outputs[] = {{"y", SUBBYTE_FLOAT32, 2, shape_x, ROWS * COLUMNS * 4},
                                         {"z", SUBBYTE_FLOAT32, 1, shape_z, ROWS * 4}};
static const subbyte_argument arguments_0[] = {
    {SUBBYTE_INPUT, 0}, {SUBBYTE_WEIGHTS, 0}, {SUBBYTE_ARENA, 64}, {SUBBYTE_WORKSPACE, 0}};
static const subbyte_argument arguments_1[] = {{SUBBYTE_ARENA, 64}, {SUBBYTE_OUTPUT, 0}, {SUBBYTE_OUTPUT, 1}};
static const subbyte_operator operators[] = {{"/scale", scale_rows, arguments_0, 4, ROWS},
                                             {"/sum", copy_and_sum, arguments_1, 3, 1}};
static const subbyte_model model = {SUBBYTE_ABI, "tiny",  "host", 1,   2,  2,
                                    inputs,      outputs, operators, 64 + ROWS * COLUMNS * 4, COLUMNS * 4, COLUMNS * 4, 0, 0, NULL};

const subbyte_model *subbyte_get_model(void) { return &model; }
