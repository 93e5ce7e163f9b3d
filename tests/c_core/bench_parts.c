/* Parts of the bench program by themselves, on trees that a test makes up; each prints JSON.
 *
 *   bench_parts machine ROOT THREADS      the machine, and what disturbs THREADS threads on it
 *   bench_parts energy POWERCAP SECONDS   joules; every wait and every call takes 3 ms and moves the counters by STEP
 *   bench_parts texts TEXT...             each as a JSON string
 *   bench_parts reals NUMBER...           each as a JSON number
 *   bench_parts cgroup ROOT               CPUs that the quota lends, and periods in which it ran out
 *   bench_parts sha256 TEXT...            of each
 *   bench_parts member BUNDLE NAME BYTES HEADER SHA256   the SHA-256 of the member's data
 *   bench_parts steady ROOT NUMBER...     warnings about these latencies; ROOT/later and ROOT/later_stat
 *                                         become cpu.stat and /proc/stat in the window
 */
#define _POSIX_C_SOURCE 200809L

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "bench_report.h"

const subbyte_bench_content subbyte_bench_data = {0, 0, 0, {0, 0, 1}, 0, 0, 0, "0.0-test"};

static const char *powercap;
static int calls;

void bench_fail(const char *what, const char *detail) {
  fprintf(stderr, "error: %s%s%s\n", what, detail ? ": " : "", detail ? detail : "");
  exit(1);
}

void *bench_allocate(size_t bytes) {
  void *memory = calloc(1, bytes ? bytes : 1);
  if (memory == NULL) bench_fail("out of memory", NULL);
  return memory;
}

/* Adds the number in a domain's file `step` to its counter, which wraps at its range. */
static void move(const char *domain) {
  static const char *const names[] = {"energy_uj", "step", "max_energy_range_uj"};
  unsigned long long value[3];
  char path[512];
  FILE *file;
  int i;
  for (i = 0; i < 3; ++i) {
    snprintf(path, sizeof path, "%s/%s/%s", powercap, domain, names[i]);
    file = fopen(path, "r");
    if (file == NULL) return;
    if (fscanf(file, "%llu", &value[i]) != 1) bench_fail("not a number", path);
    fclose(file);
  }
  snprintf(path, sizeof path, "%s/%s/energy_uj", powercap, domain);
  file = fopen(path, "w");
  fprintf(file, "%llu\n", (value[0] + value[1]) % value[2]);
  fclose(file);
}

static long long now_ns = 1000000000;

static void pass_time(void) {
  now_ns += 3000000; /* longer than BENCH_POLL_S of this build */
  move("intel-rapl:0");
  move("intel-rapl:0:2");
}

/* The bench program looks at this clock, so that a loaded machine changes nothing, and sleeps with nanosleep. */
int clock_gettime(clockid_t clock, struct timespec *now) {
  (void)clock;
  now->tv_sec = (time_t)(now_ns / 1000000000);
  now->tv_nsec = (long)(now_ns % 1000000000);
  return 0;
}

int nanosleep(const struct timespec *wanted, struct timespec *left) {
  (void)wanted;
  (void)left;
  pass_time();
  return 0;
}

static void call(void *context) {
  (void)context;
  ++calls;
  pass_time();
}

static int strings(char **texts, int numbers) {
  bench_json_open(NULL, '[');
  for (; *texts; ++texts) {
    if (numbers)
      bench_json_real(NULL, strtod(*texts, NULL));
    else
      bench_json_text(NULL, *texts);
  }
  bench_json_close(']');
  return 0;
}

static void print_warnings(const char *key, const bench_warnings *w) {
  int i;
  bench_json_open(key, '[');
  for (i = 0; i < w->count; ++i) bench_json_text(NULL, w->text[i]);
  bench_json_close(']');
}

int main(int argc, char **argv) {
  static bench_warnings warnings;
  if (argc == 4 && strcmp(argv[1], "machine") == 0) {
    static bench_machine m;
    bench_machine_read(&m, argv[2]);
    bench_disturbances(&warnings, &m, atoi(argv[3]));
    bench_json_open(NULL, '{');
    bench_machine_json("machine", &m);
    print_warnings("disturbances", &warnings);
    bench_json_close('}');
    return 0;
  }
  if (argc == 4 && strcmp(argv[1], "energy") == 0) {
    static bench_energy e;
    static char missing[2048];
    int failed;
    powercap = argv[2];
    failed = bench_energy_measure(powercap, call, NULL, atof(argv[3]), &e, missing, sizeof missing);
    bench_json_open(NULL, '{');
    bench_energy_json("energy_measured", failed ? NULL : &e);
    bench_json_text("energy_measured_missing", missing);
    bench_json_close('}');
    return 0;
  }
  if (argc == 3 && strcmp(argv[1], "cgroup") == 0) {
    static bench_group group;
    double quota, throttled;
    bench_group_find(&group, argv[2]);
    bench_group_read(&group, &quota, &throttled);
    bench_json_open(NULL, '{');
    bench_json_real("quota", quota);
    bench_json_real("throttled", throttled);
    bench_json_close('}');
    return 0;
  }
  if (argc > 3 && strcmp(argv[1], "steady") == 0) {
    double *samples = (double *)bench_allocate(sizeof(double) * (size_t)argc);
    char later[512], stat[512];
    bench_watch watch;
    int i;
    bench_watch_start(&watch, argv[2]);
    snprintf(later, sizeof later, "%s/later", argv[2]);
    snprintf(stat, sizeof stat, "%s/sys/fs/cgroup/cpu.stat", argv[2]);
    (void)rename(later, stat);
    snprintf(later, sizeof later, "%s/later_stat", argv[2]);
    snprintf(stat, sizeof stat, "%s/proc/stat", argv[2]);
    (void)rename(later, stat);
    for (i = 3; i < argc; ++i) samples[i - 3] = strtod(argv[i], NULL);
    bench_unsteadiness(&warnings, samples, argc - 3, &watch);
    print_warnings(NULL, &warnings);
    free(samples);
    return 0;
  }
  if (argc > 1 && strcmp(argv[1], "sha256") == 0) {
    char digits[65];
    bench_json_open(NULL, '[');
    for (argv += 2; *argv; ++argv) {
      bench_sha256(*argv, strlen(*argv), digits);
      bench_json_text(NULL, digits);
    }
    bench_json_close(']');
    return 0;
  }
  if (argc == 7 && strcmp(argv[1], "member") == 0) {
    const subbyte_bench_member member = {argv[3], (size_t)atol(argv[4]), (size_t)atol(argv[5]), argv[6]};
    bench_bundle bundle;
    char digits[65];
    void *data;
    bench_open(&bundle, argv[2]);
    data = bench_member(&bundle, &member);
    if (((uintptr_t)data & (SUBBYTE_ALIGNMENT - 1)) != 0) bench_fail("not aligned", NULL);
    bench_sha256(data, member.bytes - member.header, digits);
    bench_json_open(NULL, '[');
    bench_json_text(NULL, digits);
    bench_json_close(']');
    return 0;
  }
  if (argc > 1 && strcmp(argv[1], "texts") == 0) return strings(argv + 2, 0);
  if (argc > 1 && strcmp(argv[1], "reals") == 0) return strings(argv + 2, 1);
  return 2;
}
