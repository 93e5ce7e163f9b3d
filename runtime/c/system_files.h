/* What Linux tells in files of /proc and /sys. `root` is "" but in tests, which make a tree up. */
#ifndef SUBBYTE_SYSTEM_FILES_H
#define SUBBYTE_SYSTEM_FILES_H

#include <math.h>

enum { SUBBYTE_PATH = 1024 };

#define SUBBYTE_UNKNOWN HUGE_VAL /* of a number that the system does not tell: null in JSON */

/* All of a file, without white space at its ends; NULL when it cannot be read or is empty. To be freed. */
char *subbyte_text_of(const char *root, const char *path);
/* The number that `text` is, with a fraction or without one; SUBBYTE_UNKNOWN for whatever else it holds, or NULL. */
double subbyte_number_in(const char *text, int fraction);

/* ---- cgroup.c: the cgroup that limits the CPU time of this process ---- */

typedef struct {
  char mount[2 * SUBBYTE_PATH]; /* where its hierarchy is mounted */
  char inside[SUBBYTE_PATH];    /* the group's folder in there; "": the top */
  int version;                  /* of cgroups, 1 or 2; 0: not told */
} subbyte_group;

void subbyte_group_find(subbyte_group *g, const char *root);
/* CPUs that the tightest quota grants, and periods in which one ran out; SUBBYTE_UNKNOWN: none, or not told. */
void subbyte_group_read(const subbyte_group *g, double *quota, double *throttled);

#endif
