/* Parts of the bench program by themselves, on trees that a test makes up; each prints JSON.
 *
 *   bench_parts machine ROOT THREADS      the machine, and what disturbs THREADS threads on it
 *   bench_parts energy POWERCAP SECONDS   joules; every wait and every call takes 3 ms and moves the counters by STEP
 *   bench_parts texts TEXT...             each as a JSON string
 *   bench_parts reals NUMBER...           each as a JSON number
 *   bench_parts cgroup ROOT               CPUs that the quota lends, and periods in which it ran out
 *   bench_parts sha256 TEXT...            of each
 *   bench_parts member BUNDLE NAME BYTES HEADER SHA256   the SHA-256 of the member's data
 *   bench_parts steady ROOT PREEMPTIONS NUMBER...  the latency and the warnings of these samples; in the window of one second
 *                                         are so many preemptions, and ROOT/later and ROOT/later_stat become cpu.stat and
 *                                         /proc/stat
 *   bench_parts measure WHAT ITERATIONS SECONDS WARMUP TICKS   subbyte_measure of a session whose every run takes 3 ms; run k
 *                                         has operators of 1000 + 10 k and 7 ns; ends at tick TICKS, 0: never
 */
#define _GNU_SOURCE

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

#include "bench_report.h"

const subbyte_bench_content subbyte_bench_data = {0, 0, 0, 0, 1, {0, 0, 1}, 0, 0, 0, "0.0-test"};

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

static int printed(subbyte_json *j) {
  if (j->failed) bench_fail("out of memory", NULL);
  fputs(j->text, stdout);
  free(j->text);
  return 0;
}

/* ---- a session to measure ---- */

static long preempted;

int getrusage(enum __rusage_who who, struct rusage *usage) {
  (void)who;
  memset(usage, 0, sizeof *usage);
  usage->ru_nivcsw = preempted;
  return 0;
}

struct subbyte_session {
  int resets, runs, ticks, last_tick;
};

static const subbyte_operator operators[] = {{"first", NULL, NULL, 0, 1}, {"sec\"ond", NULL, NULL, 0, 1}};
static const subbyte_model model = {.abi = SUBBYTE_ABI, .name = "made up", .operator_count = 2, .operators = operators};

const subbyte_model *subbyte_session_model(const subbyte_session *session) {
  (void)session;
  return &model;
}

int32_t subbyte_session_reset(subbyte_session *session) {
  ++session->resets;
  return SUBBYTE_OK;
}

int32_t subbyte_session_run(subbyte_session *session, const void *const *inputs, void *const *outputs, subbyte_hook hook,
                            void *user) {
  (void)inputs;
  (void)outputs;
  ++session->runs;
  pass_time();
  if (hook != NULL) hook(user, 0, 1000 + 10 * (uint64_t)session->runs);
  if (hook != NULL) hook(user, 1, 7);
  return SUBBYTE_OK;
}

static void tick(void *user) {
  subbyte_measure_options *options = (subbyte_measure_options *)user;
  subbyte_session *session = (subbyte_session *)options[1].user;
  if (++session->ticks != session->last_tick) options->go_on = 1;
}

static int measure(char **arguments) {
  subbyte_session session = {0, 0, 0, 0};
  subbyte_measure_options options[2] = {{0}, {0}};
  char *json = NULL;
  int32_t status;
  options->what = atoi(arguments[0]);
  options->iterations = atol(arguments[1]);
  options->seconds = atof(arguments[2]);
  options->warmup = atol(arguments[3]);
  session.last_tick = atoi(arguments[4]);
  options->tick = tick;
  options->user = options;
  options[1].user = &session;
  powercap = "/nowhere";
  status = subbyte_measure(&session, NULL, NULL, options, &json);
  printf("{\"status\": %d, \"resets\": %d, \"runs\": %d, \"ticks\": %d, \"found\": %s}\n", (int)status, session.resets,
         session.runs, session.ticks, json ? json : "null");
  subbyte_free(json);
  return 0;
}

static int steady(int count, char **arguments) {
  static subbyte_warnings warnings;
  double *samples = (double *)bench_allocate(2 * sizeof(double) * (size_t)count);
  char later[512], stat[512];
  subbyte_json j = {0};
  subbyte_measurement found;
  subbyte_watch watch;
  const char *root = arguments[0];
  int i;
  memset(&found, 0, sizeof found);
  subbyte_watch_start(&watch, root);
  now_ns += 1000000000;
  preempted = atol(arguments[1]);
  snprintf(later, sizeof later, "%s/later", root);
  snprintf(stat, sizeof stat, "%s/sys/fs/cgroup/cpu.stat", root);
  (void)rename(later, stat);
  snprintf(later, sizeof later, "%s/later_stat", root);
  snprintf(stat, sizeof stat, "%s/proc/stat", root);
  (void)rename(later, stat);
  count -= 2;
  for (i = 0; i < count; ++i) samples[i] = strtod(arguments[i + 2], NULL);
  subbyte_latency_of(&found.latency, samples, count, samples + count);
  found.has_latency = 1;
  subbyte_unsteadiness(&warnings, samples, count, &found.latency, samples + count, &watch);
  subbyte_json_open(&j, NULL, '{');
  subbyte_latency_json(&j, &found);
  subbyte_warnings_json(&j, &warnings);
  subbyte_json_close(&j, '}');
  free(samples);
  return printed(&j);
}

static int strings(char **texts, int numbers) {
  subbyte_json text = {0}, *j = &text;
  subbyte_json_open(j, NULL, '[');
  for (; *texts; ++texts) {
    if (numbers)
      subbyte_json_real(j, NULL, strtod(*texts, NULL));
    else
      subbyte_json_text(j, NULL, *texts);
  }
  subbyte_json_close(j, ']');
  return printed(j);
}

int main(int argc, char **argv) {
  static subbyte_warnings warnings;
  subbyte_json text = {0}, *j = &text;
  if (argc == 4 && strcmp(argv[1], "machine") == 0) {
    static subbyte_machine_facts m;
    subbyte_machine_read(&m, argv[2]);
    subbyte_disturbances(&warnings, &m, atoi(argv[3]));
    subbyte_json_open(j, NULL, '{');
    subbyte_machine_json(j, "machine", &m, "0.0-test");
    subbyte_warnings_json(j, &warnings);
    subbyte_json_close(j, '}');
    return printed(j);
  }
  if (argc == 4 && strcmp(argv[1], "energy") == 0) {
    static bench_energy e;
    static char missing[2048];
    int failed;
    powercap = argv[2];
    failed = bench_energy_measure(powercap, call, NULL, atof(argv[3]), &e, missing, sizeof missing);
    subbyte_json_open(j, NULL, '{');
    bench_energy_json(j, "energy_measured", failed ? NULL : &e);
    subbyte_json_text(j, "energy_measured_missing", missing);
    subbyte_json_close(j, '}');
    return printed(j);
  }
  if (argc == 3 && strcmp(argv[1], "cgroup") == 0) {
    static subbyte_group group;
    double quota, throttled;
    subbyte_group_find(&group, argv[2]);
    subbyte_group_read(&group, &quota, &throttled);
    subbyte_json_open(j, NULL, '{');
    subbyte_json_real(j, "quota", quota);
    subbyte_json_real(j, "throttled", throttled);
    subbyte_json_close(j, '}');
    return printed(j);
  }
  if (argc > 4 && strcmp(argv[1], "steady") == 0) return steady(argc - 2, argv + 2);
  if (argc == 7 && strcmp(argv[1], "measure") == 0) return measure(argv + 2);
  if (argc > 1 && strcmp(argv[1], "sha256") == 0) {
    char digits[65];
    subbyte_json_open(j, NULL, '[');
    for (argv += 2; *argv; ++argv) {
      bench_sha256(*argv, strlen(*argv), digits);
      subbyte_json_text(j, NULL, digits);
    }
    subbyte_json_close(j, ']');
    return printed(j);
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
    subbyte_json_open(j, NULL, '[');
    subbyte_json_text(j, NULL, digits);
    subbyte_json_close(j, ']');
    return printed(j);
  }
  if (argc > 1 && strcmp(argv[1], "texts") == 0) return strings(argv + 2, 0);
  if (argc > 1 && strcmp(argv[1], "reals") == 0) return strings(argv + 2, 1);
  return 2;
}
