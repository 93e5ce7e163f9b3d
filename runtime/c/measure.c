/* Measures a session: warms it up, times whole runs, then single operators in a pass of its own. docs/benchmarking.md says what
 * each figure is. */
#include "measure.h"

#include <stdlib.h>

#include "internal.h"

enum { LEAST_PROFILE_RUNS = 3, MOST_PROFILE_RUNS = 50, TICK_NS = 100000000 };
static const double PROFILE_SECONDS = 1.0; /* at most */
static const double WARMUP_SHARE = 0.1;    /* of the measured seconds, at least, before them */

typedef struct {
  subbyte_session *session;
  const void *const *inputs;
  void *const *outputs;
  subbyte_measure_options *options;
  uint64_t next_tick;
} runner;

static int32_t run(const runner *r, subbyte_hook hook, void *user) {
  return subbyte_session_run(r->session, r->inputs, r->outputs, hook, user);
}

static int32_t tick(runner *r, uint64_t now) {
  if (r->options->tick == NULL || now < r->next_tick) return SUBBYTE_OK;
  r->next_tick = now + TICK_NS;
  r->options->go_on = 0;
  r->options->tick(r->options->user);
  return r->options->go_on ? SUBBYTE_OK : SUBBYTE_STOPPED;
}

/* Runs at least `calls` times and for at least `seconds`. */
static int32_t repeat(runner *r, int64_t calls, double seconds, subbyte_window *window) {
  int32_t status = SUBBYTE_OK;
  window->start_ns = window->end_ns = subbyte_now();
  while (window->calls < calls || (double)(window->end_ns - window->start_ns) / 1e9 < seconds) {
    status = tick(r, window->end_ns);
    if (status == SUBBYTE_OK) status = run(r, NULL, NULL);
    if (status != SUBBYTE_OK) break;
    window->end_ns = subbyte_now();
    ++window->calls;
  }
  return status;
}

/* Milliseconds of each run, until `room` is full or, without a number of iterations, the seconds are over. */
static int32_t time_runs(runner *r, int64_t room, double *samples, subbyte_window *window) {
  int32_t status = SUBBYTE_OK;
  window->start_ns = window->end_ns = subbyte_now();
  while (window->calls < room) {
    uint64_t before;
    status = tick(r, window->end_ns);
    if (status != SUBBYTE_OK) break;
    before = subbyte_now();
    status = run(r, NULL, NULL);
    if (status != SUBBYTE_OK) break;
    window->end_ns = subbyte_now();
    samples[window->calls++] = (double)(window->end_ns - before) / 1e6;
    if (!r->options->iterations && (double)(window->end_ns - window->start_ns) / 1e9 >= r->options->seconds) break;
  }
  return status;
}

static int32_t measure_latency(runner *r, subbyte_measurement *found) {
  const int64_t room = r->options->iterations ? r->options->iterations : SUBBYTE_MOST_SAMPLES;
  double *samples = (double *)malloc(2 * sizeof(double) * (size_t)room), *scratch = samples + room;
  subbyte_watch watch;
  int32_t status = SUBBYTE_NO_MEMORY;
  if (samples == NULL) return status;
  subbyte_watch_start(&watch, "");
  status = time_runs(r, room, samples, &found->timed);
  if (status == SUBBYTE_OK) {
    subbyte_latency_of(&found->latency, samples, (long)found->timed.calls, scratch);
    subbyte_unsteadiness(&found->warnings, samples, (long)found->timed.calls, &found->latency, scratch, &watch);
    found->has_latency = 1;
  }
  free(samples);
  return status;
}

typedef struct {
  double *ns; /* [operators][runs] */
  int64_t runs, run;
} profile;

static void keep(void *user, int32_t index, uint64_t ns) {
  const profile *p = (const profile *)user;
  p->ns[index * p->runs + p->run] = (double)ns;
}

static int32_t measure_operators(runner *r, int64_t runs, subbyte_measurement *found) {
  const size_t count = (size_t)subbyte_session_model(r->session)->operator_count;
  profile p;
  int32_t status = SUBBYTE_OK;
  size_t i;
  p.runs = runs;
  p.ns = (double *)malloc(sizeof(double) * (size_t)runs * (count + 1)); /* never 0 bytes */
  found->operators = (subbyte_operator_time *)calloc(count + 1, sizeof *found->operators);
  if (p.ns == NULL || found->operators == NULL) status = SUBBYTE_NO_MEMORY;
  for (p.run = 0; status == SUBBYTE_OK && p.run < runs; ++p.run) {
    status = tick(r, subbyte_now());
    if (status == SUBBYTE_OK) status = run(r, keep, &p);
  }
  for (i = 0; status == SUBBYTE_OK && i < count; ++i) {
    double *ns = p.ns + i * (size_t)runs;
    subbyte_sort(ns, (long)runs);
    found->operators[i].ns = (long long)ns[0];
    found->operators[i].ns_median = (long long)subbyte_percentile(ns, (long)runs, 50);
  }
  free(p.ns);
  return status;
}

/* As many runs as fit into a second. */
static int64_t profile_runs(double ms_a_run) {
  const double fit = 1e3 * PROFILE_SECONDS / (ms_a_run > 1e-6 ? ms_a_run : 1e-6);
  return fit > MOST_PROFILE_RUNS ? MOST_PROFILE_RUNS : fit < LEAST_PROFILE_RUNS ? LEAST_PROFILE_RUNS : (int64_t)fit;
}

static int is_possible(const subbyte_measure_options *o) {
  return o != NULL && o->seconds >= 0 && o->seconds <= 1e6 && o->warmup >= 0 && o->iterations >= 0 &&
         o->iterations <= SUBBYTE_MOST_SAMPLES && (o->what != SUBBYTE_MEASURE_OPERATORS || o->iterations > 0);
}

int32_t subbyte_measure_session(subbyte_session *session, const void *const *inputs, void *const *outputs,
                                subbyte_measure_options *options, subbyte_measurement *found) {
  const int latency = options != NULL && options->what & SUBBYTE_MEASURE_LATENCY;
  const int operators = options != NULL && options->what & SUBBYTE_MEASURE_OPERATORS;
  runner r;
  int32_t status;
  if (session == NULL || !is_possible(options)) return SUBBYTE_BAD_ARGUMENT;
  r.session = session;
  r.inputs = inputs;
  r.outputs = outputs;
  r.options = options;
  r.next_tick = 0;
  status = subbyte_session_reset(session);
  if (status == SUBBYTE_OK)
    status = repeat(&r, options->warmup, latency && !options->iterations ? WARMUP_SHARE * options->seconds : 0.0, &found->warmup);
  if (status == SUBBYTE_OK && latency) status = measure_latency(&r, found);
  if (status == SUBBYTE_OK && operators)
    status = measure_operators(&r, latency ? profile_runs(found->latency.p50) : options->iterations, found);
  if (status == SUBBYTE_OK && !latency && !operators)
    status = repeat(&r, options->iterations ? options->iterations : 1, options->iterations ? 0.0 : options->seconds, &found->timed);
  return status;
}

void subbyte_latency_json(subbyte_json *j, const subbyte_measurement *found) {
  const subbyte_latency *latency = &found->latency;
  subbyte_json_whole(j, "warmup", (long long)found->warmup.calls);
  subbyte_json_whole(j, "iterations", (long long)found->timed.calls);
  if (!found->has_latency) return;
  subbyte_json_open(j, "latency_ms", '{');
  subbyte_json_real(j, "min", latency->min);
  subbyte_json_real(j, "mean", latency->mean);
  subbyte_json_real(j, "p50", latency->p50);
  subbyte_json_real(j, "p90", latency->p90);
  subbyte_json_real(j, "p99", latency->p99);
  subbyte_json_real(j, "std", latency->std);
  subbyte_json_close(j, '}');
  subbyte_json_real(j, "throughput_per_s", 1e3 / latency->mean);
}

static void write_json(subbyte_json *j, const subbyte_measurement *found, const subbyte_model *model) {
  int32_t i;
  subbyte_json_open(j, NULL, '{');
  subbyte_latency_json(j, found);
  subbyte_json_whole(j, "start_ns", (long long)found->timed.start_ns);
  subbyte_json_whole(j, "end_ns", (long long)found->timed.end_ns);
  subbyte_warnings_json(j, &found->warnings);
  subbyte_json_open(j, "operators", '[');
  for (i = 0; found->operators != NULL && i < model->operator_count; ++i) {
    subbyte_json_open(j, NULL, '{');
    subbyte_json_text(j, "name", model->operators[i].name);
    subbyte_json_whole(j, "ns", found->operators[i].ns);
    subbyte_json_whole(j, "ns_median", found->operators[i].ns_median);
    subbyte_json_close(j, '}');
  }
  subbyte_json_close(j, ']');
  subbyte_json_close(j, '}');
}

int32_t subbyte_measure(subbyte_session *session, const void *const *inputs, void *const *outputs,
                        subbyte_measure_options *options, char **json) {
  subbyte_measurement *found = (subbyte_measurement *)calloc(1, sizeof *found);
  subbyte_json j = {0};
  int32_t status = json == NULL ? SUBBYTE_BAD_ARGUMENT : found == NULL ? SUBBYTE_NO_MEMORY : SUBBYTE_OK;
  if (json != NULL) *json = NULL;
  if (status == SUBBYTE_OK) status = subbyte_measure_session(session, inputs, outputs, options, found);
  if (status == SUBBYTE_OK) {
    write_json(&j, found, subbyte_session_model(session));
    if (j.failed) {
      free(j.text);
      status = SUBBYTE_NO_MEMORY;
    } else {
      *json = j.text;
    }
  }
  if (found != NULL) free(found->operators);
  free(found);
  return status;
}

void subbyte_free(void *memory) { free(memory); }
