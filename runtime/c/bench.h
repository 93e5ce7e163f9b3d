/* The bench program's parts, and what the compiler links into it beside the model (content.c). Linux only. */
#ifndef SUBBYTE_BENCH_H
#define SUBBYTE_BENCH_H

#include <math.h>

#include "compare.h"
#include "subbyte.h"

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
  const subbyte_bench_member *inputs;  /* [model->input_count], golden; or NULL */
  const subbyte_bench_member *outputs; /* [model->output_count], golden; or NULL */
  subbyte_tolerance tolerance;  /* relative and absolute 0: a float32 may not differ by one bit */
  const double *ties;          /* [model->output_count]: how far a rounding tie may move an element, 0: not at all */
  const subbyte_bench_operator *operators; /* [model->operator_count] */
  const char *modelled;                    /* energy_modelled, as JSON: constant for a model */
  const char *version;                     /* of subbyte, which compiled the model */
} subbyte_bench_content;

extern const subbyte_bench_content subbyte_bench_data;

/* Prints "error: WHAT: DETAIL" and ends the program with 1; `detail` may be NULL. */
void bench_fail(const char *what, const char *detail);

/* Zeroed memory; ends the program when there is none. */
void *bench_allocate(size_t bytes);

/* ---- bench_open.c: the bundle that the program is a member of ---- */

enum { BENCH_TEXT = 256, BENCH_MOST_CPUS = 1024, BENCH_PATH = 1024 };

typedef struct {
  char path[BENCH_PATH]; /* of the .subbyte file, or of the folder into which it was unpacked */
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

/* ---- bench_json.c: a JSON value to standard output, key by key; `key` is NULL inside of arrays ---- */

#define BENCH_UNKNOWN HUGE_VAL /* of a number that the system does not tell: null */

void bench_json_open(const char *key, char bracket); /* '{' or '[' */
void bench_json_close(char bracket);
void bench_json_text(const char *key, const char *value); /* NULL: null. What is not UTF-8 becomes U+FFFD */
void bench_json_real(const char *key, double value);      /* not finite: null. As many digits as tell it from others */
void bench_json_whole(const char *key, long long value);
void bench_json_flag(const char *key, int value); /* negative: null */
void bench_json_null(const char *key);
void bench_json_raw(const char *key, const char *json);

/* ---- bench_machine.c: what runtime/machine.py and runtime/host.py say of this machine ---- */

/* All of a file of /proc or /sys, without white space at its ends; NULL when it cannot be read or is empty. To be freed. */
char *bench_text_of(const char *root, const char *path);
/* The number that `text` is, with a fraction or without one; BENCH_UNKNOWN for whatever else it holds. */
double bench_number_in(const char *text, int fraction);

typedef struct {
  char cpu[BENCH_TEXT];
  char architecture[BENCH_TEXT];
  char **features; /* [feature_count], sorted */
  int feature_count;
  int logical_cpus, physical_cores, usable_cores;
  char governor[BENCH_TEXT];                           /* "": not told */
  double mhz, mhz_min, mhz_max, temperature_c, load_1min; /* BENCH_UNKNOWN: not told */
  double memory_bytes, memory_available_bytes;            /* the same */
  int boost, virtualised;                                 /* negative: not told */
  char system[BENCH_TEXT];
  char kernel[BENCH_TEXT];
} bench_machine;

/* `root` is "" but in tests, which make a tree up. */
void bench_machine_read(bench_machine *m, const char *root);
void bench_machine_json(const char *key, const bench_machine *m);

/* Keeps the process on `threads` physical cores, not the first, and writes their CPUs; returns how many, 0 where it cannot. */
int bench_pin(int threads, int *cpus);

/* Whether the system lets this process choose its cores. */
int bench_may_pin(void);
void bench_unpin(void);

/* ---- bench_cgroup.c: the cgroup that lends this process CPU time ---- */

typedef struct {
  char mount[2 * BENCH_PATH]; /* where its hierarchy is mounted */
  char inside[BENCH_PATH];    /* the group's folder in there; "": the top */
  int version;                /* of cgroups, 1 or 2; 0: not told */
} bench_group;

void bench_group_find(bench_group *g, const char *root);
/* CPUs that the tightest quota lends, and periods in which one ran out; BENCH_UNKNOWN: none, or not told. */
void bench_group_read(const bench_group *g, double *quota, double *throttled);

/* ---- bench_steady.c: why the figures should not be trusted ---- */

typedef struct {
  uint64_t start;
  const char *root; /* "" but in tests */
  double preemptions; /* of this thread; BENCH_UNKNOWN: not told */
  double stolen, ticks; /* of all CPUs; negative: not told */
  bench_group group;
  double throttled; /* periods; BENCH_UNKNOWN: not told */
} bench_watch;

typedef struct {
  char text[16][BENCH_TEXT];
  int count;
} bench_warnings;

/* Linear between the two nearest of sorted values, as numpy.percentile does. */
double bench_percentile(const double *sorted, long count, double percent);

/* Sorts; as numpy.sort. */
void bench_sort(double *values, long count);

void bench_warn(bench_warnings *w, const char *format, ...);
void bench_watch_start(bench_watch *watch, const char *root);
/* Of samples in the order of time, which were taken since bench_watch_start. */
void bench_unsteadiness(bench_warnings *w, const double *samples, long count, const bench_watch *watch);
void bench_disturbances(bench_warnings *w, const bench_machine *m, int threads);

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
void bench_energy_json(const char *key, const bench_energy *e); /* NULL: null */

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
void bench_start_json(const char *key, const bench_start *s);

#endif
