/* What the files of the core's tests share. */
#ifndef CORE_TEST_H
#define CORE_TEST_H

#include <stdlib.h>

#include "check.h"
#include "subbyte.h"

/* Zeroed memory, aligned as a model's must be; `*block` is to be freed. */
static inline void *aligned(size_t bytes, void **block) {
  *block = calloc(1, bytes + SUBBYTE_ALIGNMENT);
  CHECK(*block != NULL);
  return (void *)(((uintptr_t)*block + SUBBYTE_ALIGNMENT - 1) & ~(uintptr_t)(SUBBYTE_ALIGNMENT - 1));
}

/* state_test.c */
void test_state(void);

#endif
