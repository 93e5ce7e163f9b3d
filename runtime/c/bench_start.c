/* Cold start: from before a fresh process of this program is made to its first result, and the memory it then holds. */
#if !defined(_POSIX_C_SOURCE)
#define _POSIX_C_SOURCE 200809L
#endif

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "bench.h"
#include "internal.h"

enum { RUNS = 3, LIMIT_S = 120 };

int bench_start_child(uint64_t began, const char *path, int threads) {
  const subbyte_model *model = subbyte_get_model();
  void **inputs = (void **)bench_allocate(sizeof(void *) * (size_t)model->input_count);
  void **outputs = (void **)bench_allocate(sizeof(void *) * (size_t)model->output_count);
  const uint64_t entered = subbyte_now();
  uint64_t loaded, prepared, finished;
  unsigned long long resident = 0, peak = 0;
  subbyte_session *session;
  char line[256];
  bench_bundle bundle;
  FILE *status;
  int32_t i;
  bench_open(&bundle, path);
  if (subbyte_session_create(model, bench_member(&bundle, subbyte_bench_data.weights), model->weights_bytes, threads,
                             &session) != SUBBYTE_OK)
    return 1;
  loaded = subbyte_now();
  for (i = 0; i < model->input_count; ++i) inputs[i] = bench_allocate(model->inputs[i].nbytes);
  for (i = 0; i < model->output_count; ++i) outputs[i] = bench_allocate(model->outputs[i].nbytes);
  prepared = subbyte_now();
  if (subbyte_session_run(session, (const void *const *)inputs, outputs, NULL, NULL) != SUBBYTE_OK) return 1;
  finished = subbyte_now();
  status = fopen("/proc/self/status", "r");
  while (status != NULL && fgets(line, sizeof line, status) != NULL) {
    (void)sscanf(line, "VmRSS: %llu", &resident);
    (void)sscanf(line, "VmHWM: %llu", &peak);
  }
  if (status != NULL) fclose(status);
  printf("%llu %llu %llu %llu %llu\n", (unsigned long long)(loaded - entered), (unsigned long long)(finished - prepared),
         (unsigned long long)(finished - began), 1024 * resident, 1024 * peak);
  return 0; /* what was allocated goes with the process */
}

/* One fresh process: ns to load, of the first result, of all; bytes resident and at most. -1: it could not be started. */
static int once(const char *bundle, int threads, double *found) {
  char count[16], began[32];
  int ends[2], status;
  FILE *said;
  pid_t child;
  snprintf(count, sizeof count, "%d", threads);
  snprintf(began, sizeof began, "%llu", (unsigned long long)subbyte_now()); /* the clock is that of all processes */
  if (pipe(ends) != 0) return -1;
  fflush(stdout);
  child = fork();
  if (child == 0) {
    (void)dup2(ends[1], STDOUT_FILENO);
    (void)close(ends[0]);
    (void)close(ends[1]);
    (void)alarm(LIMIT_S);
    execl("/proc/self/exe", "bench", BENCH_CHILD, began, count, bundle, (char *)NULL);
    _exit(127);
  }
  (void)close(ends[1]);
  if (child < 0) {
    (void)close(ends[0]);
    return -1;
  }
  said = fdopen(ends[0], "r");
  if (said == NULL || fscanf(said, "%lf %lf %lf %lf %lf", &found[0], &found[1], &found[2], &found[3], &found[4]) != 5)
    found = NULL;
  if (said != NULL) fclose(said);
  if (waitpid(child, &status, 0) != child || !WIFEXITED(status) || WEXITSTATUS(status) != 0) return -1;
  return found != NULL ? 0 : -1;
}

void bench_start_measure(bench_start *s, const char *bundle, int threads) {
  double rows[5][RUNS], found[5];
  int run, i;
  s->runs = 0;
  for (run = 0; run < RUNS; ++run) {
    if (once(bundle, threads, found) != 0) return;
    for (i = 0; i < 5; ++i) rows[i][run] = found[i];
  }
  for (i = 0; i < 5; ++i) subbyte_sort(rows[i], RUNS);
  s->load_ms = rows[0][RUNS / 2] / 1e6;
  s->first_result_ms = rows[1][RUNS / 2] / 1e6;
  s->total_ms = rows[2][RUNS / 2] / 1e6;
  s->resident_bytes = rows[3][RUNS - 1];
  s->peak_bytes = rows[4][RUNS - 1];
  s->runs = RUNS;
}

void bench_start_json(subbyte_json *j, const char *key, const bench_start *s) {
  if (s->runs == 0) {
    subbyte_json_null(j, key);
    return;
  }
  subbyte_json_open(j, key, '{');
  subbyte_json_null(j, "python_ms"); /* there is none to start, and nothing to import */
  subbyte_json_null(j, "import_ms");
  subbyte_json_real(j, "load_ms", s->load_ms);
  subbyte_json_real(j, "first_result_ms", s->first_result_ms);
  subbyte_json_real(j, "total_ms", s->total_ms);
  if (s->resident_bytes > 0)
    subbyte_json_whole(j, "resident_bytes", (long long)s->resident_bytes);
  else
    subbyte_json_null(j, "resident_bytes");
  if (s->peak_bytes > 0)
    subbyte_json_whole(j, "peak_bytes", (long long)s->peak_bytes);
  else
    subbyte_json_null(j, "peak_bytes");
  subbyte_json_whole(j, "runs", s->runs);
  subbyte_json_close(j, '}');
}
