/* What the files of the C core share with each other; users include subbyte.h alone. */
#ifndef SUBBYTE_INTERNAL_H
#define SUBBYTE_INTERNAL_H

#include "subbyte.h"

#if defined(_WIN32) || defined(__unix__) || defined(__APPLE__)
#define SUBBYTE_HOSTED 1
#else
#define SUBBYTE_HOSTED 0 /* a bare microcontroller */
#endif

/* Of what only a run that fails calls: small, not fast. */
#if defined(__GNUC__)
#define SUBBYTE_COLD __attribute__((cold))
#else
#define SUBBYTE_COLD
#endif

/* Checks what every run relies on: the ABI, counts, and that no buffer the model needs is null. */
int32_t subbyte_check_buffers(const subbyte_model *model, const subbyte_buffers *buffers);

/* Whether the CPU has the model's features and the system grants what it needs, asked once: SUBBYTE_OK,
 * SUBBYTE_LACKS_FEATURES or SUBBYTE_REFUSED. */
int32_t subbyte_ask_for(const subbyte_model *model);

/* Runs tiles begin .. end-1 of one operator with the buffers of one thread. */
int32_t subbyte_run_tiles(const subbyte_operator *op, const subbyte_buffers *buffers, int32_t begin, int32_t end);

/* Writes down what ended a run, for the user: operator `index` (-1: none) with `status`, which is returned. */
int32_t subbyte_failed(const subbyte_model *model, subbyte_buffers *buffers, int32_t index, int32_t status);

/* Begins a run: the checks, and a model's state is taken for it. After SUBBYTE_OK the run ends with subbyte_end. */
static inline int32_t subbyte_begin(const subbyte_model *model, subbyte_buffers *buffers) {
  const int32_t status = subbyte_check_buffers(model, buffers);
  return status != SUBBYTE_OK || model->states == NULL ? status : model->states->begin(model, buffers);
}

/* Ends a run with the status of its last operator, which is returned. */
static inline int32_t subbyte_end(const subbyte_model *model, const subbyte_buffers *buffers, int32_t status) {
  if (model->states != NULL) model->states->end(model, buffers, status);
  return status;
}

/* Nanoseconds of a monotonic clock; 0 where there is none. */
uint64_t subbyte_now(void);

/* What the session runs. */
const subbyte_model *subbyte_session_model(const subbyte_session *session);

/* ---- threads.c ---- */

typedef struct subbyte_pool subbyte_pool;

/* Part of a job: tiles begin .. end-1, on worker 0 (the thread that asked) .. threads-1. */
typedef void (*subbyte_job)(void *context, int32_t worker, int32_t begin, int32_t end);

/* NULL when memory or threads run out. `threads` counts the calling thread. */
subbyte_pool *subbyte_pool_create(int32_t threads);

/* Call before a row of jobs: keeps the workers off the core that the caller runs on now. */
void subbyte_pool_enter(subbyte_pool *pool);

/* Runs a job of `tiles` parts on all threads and returns when the last part is done. */
void subbyte_pool_run(subbyte_pool *pool, subbyte_job job, void *context, int32_t tiles);

void subbyte_pool_destroy(subbyte_pool *pool);

#endif
