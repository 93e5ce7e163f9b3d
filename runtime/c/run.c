/* The plan interpreter: walks the operators in order with buffers that the caller owns. No heap, no threads. */
#if !defined(_WIN32) && !defined(_POSIX_C_SOURCE)
#define _POSIX_C_SOURCE 200809L
#endif

#include "elements.h"
#include "internal.h"

#if defined(_WIN32)
#include <windows.h>

uint64_t subbyte_now(void) {
  LARGE_INTEGER ticks, frequency;
  QueryPerformanceCounter(&ticks);
  QueryPerformanceFrequency(&frequency);
  return (uint64_t)((double)ticks.QuadPart * 1e9 / (double)frequency.QuadPart);
}
#elif SUBBYTE_HOSTED
#include <time.h>

uint64_t subbyte_now(void) {
  struct timespec now;
  if (clock_gettime(CLOCK_MONOTONIC, &now) != 0) return 0;
  return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}
#else
uint64_t subbyte_now(void) { return 0; } /* time the hook yourself */
#endif

static int misplaced(const void *pointer, size_t alignment) {
  return pointer == NULL || ((uintptr_t)pointer & (alignment - 1)) != 0;
}

static int any_misplaced(const void *const *pointers, const subbyte_tensor *tensors, int32_t count) {
  if (count && pointers == NULL) return 1;
  for (; count; --count, ++pointers, ++tensors)
    if (misplaced(*pointers, subbyte_element_bytes(tensors->dtype))) return 1;
  return 0;
}

int32_t subbyte_check_buffers(const subbyte_model *model, const subbyte_buffers *buffers) {
  if (model == NULL || buffers == NULL) return SUBBYTE_BAD_ARGUMENT;
  if (model->abi != SUBBYTE_ABI) return SUBBYTE_BAD_ABI;
  if ((model->weights_bytes && misplaced(buffers->weights, SUBBYTE_ALIGNMENT)) ||
      (model->arena_bytes && misplaced(buffers->arena, SUBBYTE_ALIGNMENT)) ||
      (model->workspace_bytes && misplaced(buffers->workspace, SUBBYTE_ALIGNMENT)) ||
      any_misplaced(buffers->inputs, model->inputs, model->input_count) ||
      any_misplaced((const void *const *)buffers->outputs, model->outputs, model->output_count))
    return SUBBYTE_BAD_ARGUMENT;
  return model->needs || model->features ? subbyte_ask_for(model) : SUBBYTE_OK;
}

/* Kernels take plain pointers; those of inputs and weights are only read, whatever their type says. */
static void *writable(const void *pointer) {
  union {
    const void *read;
    void *write;
  } both;
  both.read = pointer;
  return both.write;
}

int32_t subbyte_run_tiles(const subbyte_operator *op, const subbyte_buffers *buffers, int32_t begin, int32_t end) {
  void *args[SUBBYTE_MAX_ARGUMENTS];
  int32_t i, status;
  if (op->argument_count > SUBBYTE_MAX_ARGUMENTS) return SUBBYTE_BAD_ARGUMENT;
  for (i = 0; i < op->argument_count; ++i) {
    const uint32_t offset = op->arguments[i].offset;
    switch (op->arguments[i].space) {
      case SUBBYTE_ARENA: args[i] = (uint8_t *)buffers->arena + offset; break;
      case SUBBYTE_WEIGHTS: args[i] = writable((const uint8_t *)buffers->weights + offset); break;
      case SUBBYTE_INPUT: args[i] = writable(buffers->inputs[offset]); break;
      case SUBBYTE_OUTPUT: args[i] = buffers->outputs[offset]; break;
      case SUBBYTE_WORKSPACE: args[i] = (uint8_t *)buffers->workspace + offset; break;
      case SUBBYTE_STATE: args[i] = (uint8_t *)buffers->state + offset; break;
      default: return SUBBYTE_BAD_ARGUMENT;
    }
  }
  status = op->kernel(args, begin, end);
  return status == SUBBYTE_OK || status == SUBBYTE_BAD_INDEX ? status : SUBBYTE_KERNEL_FAILED;
}

SUBBYTE_COLD int32_t subbyte_failed(const subbyte_model *model, subbyte_buffers *buffers, int32_t index, int32_t status) {
  subbyte_failure *failure = &buffers->failure;
  failure->status = status;
  failure->operator_index = index;
  failure->position = failure->value = failure->lowest = failure->highest = 0;
  if (status == SUBBYTE_BAD_INDEX) {
    const subbyte_operator *op = &model->operators[index];
    const uint32_t offset = op->arguments[op->argument_count - 1].offset;
    const int64_t *found = (const int64_t *)(const void *)((const uint8_t *)buffers->workspace + offset);
    failure->position = found[0];
    failure->value = found[1];
    failure->lowest = found[2];
    failure->highest = found[3];
  }
  return status;
}

int32_t subbyte_run(const subbyte_model *model, subbyte_buffers *buffers, subbyte_hook hook, void *user) {
  int32_t i;
  int32_t status = subbyte_begin(model, buffers);
  if (status != SUBBYTE_OK) return buffers != NULL ? subbyte_failed(model, buffers, -1, status) : status;
  for (i = 0; i < model->operator_count && status == SUBBYTE_OK; ++i) {
    const subbyte_operator *op = &model->operators[i];
    const uint64_t start = hook ? subbyte_now() : 0;
    status = subbyte_run_tiles(op, buffers, 0, op->tiles);
    if (status != SUBBYTE_OK)
      (void)subbyte_failed(model, buffers, i, status);
    else if (hook)
      hook(user, i, subbyte_now() - start);
  }
  return subbyte_end(model, buffers, status);
}
