/* The plan interpreter: walks the operators in order with buffers that the caller owns. No heap, no threads. */
#if !defined(_WIN32) && !defined(_POSIX_C_SOURCE)
#define _POSIX_C_SOURCE 200809L
#endif

#include "elements.h"
#include "internal.h"

#if defined(_WIN32) || defined(__unix__) || defined(__APPLE__)
#define HOSTED 1
#else
#define HOSTED 0 /* a bare microcontroller */
#endif

#if defined(_WIN32)
#include <windows.h>

uint64_t subbyte_now(void) {
  LARGE_INTEGER ticks, frequency;
  QueryPerformanceCounter(&ticks);
  QueryPerformanceFrequency(&frequency);
  return (uint64_t)((double)ticks.QuadPart * 1e9 / (double)frequency.QuadPart);
}
#elif HOSTED
#include <time.h>

uint64_t subbyte_now(void) {
  struct timespec now;
  if (clock_gettime(CLOCK_MONOTONIC, &now) != 0) return 0;
  return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}
#else
uint64_t subbyte_now(void) { return 0; } /* time the hook yourself */
#endif

const char *subbyte_status_text(int32_t status) {
  switch (status) {
    case SUBBYTE_OK: return "ok";
    case SUBBYTE_BAD_ARGUMENT: return "a null or misaligned pointer, or a size that does not match the model";
    case SUBBYTE_BAD_ABI: return "the model is for another version of subbyte.h";
    case SUBBYTE_KERNEL_FAILED: return "a kernel failed";
    case SUBBYTE_BAD_INDEX: return "an index is out of range";
    case SUBBYTE_BUSY: return "another run is under way";
    case SUBBYTE_NOT_RESET: return "the state was not reset";
#if HOSTED /* flash is dear where none of these can happen */
    case SUBBYTE_NO_MEMORY: return "out of memory, or threads could not be started";
    case SUBBYTE_STOPPED: return "the caller ended the measurement";
    case SUBBYTE_REFUSED:
      return "the system refuses AMX's tile registers to this process (arch_prctl); compile the model again where it "
             "runs, with --target host";
    case SUBBYTE_LACKS_FEATURES:
      return "this CPU lacks features that the model was compiled for (subbyte_missing_features names them); compile the "
             "model again for this machine, with --target host, or with a target that needs fewer features";
#endif
    default: return "unknown status";
  }
}

/* Text as it grows: what does not fit is counted only. */
typedef struct {
  char *text;
  size_t bytes, length;
} writer;

static void write_text(writer *w, const char *text) {
  for (; *text; ++text, ++w->length)
    if (w->text != NULL && w->length + 1 < w->bytes) w->text[w->length] = *text;
}

static void write_number(writer *w, int64_t number) {
  char digits[21], *first = digits + sizeof digits - 1;
  uint64_t left = number < 0 ? 0u - (uint64_t)number : (uint64_t)number;
  *first = '\0';
  do {
    *--first = (char)('0' + left % 10);
    left /= 10;
  } while (left);
  if (number < 0) write_text(w, "-");
  write_text(w, first);
}

size_t subbyte_failure_text(const subbyte_model *model, const subbyte_failure *failure, char *text, size_t bytes) {
  writer w;
  w.text = text;
  w.bytes = bytes;
  w.length = 0;
  if (failure->operator_index >= 0) {
    write_text(&w, "operator '");
    write_text(&w, model->operators[failure->operator_index].name);
    write_text(&w, "': ");
  }
  if (failure->status == SUBBYTE_BAD_INDEX) {
    write_text(&w, "index ");
    write_number(&w, failure->value);
    write_text(&w, ", element ");
    write_number(&w, failure->position);
    write_text(&w, " of its indices, is out of range; expected ");
    write_number(&w, failure->lowest);
    write_text(&w, " .. ");
    write_number(&w, failure->highest);
  } else {
    write_text(&w, subbyte_status_text(failure->status));
  }
  if (text != NULL && bytes) text[w.length < bytes ? w.length : bytes - 1] = '\0';
  return w.length;
}

static int misaligned(const void *pointer, size_t alignment) { return ((uintptr_t)pointer & (alignment - 1)) != 0; }

int32_t subbyte_check_buffers(const subbyte_model *model, const subbyte_buffers *buffers) {
  int32_t i;
  if (model == NULL || buffers == NULL) return SUBBYTE_BAD_ARGUMENT;
  if (model->abi != SUBBYTE_ABI) return SUBBYTE_BAD_ABI;
  if (model->weights_bytes && (buffers->weights == NULL || misaligned(buffers->weights, SUBBYTE_ALIGNMENT)))
    return SUBBYTE_BAD_ARGUMENT;
  if (model->arena_bytes && (buffers->arena == NULL || misaligned(buffers->arena, SUBBYTE_ALIGNMENT)))
    return SUBBYTE_BAD_ARGUMENT;
  if (model->workspace_bytes && (buffers->workspace == NULL || misaligned(buffers->workspace, SUBBYTE_ALIGNMENT)))
    return SUBBYTE_BAD_ARGUMENT;
  if ((model->input_count && buffers->inputs == NULL) || (model->output_count && buffers->outputs == NULL))
    return SUBBYTE_BAD_ARGUMENT;
  for (i = 0; i < model->input_count; ++i)
    if (buffers->inputs[i] == NULL || misaligned(buffers->inputs[i], subbyte_element_bytes(model->inputs[i].dtype)))
      return SUBBYTE_BAD_ARGUMENT;
  for (i = 0; i < model->output_count; ++i)
    if (buffers->outputs[i] == NULL || misaligned(buffers->outputs[i], subbyte_element_bytes(model->outputs[i].dtype)))
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

int32_t subbyte_failed(const subbyte_model *model, subbyte_buffers *buffers, int32_t index, int32_t status) {
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
