/* What a figure is measured on, and what disturbs it: what subbyte_machine (subbyte.h) and the bench program share. Linux only. */
#ifndef SUBBYTE_MACHINE_H
#define SUBBYTE_MACHINE_H

#include "measure.h"

enum { SUBBYTE_TEXT = 256, SUBBYTE_MOST_CPUS = 1024 };

typedef struct {
  char cpu[SUBBYTE_TEXT]; /* "": not told */
  const char *architecture;
  char features[1024]; /* those of cpu_features.h that this CPU has, a space between */
  int logical_cpus, physical_cores, usable_cores;
  char governor[SUBBYTE_TEXT];                            /* "": not told */
  double mhz, mhz_min, mhz_max, temperature_c, load_1min; /* SUBBYTE_UNKNOWN: not told */
  double memory_bytes, memory_available_bytes;            /* the same */
  int boost, virtualised;                                 /* negative: not told */
  int emulated;
  char system[SUBBYTE_TEXT];
  char kernel[SUBBYTE_TEXT];
} subbyte_machine_facts;

/* `root` is "" but in tests, which make a tree up. */
void subbyte_machine_read(subbyte_machine_facts *m, const char *root);
/* An object with the keys of runtime/machine.py; those of Python, NumPy and subbyte only with a `version`, of subbyte. */
void subbyte_machine_json(subbyte_json *j, const char *key, const subbyte_machine_facts *m, const char *version);
/* Why figures of so many threads may not be steady here: one sentence each, with what to do. */
void subbyte_disturbances(subbyte_warnings *w, const subbyte_machine_facts *m, int threads);

/* One logical CPU of each physical core that this process may run on, in order; returns how many. */
int subbyte_physical_cpus(const char *root, int cpus[SUBBYTE_MOST_CPUS]);

#endif
