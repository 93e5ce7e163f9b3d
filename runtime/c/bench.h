/* The bench program's parts, and what the compiler links into it beside the model (content.c). Linux only. */
#ifndef SUBBYTE_BENCH_H
#define SUBBYTE_BENCH_H

#include "compare.h"
#include "machine.h"

/* What the compiler knows of an operator: the fields of its row in the manifest. */
typedef struct {
  const char *kernel;
  const char *activation;
  const char *weights;
  const char *fallback; /* NULL: none */
  int64_t macs;
} subbyte_bench_operator;

/* A member of the bundle that the program reads, as the compiler wrote it. */
typedef struct {
  const char *name;
  size_t bytes;
  size_t header; /* bytes before the data */
  const char *sha256; /* in hexadecimal */
} subbyte_bench_member;

typedef struct {
  const subbyte_bench_member *weights;
  const subbyte_bench_member *inputs;  /* [model->input_count], golden, each of all runs; or NULL */
  const subbyte_bench_member *outputs; /* [model->output_count], golden, each of all runs; or NULL */
  const subbyte_bench_member *states;  /* [model->states->count], golden, after the last run; or NULL */
  int32_t runs;                        /* golden ones, from the initial state on; 1 without state */
  subbyte_tolerance tolerance;  /* relative and absolute 0: a float32 may not differ by one bit */
  const double *ties;          /* of each output, then state: how far a rounding tie may move an element, 0: not at all */
  const subbyte_bench_operator *operators; /* [model->operator_count] */
  const char *modelled;                    /* energy_modelled, as JSON: constant for a model */
  const char *version;                     /* of subbyte, which compiled the model */
} subbyte_bench_content;

extern const subbyte_bench_content subbyte_bench_data;

/* Prints "error: WHAT: DETAIL" and ends the program with 1; `detail` may be NULL. */
void bench_fail(const char *what, const char *detail);

/* Ends the program where `status` of the session is a failure, which it tells. */
void bench_check(subbyte_session *session, int32_t status);

/* Zeroed memory; ends the program when there is none. */
void *bench_allocate(size_t bytes);

/* ---- bench_open.c: the bundle that the program is a member of ---- */

typedef struct {
  char path[SUBBYTE_PATH]; /* of the .subbyte file, or of the folder into which it was unpacked */
  int file;              /* -1: a folder */
  uint64_t bytes;        /* of the file */
  int entries;
  uint64_t directory_at, directory_bytes;
  unsigned char *directory; /* of the zip file */
} bench_bundle;

/* Both end the program with an error where the bundle is not one, or not that of this program. */
void bench_open(bench_bundle *bundle, const char *path);
/* The data of a member, aligned as weights must be; allocated until the program ends. */
void *bench_member(const bench_bundle *bundle, const subbyte_bench_member *member);

/* The SHA-256 in hexadecimal. */
void bench_sha256(const void *data, size_t bytes, char digits[65]);

/* ---- bench_golden.c: the golden runs ---- */

/* Pointers [count] to the members, or, with NULL, to zeros of so many runs. */
void **bench_tensors(int32_t count, const subbyte_tensor *kinds, int32_t runs, const bench_bundle *bundle,
                     const subbyte_bench_member *members);

/* Runs the `inputs` of all golden runs, from the initial state on, and compares outputs and the state after them with the golden
 * ones, where the bundle has them; writes the outputs of all runs to DUMP/output_<i>.bin, unless it is NULL. */
void bench_golden(subbyte_session *session, const bench_bundle *bundle, void *const *inputs, const char *dump,
                  subbyte_comparison *found);

/* ---- bench_pin.c: cores ---- */

/* Keeps the process on `threads` physical cores, not the first, and writes their CPUs; returns how many, 0 where it cannot. */
int bench_pin(int threads, int *cpus);

/* Whether the system lets this process choose its cores. */
int bench_may_pin(void);
void bench_unpin(void);

/* ---- bench_energy.c: joules of RAPL counters (Linux powercap), as runtime/rapl.py reads them ---- */

enum { BENCH_MOST_DOMAINS = 64, BENCH_SOURCE = 2 * 64 * 70 }; /* names of domains counted and left out */

typedef struct {
  char name[64];
  double joules;
} bench_joules;

typedef struct {
  double gross, net, window_s, idle_w, idle_window_s; /* J, s, W */
  long calls, ticks;
  bench_joules domains[BENCH_MOST_DOMAINS];
  int domain_count;
  char source[BENCH_SOURCE];
} bench_energy;

#define BENCH_POWERCAP "/sys/class/powercap"

/* Calls again and again for `seconds`, after as long an idle window; 0, or -1 with the reason in `missing`. */
int bench_energy_measure(const char *powercap, void (*call)(void *), void *context, double seconds, bench_energy *e,
                         char *missing, size_t bytes);
void bench_energy_json(subbyte_json *j, const char *key, const bench_energy *e); /* NULL: null */

/* ---- bench_start.c: from a fresh process to the first result ---- */

typedef struct {
  double load_ms, first_result_ms, total_ms, resident_bytes, peak_bytes;
  int runs; /* 0: could not be measured */
} bench_start;

#define BENCH_CHILD "--fresh-process" /* what the program starts itself with */

/* `bundle`: the path given, which the fresh process opens too. */
void bench_start_measure(bench_start *s, const char *bundle, int threads);
/* What the fresh process does: loads, runs once on zeros, prints its times; `began` is when it did. */
int bench_start_child(uint64_t began, const char *bundle, int threads);
void bench_start_json(subbyte_json *j, const char *key, const bench_start *s);

#endif
