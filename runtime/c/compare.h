/* How outputs are compared with their golden values, as runtime/golden.py does: by the bench program and the example. */
#ifndef SUBBYTE_COMPARE_H
#define SUBBYTE_COMPARE_H

#include <math.h>
#include <string.h>

#include "elements.h"
#include "subbyte.h"

/* Integers must be the same; a float may differ by relative * |golden| + absolute * max(1, the largest finite |golden|
 * of the output), and NaN is NaN whatever its bits. Either may differ by what a rounding tie moves it by. */
typedef struct {
  double relative;
  double absolute;
  uint32_t most_moved; /* of the integers of an output at most one in so many may have moved over a tie, or one */
} subbyte_tolerance;

/* All outputs against their golden values. */
typedef struct {
  unsigned long differing; /* elements that are not the same bits */
  unsigned long moved;     /* elements beyond the tolerance, but within what a rounding tie moves them by */
  double largest;          /* difference of an element; infinite where it cannot be measured: NaN */
  int ok;                  /* all are equal, floats within the tolerance, or moved */
} subbyte_comparison;

/* |got - want| of two integers: as a double it would be rounded. */
static inline uint64_t subbyte_distance(int64_t got, int64_t want) {
  return got > want ? (uint64_t)got - (uint64_t)want : (uint64_t)want - (uint64_t)got;
}

/* Adds an output to what was found of others. `tie`: how far a rounding tie may move an element, 0: not at all. */
static inline void subbyte_compare(const subbyte_tensor *tensor, const void *got, const void *want,
                                   const subbyte_tolerance *tolerance, double tie, subbyte_comparison *found) {
  const int32_t dtype = tensor->dtype;
  const size_t size = subbyte_element_bytes(dtype);
  const size_t count = tensor->nbytes / size;
  const int is_float = subbyte_is_float(dtype);
  const double absolute = is_float ? tolerance->absolute * subbyte_scale_of(dtype, want, count) : 0.0;
  const int tolerant = is_float && (absolute > 0.0 || tolerance->relative > 0.0);
  const uint64_t steps = tie < 18446744073709551616.0 ? (uint64_t)tie : UINT64_MAX; /* what an integer moves by */
  unsigned long moved = 0, most = (unsigned long)(count / tolerance->most_moved);
  size_t i;
  for (i = 0; i < count; ++i) {
    const int same = memcmp((const char *)got + i * size, (const char *)want + i * size, size) == 0;
    int near = 0, within;
    double error;
    if (is_float) {
      const double g = subbyte_real(dtype, got, i), w = subbyte_real(dtype, want, i);
      error = g == w ? 0.0 : fabs(g - w);
      if (!(error < HUGE_VAL)) error = HUGE_VAL; /* NaN too */
      near = tolerant && ((error < HUGE_VAL && error <= tolerance->relative * fabs(w) + absolute) || (g != g && w != w));
      within = error < HUGE_VAL && error <= tie;
    } else {
      const uint64_t apart = subbyte_distance(subbyte_integer(dtype, got, i), subbyte_integer(dtype, want, i));
      error = (double)apart;
      within = apart <= steps;
    }
    if (error > found->largest) found->largest = error;
    if (same) continue;
    ++found->differing;
    if (near) continue;
    if (tie > 0.0 && within)
      ++moved;
    else
      found->ok = 0;
  }
  if (!is_float && moved > (most ? most : 1)) found->ok = 0;
  found->moved += moved;
}

#endif
