/* The bench program of a bundle: weights and golden inputs are linked in, so a device needs this one file.
 *
 *   bench [--iterations N] [--duration SECONDS] [--warmup N] [--threads N] [--json] [--dump FOLDER]
 *
 * Checks the golden outputs, warms up, measures whole runs, then profiles operators in a pass of its own. Exits with 1 when
 * an output differs from its golden value by more than the bundle's tolerance, with 2 for a wrong option.
 */
#if !defined(_WIN32) && !defined(_POSIX_C_SOURCE)
#define _POSIX_C_SOURCE 200809L
#endif

#include "bench.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "internal.h"

enum { PROFILE_RUNS = 20, MOST_SAMPLES = 1000000 };

typedef struct {
  long iterations; /* 0: until the duration is over */
  double seconds;
  long warmup;
  int32_t threads;
  int json;
  const char *dump;
} options;

typedef struct {
  uint64_t *least; /* [operators], ns: the fastest of the profiled runs */
} profile;

static void fail(const char *what, const char *detail) {
  fprintf(stderr, "error: %s%s%s\n", what, detail ? ": " : "", detail ? detail : "");
  exit(2);
}

static double number(int argc, char **argv, int i, double least) {
  char *rest;
  double value;
  if (i >= argc) fail("an option lacks its value", argv[argc - 1]);
  value = strtod(argv[i], &rest);
  if (*rest != '\0' || !(value >= least)) fail("not a number that fits here", argv[i]);
  return value;
}

static options parse(int argc, char **argv) {
  options o = {0, 2.0, 10, 1, 0, NULL};
  int i;
  for (i = 1; i < argc; ++i) {
    if (strcmp(argv[i], "--iterations") == 0) {
      o.iterations = (long)number(argc, argv, ++i, 1);
    } else if (strcmp(argv[i], "--duration") == 0) {
      o.seconds = number(argc, argv, ++i, 0);
    } else if (strcmp(argv[i], "--warmup") == 0) {
      o.warmup = (long)number(argc, argv, ++i, 0);
    } else if (strcmp(argv[i], "--threads") == 0) {
      o.threads = (int32_t)number(argc, argv, ++i, 1);
    } else if (strcmp(argv[i], "--dump") == 0 && i + 1 < argc) {
      o.dump = argv[++i];
    } else if (strcmp(argv[i], "--json") == 0) {
      o.json = 1;
    } else {
      fail("usage: bench [--iterations N] [--duration SECONDS] [--warmup N] [--threads N] [--json] [--dump FOLDER]", argv[i]);
    }
  }
  if (o.iterations > MOST_SAMPLES) fail("too many iterations", NULL);
  return o;
}

/* One output against its golden value. */
typedef struct {
  unsigned long differing; /* elements that are not the same bits */
  double largest;          /* difference of an element; infinite where it cannot be measured */
  int ok;                  /* equal, or float within the tolerance */
} comparison;

static size_t element_bytes(int32_t dtype) {
  switch (dtype) {
    case SUBBYTE_UINT8:
    case SUBBYTE_INT8: return 1;
    case SUBBYTE_INT64: return 8;
    default: return 4;
  }
}

static comparison compare(const subbyte_tensor *tensor, const void *got, const void *want) {
  const size_t size = element_bytes(tensor->dtype);
  comparison c = {0, 0.0, 1};
  size_t i;
  for (i = 0; i < tensor->nbytes; i += size) {
    double error = HUGE_VAL, allowed = 0.0;
    if (memcmp((const char *)got + i, (const char *)want + i, size) == 0) continue;
    ++c.differing;
    if (tensor->dtype == SUBBYTE_FLOAT32) {
      const double w = (double)((const float *)want)[i / size];
      error = fabs((double)((const float *)got)[i / size] - w);
      allowed = subbyte_bench_data.absolute + subbyte_bench_data.relative * fabs(w);
      if (error != error) error = HUGE_VAL;
    }
    if (error > c.largest) c.largest = error;
    if (allowed == 0.0 || !(error <= allowed)) c.ok = 0;
  }
  return c;
}

static void dump_outputs(const subbyte_model *model, void *const *outputs, const char *folder) {
  int32_t i;
  for (i = 0; i < model->output_count; ++i) {
    char path[512];
    FILE *file;
    snprintf(path, sizeof path, "%s/output_%d.bin", folder, (int)i);
    file = fopen(path, "wb");
    if (file == NULL || fwrite(outputs[i], 1, model->outputs[i].nbytes, file) != model->outputs[i].nbytes)
      fail("cannot write", path);
    fclose(file);
  }
}

static void keep_least(void *user, int32_t index, uint64_t ns) {
  profile *p = (profile *)user;
  if (p->least[index] == 0 || ns < p->least[index]) p->least[index] = ns;
}

static int by_value(const void *a, const void *b) {
  const double left = *(const double *)a, right = *(const double *)b;
  return left < right ? -1 : left > right;
}

/* Linear between the two nearest samples, as numpy.percentile does. */
static double percentile(const double *sorted, long count, double percent) {
  const double place = percent / 100.0 * (double)(count - 1);
  const long below = (long)place;
  if (below + 1 >= count) return sorted[count - 1];
  return sorted[below] + (sorted[below + 1] - sorted[below]) * (place - (double)below);
}

static void print_string(const char *text) {
  putchar('"');
  for (; *text; ++text) {
    if (*text == '"' || *text == '\\')
      printf("\\%c", *text);
    else if ((unsigned char)*text < 32)
      printf("\\u%04x", (unsigned)(unsigned char)*text);
    else
      putchar(*text);
  }
  putchar('"');
}

static void print_json(const subbyte_model *model, const options *o, const double *sorted, long count, double mean,
                       const profile *p, const comparison *compared, int golden_ok) {
  double squares = 0.0;
  long k;
  int32_t i;
  printf("{\"name\": ");
  print_string(model->name);
  printf(", \"target\": ");
  print_string(model->target);
  printf(", \"threads\": %d, \"iterations\": %ld, \"warmup\": %ld,\n", (int)o->threads, count, o->warmup);
  for (k = 0; k < count; ++k) squares += (sorted[k] - mean) * (sorted[k] - mean);
  printf(" \"latency_ms\": {\"min\": %.6f, \"mean\": %.6f, \"p50\": %.6f, \"p90\": %.6f, \"p99\": %.6f, \"std\": %.6f},\n",
         sorted[0], mean, percentile(sorted, count, 50), percentile(sorted, count, 90), percentile(sorted, count, 99),
         sqrt(squares / (double)count));
  printf(" \"golden_ok\": ");
  if (subbyte_bench_data.has_golden) {
    unsigned long differing = 0;
    double largest = 0.0;
    for (i = 0; i < model->output_count; ++i) {
      differing += compared[i].differing;
      if (compared[i].largest > largest) largest = compared[i].largest;
    }
    printf("%s, \"golden_exact\": %s, \"golden_differing\": %lu, \"golden_max_error\": ", golden_ok ? "true" : "false",
           differing ? "false" : "true", differing);
    if (largest < HUGE_VAL)
      printf("%.9g,\n", largest);
    else
      printf("null,\n");
  } else {
    printf("null,\n");
  }
  printf(" \"operators\": [");
  for (i = 0; i < model->operator_count; ++i) {
    printf("%s\n  {\"name\": ", i ? "," : "");
    print_string(model->operators[i].name);
    printf(", \"ns\": %llu}", (unsigned long long)p->least[i]);
  }
  printf("\n ]}\n");
}

static void print_table(const subbyte_model *model, const options *o, const double *sorted, long count, double mean,
                        const profile *p, int golden_ok) {
  double total = 0.0;
  int32_t i;
  printf("%s for %s, %d thread%s, %ld runs after %ld to warm up\n", model->name, model->target, (int)o->threads,
         o->threads == 1 ? "" : "s", count, o->warmup);
  printf("latency ms: min %.4f  mean %.4f  p50 %.4f  p90 %.4f  p99 %.4f\n", sorted[0], mean, percentile(sorted, count, 50),
         percentile(sorted, count, 90), percentile(sorted, count, 99));
  printf("golden outputs: %s\n", !subbyte_bench_data.has_golden ? "none" : golden_ok ? "equal" : "DIFFERENT");
  for (i = 0; i < model->operator_count; ++i) total += (double)p->least[i];
  for (i = 0; i < model->operator_count; ++i)
    printf("%10.1f us %5.1f%%  %s\n", (double)p->least[i] / 1e3, total > 0 ? 100.0 * (double)p->least[i] / total : 0.0,
           model->operators[i].name);
}

static void *allocate(size_t bytes) {
  void *memory = calloc(1, bytes ? bytes : 1);
  if (memory == NULL) fail("out of memory", NULL);
  return memory;
}

int main(int argc, char **argv) {
  const subbyte_model *model = subbyte_get_model();
  const options o = parse(argc, argv);
  void **outputs = (void **)allocate(sizeof(void *) * (size_t)model->output_count);
  comparison *compared = (comparison *)allocate(sizeof(comparison) * (size_t)model->output_count);
  double *samples;
  double mean = 0.0;
  profile p;
  subbyte_session *session;
  uint64_t start;
  long count = 0, room, i;
  int32_t status;
  int golden_ok = 1;

  status = subbyte_session_create(model, subbyte_bench_data.weights, model->weights_bytes, o.threads, &session);
  if (status != SUBBYTE_OK) fail("no session", subbyte_status_text(status));
  for (i = 0; i < model->output_count; ++i) outputs[i] = allocate(model->outputs[i].nbytes);
#define RUN(hook, user)                                                                              \
  do {                                                                                               \
    status = subbyte_session_run(session, subbyte_bench_data.inputs, outputs, hook, user);           \
    if (status != SUBBYTE_OK) fail("the model failed", subbyte_status_text(status));                 \
  } while (0)

  RUN(NULL, NULL);
  for (i = 0; subbyte_bench_data.has_golden && i < model->output_count; ++i) {
    compared[i] = compare(&model->outputs[i], outputs[i], subbyte_bench_data.outputs[i]);
    if (!compared[i].ok) golden_ok = 0;
  }
  if (o.dump) dump_outputs(model, outputs, o.dump);

  for (i = 0; i < o.warmup; ++i) RUN(NULL, NULL);
  room = o.iterations ? o.iterations : MOST_SAMPLES;
  samples = (double *)allocate(sizeof(double) * (size_t)room);
  start = subbyte_now();
  while (count < room) {
    const uint64_t before = subbyte_now();
    uint64_t after;
    RUN(NULL, NULL);
    after = subbyte_now();
    samples[count] = (double)(after - before) / 1e6;
    mean += samples[count++];
    if (!o.iterations && (double)(after - start) / 1e9 >= o.seconds) break;
  }
  mean /= (double)count;

  p.least = (uint64_t *)allocate(sizeof(uint64_t) * (size_t)model->operator_count);
  for (i = 0; i < PROFILE_RUNS; ++i) RUN(keep_least, &p);

  qsort(samples, (size_t)count, sizeof(double), by_value);
  if (o.json)
    print_json(model, &o, samples, count, mean, &p, compared, golden_ok);
  else
    print_table(model, &o, samples, count, mean, &p, golden_ok);

  subbyte_session_destroy(session);
  for (i = 0; i < model->output_count; ++i) free(outputs[i]);
  free(outputs);
  free(compared);
  free(samples);
  free(p.least);
  return golden_ok ? 0 : 1;
}
