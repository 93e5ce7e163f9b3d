/* What the compiler links into the bench program beside the model. */
#ifndef SUBBYTE_BENCH_H
#define SUBBYTE_BENCH_H

#include "subbyte.h"

typedef struct {
  const void *weights;
  const void *const *inputs;  /* [model->input_count] */
  const void *const *outputs; /* [model->output_count], golden values; or NULL */
  double tolerance;           /* largest absolute difference of a float32 output; 0: equal bit for bit */
  int has_golden;
} subbyte_bench_content;

extern const subbyte_bench_content subbyte_bench_data;

#endif
