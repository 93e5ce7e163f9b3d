/* Checks of state, values that live between runs: of a caller's own memory, of sessions, and of runs at once. */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "core_test.h"

/* next = value + x, of two words of which one begins with 7; refuses x = 99 after it has written the next value. */
static int32_t add_to_state(void *const *args, int32_t begin, int32_t end) {
  const int32_t *value = (const int32_t *)args[0], *x = (const int32_t *)args[1];
  int32_t *next = (int32_t *)args[2], *y = (int32_t *)args[3];
  (void)begin;
  (void)end;
  next[0] = value[0] + x[0];
  *y = value[0];
  return x[0] == 99;
}

static const int64_t one[] = {1};
static const subbyte_tensor number = {"x", SUBBYTE_INT32, 1, one, 4}, kept[] = {{"a", SUBBYTE_INT32, 1, one, 4},
                                                                              {"b", SUBBYTE_INT32, 1, one, 4}};
static const subbyte_argument sum_a[] = {{SUBBYTE_STATE, 0}, {SUBBYTE_INPUT, 0}, {SUBBYTE_ARENA, 64}, {SUBBYTE_OUTPUT, 0}};
static const subbyte_argument sum_b[] = {{SUBBYTE_STATE, 64}, {SUBBYTE_INPUT, 0}, {SUBBYTE_ARENA, 0}, {SUBBYTE_OUTPUT, 1}};
static const subbyte_operator sums[] = {{"/a", add_to_state, sum_a, 4, 1}, {"/b", add_to_state, sum_b, 4, 1}};
static const subbyte_tensor sums_of[] = {{"y", SUBBYTE_INT32, 1, one, 4}, {"z", SUBBYTE_INT32, 1, one, 4}};
static const subbyte_state state_rows[] = {{&kept[0], 0, SUBBYTE_ZEROS, 64}, {&kept[1], 64, 0, 0}};
static const subbyte_states state_table = {2, state_rows, 132, subbyte_begin_state, subbyte_end_state};
static const subbyte_model counter = {SUBBYTE_ABI, "counter", "host", 1,  2, 2, &number, sums_of,
                                      sums,        128,       0,      64, 0, NULL, &state_table};

/* With the caller's memory: a state is reset before it is run, and what it holds is that of the last run that ended well. */
static void test_state_of_the_caller(void) {
  void *blocks[3];
  int32_t *weights = (int32_t *)aligned(64, &blocks[0]), *state = (int32_t *)aligned(192, &blocks[1]);
  int32_t x = 3, y = 0, z = 0, i;
  const void *inputs[1];
  void *outputs[2];
  char text[128];
  subbyte_buffers buffers = {0};
  inputs[0] = &x;
  outputs[0] = &y;
  outputs[1] = &z;
  weights[0] = 7;
  buffers.weights = weights;
  buffers.arena = aligned(128, &blocks[2]);
  buffers.inputs = inputs;
  buffers.outputs = outputs;
  CHECK(subbyte_run(&counter, &buffers, NULL, NULL) == SUBBYTE_BAD_ARGUMENT); /* no state */
  CHECK(subbyte_reset(&counter, &buffers) == SUBBYTE_BAD_ARGUMENT);
  buffers.state = (char *)state + 4;
  CHECK(subbyte_reset(&counter, &buffers) == SUBBYTE_BAD_ARGUMENT);
  buffers.state = state;
  CHECK(subbyte_run(&counter, &buffers, NULL, NULL) == SUBBYTE_NOT_RESET);
  CHECK(buffers.failure.status == SUBBYTE_NOT_RESET && buffers.failure.operator_index == -1);
  (void)subbyte_failure_text(&counter, &buffers.failure, text, sizeof text);
  CHECK(strcmp(text, "the state was not reset") == 0);
  for (i = 0; i < 2; ++i) {
    int32_t run;
    CHECK(subbyte_reset(&counter, &buffers) == SUBBYTE_OK);
    CHECK(state[0] == 0 && state[16] == 7);
    for (run = 0; run < 5; ++run) {
      CHECK(subbyte_run(&counter, &buffers, NULL, NULL) == SUBBYTE_OK);
      CHECK(y == 3 * run && z == 7 + 3 * run);
    }
    x = 99;
    CHECK(subbyte_run(&counter, &buffers, NULL, NULL) == SUBBYTE_KERNEL_FAILED);
    CHECK(state[0] == 15 && state[16] == 22);
    x = 3;
    CHECK(subbyte_run(&counter, &buffers, NULL, NULL) == SUBBYTE_OK && y == 15 && state[0] == 18);
  }
  CHECK(subbyte_reset(subbyte_get_model(), &buffers) == SUBBYTE_OK && state[0] == 18); /* of a model without state */
  for (i = 0; i < 3; ++i) free(blocks[i]);
}

static subbyte_buffers *of_the_outer_run;

/* An interrupt in the middle of a run, which runs the same state. */
static void run_again(void *user, int32_t index, uint64_t ns) {
  subbyte_buffers mine = *of_the_outer_run;
  (void)index;
  (void)ns;
  CHECK(subbyte_run(&counter, &mine, NULL, NULL) == SUBBYTE_BUSY);
  CHECK(subbyte_reset(&counter, &mine) == SUBBYTE_BUSY);
  ++*(int *)user;
}

static void test_a_run_within_a_run(void) {
  void *blocks[3];
  int32_t x = 2, y, z, calls = 0;
  const void *inputs[1];
  void *outputs[2];
  subbyte_buffers buffers = {0};
  inputs[0] = &x;
  outputs[0] = &y;
  outputs[1] = &z;
  buffers.weights = aligned(64, &blocks[0]);
  buffers.state = aligned(192, &blocks[1]);
  buffers.arena = aligned(128, &blocks[2]);
  buffers.inputs = inputs;
  buffers.outputs = outputs;
  of_the_outer_run = &buffers;
  CHECK(subbyte_reset(&counter, &buffers) == SUBBYTE_OK);
  CHECK(subbyte_run(&counter, &buffers, run_again, &calls) == SUBBYTE_OK && calls == 2);
  CHECK(subbyte_run(&counter, &buffers, NULL, NULL) == SUBBYTE_OK && y == 2 && z == 2);
  free(blocks[0]);
  free(blocks[1]);
  free(blocks[2]);
}

enum { SHARING = 4, TRIES = 2000 };

static void *share(void *session) {
  int32_t x = 1, y, z;
  intptr_t done = 0, i;
  const void *inputs[1];
  void *outputs[2];
  inputs[0] = &x;
  outputs[0] = &y;
  outputs[1] = &z;
  for (i = 0; i < TRIES; ++i) {
    const int32_t status = subbyte_session_run((subbyte_session *)session, inputs, outputs, NULL, NULL);
    CHECK(status == SUBBYTE_OK || status == SUBBYTE_BUSY);
    done += status == SUBBYTE_OK;
  }
  return (void *)done;
}

/* Threads that run one session at once: a run is refused or counts once, with a pool and without. */
static void test_threads_share_a_session(void) {
  void *block, *done;
  int32_t *weights = (int32_t *)aligned(64, &block), threads, i, sum;
  weights[0] = 7;
  for (threads = 1; threads <= 2; ++threads) {
    pthread_t workers[SHARING];
    subbyte_session *session;
    CHECK(subbyte_session_create(&counter, weights, 64, threads, &session) == SUBBYTE_OK);
    CHECK(subbyte_session_state(session, -1) == NULL && subbyte_session_state(session, 2) == NULL);
    for (i = 0; i < SHARING; ++i) CHECK(pthread_create(&workers[i], NULL, share, session) == 0);
    for (i = sum = 0; i < SHARING; ++i) {
      CHECK(pthread_join(workers[i], &done) == 0);
      sum += (int32_t)(intptr_t)done;
    }
    CHECK(sum > 0 && *(int32_t *)subbyte_session_state(session, 0) == sum);
    CHECK(*(int32_t *)subbyte_session_state(session, 1) == sum + 7);
    CHECK(subbyte_session_reset(session) == SUBBYTE_OK && *(int32_t *)subbyte_session_state(session, 1) == 7);
    subbyte_session_destroy(session);
  }
  CHECK(subbyte_session_reset(NULL) == SUBBYTE_BAD_ARGUMENT && subbyte_session_state(NULL, 0) == NULL);
  free(block);
}

void test_state(void) {
  test_state_of_the_caller();
  test_a_run_within_a_run();
  test_threads_share_a_session();
}
