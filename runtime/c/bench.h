/* What the compiler links into the bench program beside the model. */
#ifndef SUBBYTE_BENCH_H
#define SUBBYTE_BENCH_H

#include "subbyte.h"

typedef struct {
  const void *weights;
  const void *const *inputs;  /* [model->input_count] */
  const void *const *outputs; /* [model->output_count], golden values; or NULL */
  double relative;            /* a float32 output may differ by absolute + relative * |golden|; 0, 0: not by one bit */
  double absolute;
  int has_golden;
} subbyte_bench_content;

extern const subbyte_bench_content subbyte_bench_data;

#endif
