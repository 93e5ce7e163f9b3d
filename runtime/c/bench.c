/* The bench program of a bundle: measures the bundle that it is a member of, without Python. Its own code is all in it; weights
 * and golden tensors are read from the unpacked bundle beside it, or from the .subbyte file.
 *
 * Refuses a CPU that lacks what the model was compiled for, checks the golden outputs, warms up, measures whole runs, then
 * operators, energy and cold start in passes of their own. Gives what `subbyte bench` gives, under the same JSON keys; what
 * one is, see docs/benchmarking.md. Exits with 1 when it fails or an output differs from its golden value by more than the
 * bundle's tolerance, with 2 for a wrong option.
 */
#if !defined(_POSIX_C_SOURCE)
#define _POSIX_C_SOURCE 200809L
#endif

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "bench_report.h"
#include "internal.h"

static const char USAGE[] =
    "usage: bench [BUNDLE] [--iterations N] [--duration SECONDS] [--warmup N] [--threads N] [--json] [--dump FOLDER]";
static const char HELP[] =
    "Measures the bundle that this program is a member of: latency, operators, energy, cold start.\n"
    "\n"
    "  BUNDLE              the .subbyte file, or the folder into which it was unpacked [where this program is]\n"
    "  --duration SECONDS  of timing [2]\n"
    "  --iterations N      a number of runs instead\n"
    "  --warmup N          runs before, at least; with --duration also a tenth of it [20]\n"
    "  --threads N         [1]\n"
    "  --json              print everything as JSON, with the keys of `subbyte bench --json`\n"
    "  --dump FOLDER       write the outputs of the golden runs to FOLDER/output_<i>.bin\n"
    "  --help              print this\n"
    "\n"
    "Exits with 1 when it fails or an output is not the golden one, with 2 for a wrong option.";

typedef struct {
  long iterations; /* 0: until the duration is over */
  double seconds;
  long warmup;
  int32_t threads;
  int json;
  const char *dump;
  const char *bundle; /* NULL: where this program is */
} options;

void bench_fail(const char *what, const char *detail) {
  fprintf(stderr, "error: %s%s%s\n", what, detail ? ": " : "", detail ? detail : "");
  exit(1);
}

static void misused(const char *what, const char *given) {
  fprintf(stderr, "error: %s: %s\n%s\n", what, given, USAGE);
  exit(2);
}

void *bench_allocate(size_t bytes) {
  void *memory = calloc(1, bytes ? bytes : 1);
  if (memory == NULL) bench_fail("out of memory", NULL);
  return memory;
}

/* ---- options ---- */

static double number(int argc, char **argv, int i, double least, double most) {
  double value;
  if (i >= argc) misused("an option lacks its value", argv[argc - 1]);
  value = subbyte_number_in(argv[i], 1);
  if (!(value >= least && value <= most)) misused("not a number that fits here", argv[i]);
  return value;
}

static long whole(int argc, char **argv, int i, long least, long most) {
  const double value = number(argc, argv, i, (double)least, (double)most);
  if (value != floor(value)) misused("not a whole number", argv[i]);
  return (long)value;
}

static options parse(int argc, char **argv) {
  options o = {0, 2.0, 20, 1, 0, NULL, NULL};
  int i;
  for (i = 1; i < argc; ++i) {
    if (strcmp(argv[i], "--iterations") == 0) {
      o.iterations = whole(argc, argv, ++i, 1, SUBBYTE_MOST_SAMPLES);
    } else if (strcmp(argv[i], "--duration") == 0) {
      o.seconds = number(argc, argv, ++i, 0, 3600);
    } else if (strcmp(argv[i], "--warmup") == 0) {
      o.warmup = whole(argc, argv, ++i, 0, SUBBYTE_MOST_SAMPLES);
    } else if (strcmp(argv[i], "--threads") == 0) {
      o.threads = (int32_t)whole(argc, argv, ++i, 1, SUBBYTE_MAX_THREADS);
    } else if (strcmp(argv[i], "--dump") == 0) {
      if (++i >= argc) misused("an option lacks its value", argv[argc - 1]);
      o.dump = argv[i];
    } else if (strcmp(argv[i], "--json") == 0) {
      o.json = 1;
    } else if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0) {
      printf("%s\n\n%s\n", USAGE, HELP);
      exit(0);
    } else if (argv[i][0] == '-' || o.bundle != NULL) {
      misused(argv[i][0] == '-' ? "unknown option" : "more than one bundle", argv[i]);
    } else {
      o.bundle = argv[i];
    }
  }
  return o;
}

/* ---- passes ---- */

typedef struct {
  subbyte_session *session;
  void **inputs; /* of a model with state: those of all golden runs, of which the first is measured */
  void **outputs;
} runner;

void bench_check(subbyte_session *session, int32_t status) {
  char text[512];
  if (status == SUBBYTE_OK) return;
  if (status == SUBBYTE_NO_MEMORY) bench_fail("out of memory", NULL);
  (void)subbyte_failure_text(subbyte_get_model(), subbyte_session_failure(session), text, sizeof text);
  bench_fail("the model failed", text);
}

static void run_once(void *user) {
  const runner *r = (const runner *)user;
  bench_check(r->session, subbyte_session_run(r->session, (const void *const *)r->inputs, r->outputs, NULL, NULL));
}

/* Before an instruction of the model runs: the system would end the program with SIGILL. */
static void check_features(const subbyte_model *model) {
  char names[512], listed[1024] = "", text[1400], *name;
  if (subbyte_missing_features(model, names, sizeof names) == 0) return;
  for (name = strtok(names, " "); name != NULL; name = strtok(NULL, " ")) {
    if (*listed) strcat(listed, ", ");
    strcat(listed, name);
  }
  snprintf(text, sizeof text,
           "%s, which target '%.64s' has. Compile the model again for this machine: `subbyte compile model.onnx --target "
           "host` on it, or with a target that needs fewer features (`subbyte targets`).",
           listed, model->target);
  bench_fail("this CPU lacks", text);
}

/* The folder that `path` is in. */
static void folder_of(const char *path, char *folder, size_t bytes) {
  const char *last = strrchr(path, '/');
  snprintf(folder, bytes, "%.*s", last ? (int)(last - path) : 1, last ? path : ".");
}

static void measure(const options *o, const runner *r, bench_result *result) {
  subbyte_measure_options measured = {0};
  int i;
  measured.iterations = o->iterations;
  measured.seconds = o->seconds;
  measured.warmup = o->warmup;
  measured.what = SUBBYTE_MEASURE_LATENCY | SUBBYTE_MEASURE_OPERATORS;
  bench_check(r->session, subbyte_measure_session(r->session, (const void *const *)r->inputs, r->outputs, &measured,
                                                  &result->measured));
  if (!result->golden.ok)
    subbyte_warn(&result->warnings, "the outputs are not the golden ones: these are the figures of a model that is wrong");
  for (i = 0; i < result->measured.warnings.count; ++i) subbyte_warn(&result->warnings, "%s", result->measured.warnings.text[i]);
  subbyte_disturbances(&result->warnings, result->machine, o->threads);
  if (!bench_may_pin())
    subbyte_warn(&result->warnings,
                 "the system does not let this process choose its cores (sched_setaffinity): threads move between them; "
                 "allow it in the container's seccomp profile");
  result->has_energy =
      bench_energy_measure(BENCH_POWERCAP, run_once, (void *)(uintptr_t)r,
                           o->iterations ? result->measured.latency.mean * (double)o->iterations / 1e3 : o->seconds,
                           &result->energy, result->energy_missing, sizeof result->energy_missing) == 0;
}

int main(int argc, char **argv) {
  const uint64_t began = subbyte_now();
  const subbyte_model *model = subbyte_get_model();
  static bench_result result; /* large */
  static subbyte_machine_facts machine;
  options o;
  runner r;
  bench_bundle bundle;
  char beside[SUBBYTE_PATH];
  int32_t status;

  if (argc == 5 && strcmp(argv[1], BENCH_CHILD) == 0) { /* from bench_start.c; its clock began before this process */
    const unsigned long long from = strtoull(argv[2], NULL, 10);
    return from <= began ? bench_start_child(from, argv[4], atoi(argv[3])) : 1;
  }
  o = parse(argc, argv);
  check_features(model);
  subbyte_machine_read(&machine, ""); /* before our own load shows */
  result.machine = &machine;
  result.threads = o.threads;
  if (readlink("/proc/self/exe", result.path, sizeof result.path - 1) < 0)
    snprintf(result.path, sizeof result.path, "%s", argv[0]);
  folder_of(result.path, beside, sizeof beside);
  bench_open(&bundle, o.bundle ? o.bundle : beside);
  result.bundle_bytes = bundle.file < 0 ? SUBBYTE_UNKNOWN : (double)bundle.bytes;
  result.pinned_count = bench_pin(o.threads, result.pinned);
  status = subbyte_session_create(model, bench_member(&bundle, subbyte_bench_data.weights), model->weights_bytes, o.threads,
                                  &r.session);
  if (status != SUBBYTE_OK) bench_fail("no session", subbyte_status_text(status));
  r.inputs = bench_tensors(model->input_count, model->inputs, subbyte_bench_data.runs, &bundle, subbyte_bench_data.inputs);
  r.outputs = bench_tensors(model->output_count, model->outputs, 1, &bundle, NULL);

  bench_golden(r.session, &bundle, r.inputs, o.dump, &result.golden);
  measure(&o, &r, &result);
  subbyte_session_destroy(r.session);
  bench_unpin();
  bench_start_measure(&result.start, bundle.path, o.threads);

  if (o.json)
    bench_print_json(model, &result);
  else
    bench_print_table(model, &result);
  return result.golden.ok ? 0 : 1;
}
