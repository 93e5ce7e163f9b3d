/* Checks of the C core on the tiny model and of the thread pool by itself; prints the first failure and exits with 1. */
#define _DEFAULT_SOURCE /* usleep */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core_test.h"
#include "internal.h"

enum { ROWS = 4, COLUMNS = 16, LONGEST = 1000, MANY = 200003 }; /* MANY: more tiles than a share can number */

typedef struct {
  int32_t seen[4];
  int32_t calls;
} hook_record;

static void record(void *user, int32_t index, uint64_t ns) {
  hook_record *r = (hook_record *)user;
  CHECK(ns < 60u * 1000000000u);
  r->seen[r->calls++] = index;
}

static void fill(float *weights, float *x) {
  int i;
  for (i = 0; i < COLUMNS; ++i) weights[i] = (float)(i % 5) - 2.0f;
  for (i = 0; i < ROWS * COLUMNS; ++i) x[i] = (float)i;
}

static void check_result(const float *weights, const float *x, const float *y, const float *z) {
  int row, column;
  for (row = 0; row < ROWS; ++row) {
    float sum = 0.0f;
    for (column = 0; column < COLUMNS; ++column) {
      const float want = x[row * COLUMNS + column] * weights[column];
      CHECK(y[row * COLUMNS + column] == want);
      sum += want;
    }
    CHECK(z[row] == sum);
  }
}

static const char *failure_of(const subbyte_session *session) {
  static char text[256];
  const size_t length = subbyte_failure_text(subbyte_get_model(), subbyte_session_failure(session), text, sizeof text);
  CHECK(length == strlen(text));
  return text;
}

static void test_sessions(void) {
  const subbyte_model *model = subbyte_get_model();
  void *block;
  float *weights = (float *)aligned(64, &block);
  float x[ROWS * COLUMNS], y[ROWS * COLUMNS], z[ROWS];
  const void *inputs[1];
  void *outputs[2];
  int32_t threads;
  subbyte_session *session;
  fill(weights, x);
  inputs[0] = x;
  outputs[0] = y;
  outputs[1] = z;
  for (threads = 1; threads <= 5; ++threads) {
    int repeat;
    CHECK(subbyte_session_create(model, weights, 64, threads, &session) == SUBBYTE_OK);
    CHECK(((uintptr_t)subbyte_session_arena(session) & (SUBBYTE_ALIGNMENT - 1)) == 0);
    for (repeat = 0; repeat < 50; ++repeat) {
      hook_record r = {{0}, 0};
      memset(y, 0, sizeof y);
      memset(z, 0, sizeof z);
      CHECK(subbyte_session_run(session, inputs, outputs, record, &r) == SUBBYTE_OK);
      CHECK(r.calls == 2 && r.seen[0] == 0 && r.seen[1] == 1);
      check_result(weights, x, y, z);
    }
    x[3] = 1e38f; /* the second kernel refuses the sum */
    weights[3] = 1.0f;
    CHECK(subbyte_session_run(session, inputs, outputs, NULL, NULL) == SUBBYTE_KERNEL_FAILED);
    CHECK(strcmp(failure_of(session), "operator '/sum': a kernel failed") == 0);
    fill(weights, x);
    inputs[0] = NULL;
    CHECK(subbyte_session_run(session, inputs, outputs, NULL, NULL) == SUBBYTE_BAD_ARGUMENT);
    CHECK(strcmp(failure_of(session), subbyte_status_text(SUBBYTE_BAD_ARGUMENT)) == 0);
    inputs[0] = (const char *)x + 1;
    CHECK(subbyte_session_run(session, inputs, outputs, NULL, NULL) == SUBBYTE_BAD_ARGUMENT);
    inputs[0] = x;
    subbyte_session_destroy(session);
  }
  CHECK(subbyte_session_create(model, weights, 63, 1, &session) == SUBBYTE_BAD_ARGUMENT && session == NULL);
  CHECK(subbyte_session_create(model, (char *)weights + 4, 64, 1, &session) == SUBBYTE_BAD_ARGUMENT);
  CHECK(subbyte_session_create(model, weights, 64, 0, &session) == SUBBYTE_BAD_ARGUMENT);
  CHECK(subbyte_session_create(NULL, weights, 64, 1, &session) == SUBBYTE_BAD_ARGUMENT);
  {
    subbyte_model other = *model;
    other.abi = SUBBYTE_ABI + 1;
    CHECK(subbyte_session_create(&other, weights, 64, 1, &session) == SUBBYTE_BAD_ABI);
    other = *model;
    other.needs = 1u << 31; /* nothing that this core knows how to ask for */
    CHECK(subbyte_session_create(&other, weights, 64, 1, &session) == SUBBYTE_REFUSED && session == NULL);
  }
  subbyte_session_destroy(NULL);
  CHECK(strcmp(subbyte_status_text(SUBBYTE_OK), "ok") == 0);
  CHECK(strcmp(subbyte_status_text(99), "unknown status") == 0);
  free(block);
}

/* Refuses an index that is not in -10 .. 9, as the compiler's kernels do. */
static int32_t check_index(void *const *args, int32_t begin, int32_t end) {
  const int64_t *index = (const int64_t *)args[0];
  int64_t *found = (int64_t *)args[2];
  (void)begin;
  (void)end;
  *(float *)args[1] = (float)(index[1] < 0 ? index[1] + 10 : index[1]);
  if (index[1] >= -10 && index[1] < 10) return 0;
  found[0] = 1;
  found[1] = index[1];
  found[2] = -10;
  found[3] = 9;
  return SUBBYTE_BAD_INDEX;
}

/* The operator and the index are named, with and without threads; and the session runs again. */
static void test_bad_index(void) {
  static const int64_t shape[] = {2};
  static const subbyte_tensor indices = {"i", SUBBYTE_INT64, 1, shape, 16}, chosen = {"y", SUBBYTE_FLOAT32, 0, shape, 4};
  static const subbyte_argument arguments[] = {{SUBBYTE_INPUT, 0}, {SUBBYTE_OUTPUT, 0}, {SUBBYTE_WORKSPACE, 64}};
  static const subbyte_operator operators[] = {{"/gather", check_index, arguments, 3, 1}};
  const subbyte_model model = {SUBBYTE_ABI, "choice", "host", 1, 1, 1, &indices, &chosen, operators, 0, 96, 0, 0, NULL, NULL};
  const int64_t bad[] = {12, -11, INT64_MAX, INT64_MIN};
  const char *const digits[] = {"12", "-11", "9223372036854775807", "-9223372036854775808"};
  int64_t index[2] = {0, 0};
  const void *inputs[1];
  void *outputs[1];
  subbyte_session *session;
  float y = -1.0f;
  int32_t threads, i;
  inputs[0] = index;
  outputs[0] = &y;
  for (threads = 1; threads <= 3; threads += 2) {
    CHECK(subbyte_session_create(&model, NULL, 0, threads, &session) == SUBBYTE_OK);
    for (i = 0; i < 4; ++i) {
      const subbyte_failure *failure = subbyte_session_failure(session);
      char text[128], wanted[128], cut[9];
      index[1] = bad[i];
      CHECK(subbyte_session_run(session, inputs, outputs, NULL, NULL) == SUBBYTE_BAD_INDEX);
      CHECK(failure->status == SUBBYTE_BAD_INDEX && failure->operator_index == 0);
      CHECK(failure->position == 1 && failure->value == bad[i] && failure->lowest == -10 && failure->highest == 9);
      snprintf(wanted, sizeof wanted,
               "operator '/gather': index %s, element 1 of its indices, is out of range; expected -10 .. 9", digits[i]);
      CHECK(subbyte_failure_text(&model, failure, text, sizeof text) == strlen(wanted));
      CHECK(strcmp(text, wanted) == 0);
      CHECK(subbyte_failure_text(&model, failure, cut, sizeof cut) == strlen(wanted));
      CHECK(strcmp(cut, "operator") == 0);
      CHECK(subbyte_failure_text(&model, failure, NULL, 0) == strlen(wanted));
      index[1] = -1;
      CHECK(subbyte_session_run(session, inputs, outputs, NULL, NULL) == SUBBYTE_OK && y == 9.0f);
    }
    subbyte_session_destroy(session);
  }
}

/* A model for another CPU is refused before any of its instructions runs, and what is missing has names. */
static void test_features(void) {
  subbyte_model other = *subbyte_get_model(), same = other;
  char names[32];
  void *block;
  float *weights = (float *)aligned(64, &block);
  subbyte_buffers buffers;
  subbyte_session *session;
  memset(&buffers, 0, sizeof buffers);
  other.features = "";
  CHECK(subbyte_missing_features(&other, names, sizeof names) == 0 && names[0] == '\0');
  other.features = "no-such-feature";
  CHECK(subbyte_missing_features(&other, names, sizeof names) == 1 && strcmp(names, other.features) == 0);
  same.features = SUBBYTE_TEST_HAS;
  CHECK(subbyte_missing_features(&same, NULL, 0) == 0);
  CHECK(subbyte_session_create(&same, weights, 64, 1, &session) == SUBBYTE_OK);
  subbyte_session_destroy(session);
  other.features = SUBBYTE_TEST_LACKS; /* two features, of which this CPU has none, or of which the core knows none */
  CHECK(subbyte_missing_features(&other, names, sizeof names) == 2);
  CHECK(strcmp(names, other.features) == 0);
  CHECK(subbyte_missing_features(&other, names, strchr(other.features, ' ') - other.features + 2) == 2);
  CHECK(strncmp(names, other.features, strlen(names)) == 0 && strchr(names, ' ') == NULL && names[0]);
  CHECK(subbyte_session_create(&other, weights, 64, 1, &session) == SUBBYTE_LACKS_FEATURES && session == NULL);
  other.input_count = other.output_count = 0;
  other.arena_bytes = other.workspace_bytes = other.weights_bytes = 0;
  CHECK(subbyte_run(&other, &buffers, NULL, NULL) == SUBBYTE_LACKS_FEATURES);
  CHECK(strstr(subbyte_status_text(SUBBYTE_LACKS_FEATURES), "lacks features") != NULL);
  free(block);
}

static void test_run_without_session(void) {
  const subbyte_model *model = subbyte_get_model();
  void *block;
  char *memory = (char *)aligned(4096, &block);
  float *weights = (float *)(void *)memory;
  float x[ROWS * COLUMNS], y[ROWS * COLUMNS], z[ROWS];
  const void *inputs[1];
  void *outputs[2];
  subbyte_buffers buffers;
  fill(weights, x);
  inputs[0] = x;
  outputs[0] = y;
  outputs[1] = z;
  buffers.weights = weights;
  buffers.arena = memory + 1024;
  buffers.workspace = memory + 2048;
  buffers.inputs = inputs;
  buffers.outputs = outputs;
  CHECK(subbyte_run(model, &buffers, NULL, NULL) == SUBBYTE_OK);
  check_result(weights, x, y, z);
  buffers.arena = memory + 4;
  CHECK(subbyte_run(model, &buffers, NULL, NULL) == SUBBYTE_BAD_ARGUMENT);
  buffers.arena = NULL;
  CHECK(subbyte_run(model, &buffers, NULL, NULL) == SUBBYTE_BAD_ARGUMENT);
  CHECK(subbyte_run(NULL, &buffers, NULL, NULL) == SUBBYTE_BAD_ARGUMENT && buffers.failure.operator_index == -1);
  free(block);
}

typedef struct {
  int32_t threads;
  int32_t wide;           /* times[i] is of tiles i, i + LONGEST, ... and counted atomically */
  int32_t times[LONGEST]; /* how often each tile ran; else plain ints: two threads in one tile is a race */
} tally;

static void count(void *context, int32_t worker, int32_t begin, int32_t end) {
  tally *t = (tally *)context;
  int32_t i;
  CHECK(worker >= 0 && worker < t->threads && begin < end);
  for (i = begin; i < end; ++i) {
    if (t->wide)
      __atomic_add_fetch(&t->times[i % LONGEST], 1, __ATOMIC_RELAXED);
    else
      ++t->times[i];
  }
}

/* Every tile of every job runs exactly once, whatever the number of threads and tiles. */
static void test_pool(void) {
  static tally t;
  int32_t threads, job, i;
  for (threads = 2; threads <= 8; threads += 3) {
    subbyte_pool *pool = subbyte_pool_create(threads);
    CHECK(pool != NULL);
    t.threads = threads;
    for (job = 0; job < 2000; ++job) {
      const int32_t tiles = 1 + job * 37 % LONGEST;
      if (job % 7 == 0) subbyte_pool_enter(pool);
      memset(t.times, 0, sizeof t.times);
      subbyte_pool_run(pool, count, &t, tiles);
      for (i = 0; i < LONGEST; ++i) CHECK(t.times[i] == (i < tiles));
      if (job % 500 == 0) { /* long enough for the workers to fall asleep */
        const uint64_t start = subbyte_now();
        while (subbyte_now() - start < 2000000u) continue;
      }
    }
    t.wide = 1;
    memset(t.times, 0, sizeof t.times);
    subbyte_pool_run(pool, count, &t, MANY);
    for (i = 0; i < LONGEST; ++i) CHECK(t.times[i] == MANY / LONGEST + (i < MANY % LONGEST));
    t.wide = 0;
    subbyte_pool_destroy(pool);
  }
}

/* Two sessions of one model run at once, each with workers of its own. */
static void *run_session(void *argument) {
  float *weights = (float *)argument;
  float x[ROWS * COLUMNS], y[ROWS * COLUMNS], z[ROWS], unused[COLUMNS];
  const void *inputs[1];
  void *outputs[2];
  subbyte_session *session;
  int repeat;
  fill(unused, x);
  inputs[0] = x;
  outputs[0] = y;
  outputs[1] = z;
  CHECK(subbyte_session_create(subbyte_get_model(), weights, 64, 3, &session) == SUBBYTE_OK);
  for (repeat = 0; repeat < 300; ++repeat) {
    memset(z, 0, sizeof z);
    CHECK(subbyte_session_run(session, inputs, outputs, NULL, NULL) == SUBBYTE_OK);
    check_result(weights, x, y, z);
  }
  subbyte_session_destroy(session);
  return NULL;
}

static void test_two_sessions_at_once(void) {
  void *block;
  float *weights = (float *)aligned(64, &block);
  float x[ROWS * COLUMNS];
  pthread_t other;
  fill(weights, x);
  CHECK(pthread_create(&other, NULL, run_session, weights) == 0);
  (void)run_session(weights);
  CHECK(pthread_join(other, NULL) == 0);
  free(block);
}

/* A forked child has no workers, asleep or awake: it runs on its own thread, and destroying returns. */
static void test_forked_child(void) {
  void *block;
  float *weights = (float *)aligned(64, &block);
  float x[ROWS * COLUMNS], y[ROWS * COLUMNS], z[ROWS];
  const void *inputs[1];
  void *outputs[2];
  subbyte_session *session;
  int i, asleep, status;
  fill(weights, x);
  inputs[0] = x;
  outputs[0] = y;
  outputs[1] = z;
  for (asleep = 0; asleep <= 1; ++asleep) {
    pid_t child;
    CHECK(subbyte_session_create(subbyte_get_model(), weights, 64, 4, &session) == SUBBYTE_OK);
    for (i = 0; i < 20; ++i) CHECK(subbyte_session_run(session, inputs, outputs, NULL, NULL) == SUBBYTE_OK);
    if (asleep) usleep(20000);
    child = fork();
    CHECK(child >= 0);
    if (child == 0) {
      for (i = 0; i < 20; ++i) {
        memset(y, 0, sizeof y);
        memset(z, 0, sizeof z);
        CHECK(subbyte_session_run(session, inputs, outputs, NULL, NULL) == SUBBYTE_OK);
        check_result(weights, x, y, z);
      }
      subbyte_session_destroy(session);
      _exit(0);
    }
    CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0);
    CHECK(subbyte_session_run(session, inputs, outputs, NULL, NULL) == SUBBYTE_OK);
    check_result(weights, x, y, z);
    subbyte_session_destroy(session);
  }
  free(block);
}

int main(void) {
  test_run_without_session();
  test_sessions();
  test_bad_index();
  test_features();
  test_two_sessions_at_once();
  test_forked_child();
  test_pool();
  test_state();
  puts("ok");
  return 0;
}
