/* Elements of model inputs and outputs, by their type; for the programs that compare them. */
#ifndef SUBBYTE_ELEMENTS_H
#define SUBBYTE_ELEMENTS_H

#include <string.h>

#include "subbyte.h"

static inline size_t subbyte_element_bytes(int32_t dtype) {
  switch (dtype) {
    case SUBBYTE_UINT8:
    case SUBBYTE_INT8: return 1;
    case SUBBYTE_FLOAT16: return 2;
    case SUBBYTE_INT64:
    case SUBBYTE_FLOAT64: return 8;
    default: return 4;
  }
}

static inline int subbyte_is_float(int32_t dtype) {
  return dtype == SUBBYTE_FLOAT32 || dtype == SUBBYTE_FLOAT16 || dtype == SUBBYTE_FLOAT64;
}

static inline int64_t subbyte_integer(int32_t dtype, const void *values, size_t i) {
  switch (dtype) {
    case SUBBYTE_UINT8: return ((const uint8_t *)values)[i];
    case SUBBYTE_INT8: return ((const int8_t *)values)[i];
    case SUBBYTE_INT64: return ((const int64_t *)values)[i];
    default: return ((const int32_t *)values)[i];
  }
}

/* What the bits of a float16 are. */
static inline float subbyte_float16(uint16_t bits) {
  const uint32_t size = bits & 0x7fffu, sign = (uint32_t)(bits & 0x8000u) << 16;
  const float small = (float)size * 0x1p-24f; /* where the exponent is 0 */
  uint32_t word;
  float value;
  memcpy(&word, &small, sizeof word);
  if (size >= 0x400u) word = size >= 0x7c00u ? size << 13 | 0x7f800000u : (size << 13) + 0x38000000u;
  word |= sign;
  memcpy(&value, &word, sizeof value);
  return value;
}

static inline double subbyte_real(int32_t dtype, const void *values, size_t i) {
  switch (dtype) {
    case SUBBYTE_FLOAT16: return (double)subbyte_float16(((const uint16_t *)values)[i]);
    case SUBBYTE_FLOAT64: return ((const double *)values)[i];
    default: return (double)((const float *)values)[i];
  }
}

/* The largest finite magnitude of float elements, or 1 if that is larger: the absolute tolerance grows with it. */
static inline double subbyte_scale_of(int32_t dtype, const void *values, size_t count) {
  double largest = 1.0;
  size_t i;
  for (i = 0; i < count; ++i) {
    const double value = subbyte_real(dtype, values, i), size = value < 0.0 ? -value : value;
    if (size > largest && size - size == 0.0) largest = size; /* infinity less itself is NaN */
  }
  return largest;
}

#endif
