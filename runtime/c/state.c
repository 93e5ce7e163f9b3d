/* State: values that live between runs, and the word after them that says whether a run of them is under way. */
#include <string.h>

#include "internal.h"

/* No value that memory has by chance, or after it was zeroed: a state that was never reset is refused. */
enum { READY = 0x53b17e5a, RUNNING = 0x53b17e5b };

static uint32_t *word_of(const subbyte_model *model, const subbyte_buffers *buffers) {
  return (uint32_t *)(void *)((uint8_t *)buffers->state + model->states->bytes - sizeof(uint32_t));
}

/* Whether the word was READY, and is RUNNING now. A CPU without such an instruction has one core, where an interrupt that runs
 * between the two lines has ended, and left the word READY, before the second. */
static int taken(uint32_t *word) {
#if defined(__GCC_ATOMIC_INT_LOCK_FREE) && __GCC_ATOMIC_INT_LOCK_FREE == 2
  uint32_t ready = READY;
  return __atomic_compare_exchange_n(word, &ready, RUNNING, 0, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED);
#else
  volatile uint32_t *seen = word;
  if (*seen != READY) return 0;
  *seen = RUNNING;
  return 1;
#endif
}

static void give(uint32_t *word) {
#if defined(__GCC_ATOMIC_INT_LOCK_FREE) && __GCC_ATOMIC_INT_LOCK_FREE == 2
  __atomic_store_n(word, READY, __ATOMIC_RELEASE);
#else
  *(volatile uint32_t *)word = READY;
#endif
}

static int is_misplaced(const void *state) { return state == NULL || ((uintptr_t)state & (SUBBYTE_ALIGNMENT - 1)) != 0; }

int32_t subbyte_begin_state(const subbyte_model *model, const subbyte_buffers *buffers) {
  uint32_t *word;
  if (is_misplaced(buffers->state)) return SUBBYTE_BAD_ARGUMENT;
  word = word_of(model, buffers);
  if (taken(word)) return SUBBYTE_OK;
  return *(volatile uint32_t *)word == RUNNING ? SUBBYTE_BUSY : SUBBYTE_NOT_RESET;
}

void subbyte_end_state(const subbyte_model *model, const subbyte_buffers *buffers, int32_t status) {
  int32_t i;
  for (i = 0; status == SUBBYTE_OK && i < model->states->count; ++i) {
    const subbyte_state *state = &model->states->states[i];
    memcpy((uint8_t *)buffers->state + state->offset, (const uint8_t *)buffers->arena + state->next, state->tensor->nbytes);
  }
  give(word_of(model, buffers));
}

static int32_t reset(const subbyte_model *model, const subbyte_buffers *buffers) {
  int32_t i, status;
  if (model->abi != SUBBYTE_ABI) return SUBBYTE_BAD_ABI;
  if (model->states == NULL) return SUBBYTE_OK;
  if (model->weights_bytes && buffers->weights == NULL) return SUBBYTE_BAD_ARGUMENT;
  status = subbyte_begin_state(model, buffers);
  if (status != SUBBYTE_OK && status != SUBBYTE_NOT_RESET) return status;
  for (i = 0; i < model->states->count; ++i) {
    const subbyte_state *state = &model->states->states[i];
    uint8_t *value = (uint8_t *)buffers->state + state->offset;
    if (state->initial == SUBBYTE_ZEROS)
      memset(value, 0, state->tensor->nbytes);
    else
      memcpy(value, (const uint8_t *)buffers->weights + state->initial, state->tensor->nbytes);
  }
  give(word_of(model, buffers));
  return SUBBYTE_OK;
}

int32_t subbyte_reset(const subbyte_model *model, subbyte_buffers *buffers) {
  int32_t status;
  if (model == NULL || buffers == NULL) return SUBBYTE_BAD_ARGUMENT;
  status = reset(model, buffers);
  return status == SUBBYTE_OK ? status : subbyte_failed(model, buffers, -1, status);
}
