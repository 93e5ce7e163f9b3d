/* Reads cases from standard input, each a length and so many bytes, and makes of each a model, its buffers and some runs.
 *
 * The bytes are decisions: how many tensors, of which shapes; which operator reads and writes what, in how many tiles; how
 * many threads; and one fault, or none, that the core has to refuse. All buffers are heap blocks of exactly their size, so that a
 * sanitizer sees a step beyond. A kernel writes a hash of what it reads; the same plan, walked here by one plain loop, says what
 * must come out. Answers "ran" or "refused" a line, and ends with 1 at the first result that is not the right one.
 */
#define _DEFAULT_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../c_core/check.h"
#include "subbyte.h"

enum { MOST_TENSORS = 5, MOST_OPERATORS = 12, MOST_SOURCES = 6, MOST_BYTES = 1 << 16, SLOTS = 6, MOST_STATES = 3, ARGUMENTS = MOST_SOURCES + 3 };
enum {
  NO_FAULT, ABI, WEIGHTS_SIZE, WEIGHTS_NULL, WEIGHTS_ALIGNMENT, THREADS, NEEDS, NO_MODEL, /* refused by create */
  INPUT_NULL, INPUT_ALIGNMENT, OUTPUT_NULL, TOO_MANY_ARGUMENTS, UNKNOWN_SPACE, KERNEL, INDEX, /* by a run */
  FAULTS
};

typedef struct {
  const uint8_t *at, *end;
} decisions;

/* 0 .. below-1; 0 when there are no more bytes. */
static uint32_t choose(decisions *d, uint32_t below) {
  uint32_t value = d->at < d->end ? *d->at++ : 0;
  if (below > 256) value = value << 8 | (d->at < d->end ? *d->at++ : 0);
  return below ? value % below : 0;
}

/* What a kernel does; it lies among the weights, which is how a kernel gets to see it. */
typedef struct {
  uint32_t id, sources, made, tiles, scratch; /* bytes made, and bytes of the workspace that it goes through */
  uint32_t bytes[MOST_SOURCES];
  int32_t fails_at, status; /* the tile that fails, or -1 */
} recipe;

static int32_t executed[MOST_OPERATORS]; /* atomic: tiles of this run */

static uint8_t hash_of(const recipe *r, void *const *args, uint32_t position) {
  uint32_t hash = (r->id + 1) * 2654435761u + position * 40503u, s;
  for (s = 0; s < r->sources; ++s)
    if (r->bytes[s]) hash = (hash ^ ((const uint8_t *)args[1 + s])[position % r->bytes[s]]) * 16777619u;
  return (uint8_t)(hash >> 24);
}

static int32_t make(void *const *args, int32_t begin, int32_t end) {
  const recipe *r = (const recipe *)args[0];
  uint8_t *to = (uint8_t *)args[1 + r->sources], *scratch = (uint8_t *)args[2 + r->sources];
  const uint32_t last = (uint32_t)((uint64_t)r->made * (uint32_t)end / r->tiles);
  uint32_t at = (uint32_t)((uint64_t)r->made * (uint32_t)begin / r->tiles), i;
  __atomic_add_fetch(&executed[r->id], end - begin, __ATOMIC_RELAXED);
  if (r->fails_at >= begin && r->fails_at < end) {
    const int64_t found[] = {r->made, -(int64_t)r->id, INT64_MIN, INT64_MAX};
    if (r->status == SUBBYTE_BAD_INDEX) memcpy(scratch, found, sizeof found);
    return r->status;
  }
  while (at < last) {
    const uint32_t part = r->scratch && r->scratch < last - at ? r->scratch : last - at;
    uint8_t *through = r->scratch ? scratch : to + at;
    for (i = 0; i < part; ++i) through[i] = hash_of(r, args, at + i);
    if (r->scratch) memcpy(to + at, through, part);
    at += part;
  }
  return 0;
}

typedef struct {
  subbyte_model model;
  subbyte_tensor inputs[MOST_TENSORS], outputs[MOST_TENSORS];
  int64_t shapes[2 * MOST_TENSORS][8];
  subbyte_operator *operators; /* exactly as many as there are */
  subbyte_argument *arguments[MOST_OPERATORS];
  char names[MOST_OPERATORS][24];
  recipe *recipes[MOST_OPERATORS]; /* in the weights */
  uint8_t *weights;
  uint8_t *in[MOST_TENSORS], *out[MOST_TENSORS], *right[MOST_TENSORS]; /* right: what the plain loop makes */
  void *blocks[64];
  int block_count;
  uint32_t slot_bytes[SLOTS], slot_at[SLOTS];
  int slot_made[SLOTS], output_made[MOST_TENSORS];
  subbyte_states states;
  subbyte_state kept[MOST_STATES];
  subbyte_tensor kept_as[MOST_STATES];
  uint8_t *arena, *state; /* of the plain loop */
  int hooks;
} plan;

static void *block(plan *p, size_t bytes) {
  void *made = calloc(1, bytes ? bytes : 1);
  CHECK(made != NULL && p->block_count < 64);
  return p->blocks[p->block_count++] = made;
}

static size_t element_bytes(int32_t dtype) {
  if (dtype == SUBBYTE_INT64) return 8;
  return dtype == SUBBYTE_UINT8 || dtype == SUBBYTE_INT8 ? 1 : 4;
}

static void draw_tensors(plan *p, decisions *d, subbyte_tensor *tensors, int32_t count, int64_t (*shapes)[8],
                         uint8_t **memory) {
  int32_t i, axis;
  for (i = 0; i < count; ++i) {
    subbyte_tensor *t = &tensors[i];
    size_t offset;
    t->name = "tensor";
    t->dtype = (int32_t)choose(d, 5);
    t->rank = (int32_t)choose(d, 6);
    t->shape = shapes[i];
    t->nbytes = element_bytes(t->dtype);
    for (axis = 0; axis < t->rank; ++axis) t->nbytes *= (size_t)(shapes[i][axis] = 1 + choose(d, axis < 3 ? 9 : 2));
    offset = element_bytes(t->dtype) * choose(d, 2); /* aligned as one element, not more */
    memory[i] = (uint8_t *)block(p, t->nbytes + offset) + offset;
  }
}

/* A place to read: an input, or what an earlier operator made; never `avoid`, which is being written. */
static uint32_t draw_source(plan *p, decisions *d, subbyte_argument *a, subbyte_argument avoid) {
  const uint32_t kind = choose(d, 4), which = choose(d, SLOTS);
  a->space = SUBBYTE_WEIGHTS;
  a->offset = 0;
  if (kind == 0 && p->model.input_count) {
    a->space = SUBBYTE_INPUT;
    a->offset = which % (uint32_t)p->model.input_count;
    return (uint32_t)p->inputs[a->offset].nbytes;
  }
  if (kind == 2 && p->states.count && choose(d, 2)) {
    const subbyte_state *kept = &p->kept[which % (uint32_t)p->states.count];
    a->space = SUBBYTE_STATE;
    a->offset = kept->offset;
    return (uint32_t)kept->tensor->nbytes;
  }
  if (kind == 1 && p->output_made[which % (uint32_t)p->model.output_count] &&
      !(avoid.space == SUBBYTE_OUTPUT && avoid.offset == which % (uint32_t)p->model.output_count)) {
    a->space = SUBBYTE_OUTPUT;
    a->offset = which % (uint32_t)p->model.output_count;
    return (uint32_t)p->outputs[a->offset].nbytes;
  }
  if (p->slot_made[which] && !(avoid.space == SUBBYTE_ARENA && avoid.offset == p->slot_at[which])) {
    a->space = SUBBYTE_ARENA;
    a->offset = p->slot_at[which];
    return p->slot_bytes[which];
  }
  return 64; /* the first weights */
}

static void draw_operator(plan *p, decisions *d, int32_t index) {
  subbyte_operator *op = &p->operators[index];
  subbyte_argument *a = p->arguments[index] = (subbyte_argument *)block(p, sizeof(subbyte_argument) * ARGUMENTS);
  recipe *r = p->recipes[index] = (recipe *)(void *)(p->weights + 64 + 64 * (size_t)index);
  subbyte_argument to;
  uint32_t s;
  const uint32_t tiles[] = {1, 2, 4, 7, 64, 300};
  if (choose(d, 3) == 0) {
    to.space = SUBBYTE_OUTPUT;
    to.offset = choose(d, (uint32_t)p->model.output_count);
    r->made = (uint32_t)p->outputs[to.offset].nbytes;
  } else {
    const uint32_t slot = choose(d, SLOTS);
    to.space = SUBBYTE_ARENA;
    to.offset = p->slot_at[slot];
    r->made = p->slot_bytes[slot];
  }
  r->id = (uint32_t)index;
  r->sources = choose(d, MOST_SOURCES + 1);
  r->tiles = tiles[choose(d, 6)];
  r->scratch = p->model.workspace_bytes && choose(d, 2) ? (uint32_t)p->model.workspace_bytes : 0;
  r->fails_at = -1;
  a[0].space = SUBBYTE_WEIGHTS;
  a[0].offset = (uint32_t)((uint8_t *)r - p->weights);
  for (s = 0; s < r->sources; ++s) r->bytes[s] = draw_source(p, d, &a[1 + s], to);
  a[1 + s] = to;
  a[2 + s].space = SUBBYTE_WORKSPACE;
  a[2 + s].offset = 0;
  if (to.space == SUBBYTE_OUTPUT) p->output_made[to.offset] = 1;
  for (s = 0; s < SLOTS; ++s) p->slot_made[s] |= to.space == SUBBYTE_ARENA && to.offset == p->slot_at[s];
  for (s = choose(d, sizeof p->names[0]); s-- > 0;) p->names[index][s] = (char)(1 + choose(d, 255));
  op->name = p->names[index];
  op->kernel = make;
  op->arguments = a;
  op->argument_count = (int32_t)r->sources + 3;
  op->tiles = (int32_t)r->tiles;
}

/* Each state is replaced by what is in a slot of the arena at the end of a run. */
static void draw_states(plan *p, decisions *d) {
  uint32_t i, at = 0;
  p->states.count = (int32_t)choose(d, MOST_STATES + 1);
  for (i = 0; i < (uint32_t)p->states.count; ++i) {
    const uint32_t slot = choose(d, SLOTS);
    p->kept_as[i].name = "state";
    p->kept_as[i].dtype = SUBBYTE_UINT8;
    p->kept_as[i].nbytes = p->slot_bytes[slot];
    p->kept[i].tensor = &p->kept_as[i];
    p->kept[i].offset = at;
    p->kept[i].initial = p->slot_bytes[slot] <= 64 && choose(d, 2) ? 0 : SUBBYTE_ZEROS;
    p->kept[i].next = p->slot_at[slot];
    at += (p->slot_bytes[slot] + 63) & ~63u;
  }
  p->states.states = p->kept;
  p->states.bytes = at + 4;
  p->states.begin = subbyte_begin_state;
  p->states.end = subbyte_end_state;
  p->state = (uint8_t *)block(p, at);
  if (p->states.count) p->model.states = &p->states;
}

static void reset_states(plan *p) {
  int32_t i;
  for (i = 0; i < p->states.count; ++i)
    memset(p->state + p->kept[i].offset, p->kept[i].initial == SUBBYTE_ZEROS ? 0 : 0x5a, p->kept_as[i].nbytes);
}

static void draw_plan(plan *p, decisions *d) {
  static const char *const features[] = {NULL, "", " "}; /* a name, even an unknown one, may be refused */
  int32_t i;
  uint32_t at = 0;
  size_t bytes;
  memset(p, 0, sizeof *p);
  p->model.abi = SUBBYTE_ABI;
  p->model.name = p->model.target = "fuzz";
  p->model.input_count = (int32_t)choose(d, MOST_TENSORS);
  p->model.output_count = 1 + (int32_t)choose(d, MOST_TENSORS - 1);
  p->model.operator_count = (int32_t)choose(d, MOST_OPERATORS + 1);
  p->model.inputs = p->inputs;
  p->model.outputs = p->outputs;
  p->model.features = features[choose(d, 3)];
  p->model.workspace_bytes = 32 * choose(d, 5);
  draw_tensors(p, d, p->inputs, p->model.input_count, p->shapes, p->in);
  draw_tensors(p, d, p->outputs, p->model.output_count, p->shapes + MOST_TENSORS, p->out);
  for (i = 0; i < p->model.output_count; ++i) p->right[i] = (uint8_t *)block(p, p->outputs[i].nbytes);
  for (i = 0; i < SLOTS; ++i) {
    p->slot_at[i] = at;
    p->slot_bytes[i] = choose(d, 700);
    at += (p->slot_bytes[i] + 64) & ~63u;
  }
  p->model.arena_bytes = at;
  p->arena = (uint8_t *)block(p, at);
  draw_states(p, d);
  p->model.weights_bytes = bytes = 64 + 64 * (size_t)p->model.operator_count;
  p->weights = (uint8_t *)aligned_alloc(SUBBYTE_ALIGNMENT, bytes);
  CHECK(p->weights != NULL);
  p->blocks[p->block_count++] = p->weights;
  memset(p->weights, 0x5a, bytes);
  p->operators = (subbyte_operator *)block(p, sizeof(subbyte_operator) * (size_t)p->model.operator_count);
  p->model.operators = p->operators;
  for (i = 0; i < p->model.operator_count; ++i) draw_operator(p, d, i);
}

/* The plan by one plain loop: what `right` and `arena` must hold after a run that does not fail. */
static void walk(plan *p) {
  int32_t i, j;
  uint32_t at;
  for (i = 0; i < p->model.operator_count; ++i) {
    const recipe *r = p->recipes[i];
    void *args[ARGUMENTS];
    for (j = 0; j < (int32_t)r->sources + 2; ++j) {
      const subbyte_argument a = p->arguments[i][j];
      args[j] = a.space == SUBBYTE_INPUT     ? p->in[a.offset]
                : a.space == SUBBYTE_OUTPUT  ? p->right[a.offset]
                : a.space == SUBBYTE_WEIGHTS ? p->weights + a.offset
                : a.space == SUBBYTE_STATE   ? p->state + a.offset
                                             : p->arena + a.offset;
    }
    for (at = 0; at < r->made; ++at) ((uint8_t *)args[1 + r->sources])[at] = hash_of(r, args, at);
  }
  for (i = 0; i < p->states.count; ++i) memcpy(p->state + p->kept[i].offset, p->arena + p->kept[i].next, p->kept_as[i].nbytes);
}

static void check_states(const plan *p, subbyte_session *session) {
  int32_t i;
  for (i = 0; i < p->states.count; ++i)
    CHECK(memcmp(subbyte_session_state(session, i), p->state + p->kept[i].offset, p->kept_as[i].nbytes) == 0);
}

static void on_operator(void *user, int32_t index, uint64_t ns) {
  plan *p = (plan *)user;
  (void)ns;
  CHECK(index == p->hooks++);
}

static void fill_inputs(plan *p, uint32_t seed) {
  int32_t i;
  size_t at;
  for (i = 0; i < p->model.input_count; ++i)
    for (at = 0; at < p->inputs[i].nbytes; ++at) p->in[i][at] = (uint8_t)((at + seed) * 167u >> 3);
}

/* One run, and what it leaves in outputs, arena and state. */
static void check_run(plan *p, subbyte_session *session, uint32_t seed, int hooked) {
  const uint8_t *arena = (const uint8_t *)subbyte_session_arena(session);
  int32_t i;
  fill_inputs(p, seed);
  walk(p);
  memset(executed, 0, sizeof executed);
  p->hooks = 0;
  CHECK(subbyte_session_run(session, (const void *const *)p->in, (void *const *)p->out, hooked ? on_operator : NULL, p) ==
        SUBBYTE_OK);
  CHECK(p->hooks == (hooked ? p->model.operator_count : 0));
  for (i = 0; i < p->model.operator_count; ++i) CHECK(executed[i] == p->operators[i].tiles);
  for (i = 0; i < p->model.output_count; ++i)
    CHECK(!p->output_made[i] || memcmp(p->out[i], p->right[i], p->outputs[i].nbytes) == 0);
  for (i = 0; i < SLOTS; ++i)
    CHECK(!p->slot_made[i] || memcmp(arena + p->slot_at[i], p->arena + p->slot_at[i], p->slot_bytes[i]) == 0);
  check_states(p, session);
}

/* A run that must be refused, and what the failure says in words, cut to a block of any size. */
static void check_refused(plan *p, subbyte_session *session, decisions *d, int32_t status, int32_t index) {
  const subbyte_failure *failure = subbyte_session_failure(session);
  const size_t bytes = choose(d, 120);
  char whole[256], *cut = (char *)malloc(bytes ? bytes : 1);
  size_t length;
  CHECK(cut != NULL);
  CHECK(subbyte_session_run(session, (const void *const *)p->in, (void *const *)p->out, NULL, NULL) == status);
  CHECK(failure->status == status && failure->operator_index == index);
  check_states(p, session); /* as it was */
  if (status == SUBBYTE_BAD_INDEX) {
    CHECK(failure->position == p->recipes[index]->made && failure->value == -index);
    CHECK(failure->lowest == INT64_MIN && failure->highest == INT64_MAX);
  }
  length = subbyte_failure_text(&p->model, failure, whole, sizeof whole);
  CHECK(length == strlen(whole) && length < sizeof whole);
  if (index >= 0) {
    CHECK(strncmp(whole, "operator '", 10) == 0);
    CHECK(strncmp(whole + 10, p->names[index], strlen(p->names[index])) == 0);
  }
  CHECK(subbyte_failure_text(&p->model, failure, bytes ? cut : NULL, bytes) == length);
  if (bytes) CHECK(strlen(cut) == (length < bytes ? length : bytes - 1) && strncmp(cut, whole, strlen(cut)) == 0);
  free(cut);
}

/* Whether `create` refuses this fault, as it must; what a run refuses is not its business. */
static int refused_by_create(plan *p, decisions *d, uint32_t fault, int32_t threads) {
  static const int32_t wrong[] = {0, -1, SUBBYTE_MAX_THREADS + 1, INT32_MIN, INT32_MAX};
  subbyte_model model = p->model;
  const uint8_t *weights = p->weights;
  size_t bytes = model.weights_bytes;
  int32_t status = SUBBYTE_BAD_ARGUMENT;
  subbyte_session *session = (subbyte_session *)p;
  switch (fault) {
    case ABI: model.abi += 1 + choose(d, 250); status = SUBBYTE_BAD_ABI; break;
    case WEIGHTS_SIZE: bytes += 1 + choose(d, 3); break;
    case WEIGHTS_NULL: weights = NULL; break;
    case WEIGHTS_ALIGNMENT: weights += 1 + choose(d, 63); break;
    case THREADS: threads = wrong[choose(d, 5)]; break;
    case NEEDS: model.needs = 2u << choose(d, 31); status = SUBBYTE_REFUSED; break;
    case NO_MODEL: break;
    default: return 0;
  }
  CHECK(subbyte_session_create(fault == NO_MODEL ? NULL : &model, weights, bytes, threads, &session) == status);
  CHECK(session == NULL);
  return 1;
}

/* A fault that a run refuses: made, refused, and taken back. */
static int refused_by_run(plan *p, decisions *d, subbyte_session *session, uint32_t fault) {
  const int32_t index = (int32_t)choose(d, (uint32_t)p->model.operator_count);
  subbyte_operator *op = &p->operators[index];
  recipe *r = p->recipes[index];
  const subbyte_operator operator_before = p->model.operator_count ? *op : (subbyte_operator){0};
  uint8_t **which = fault == OUTPUT_NULL ? &p->out[choose(d, (uint32_t)p->model.output_count)]
                                         : &p->in[choose(d, (uint32_t)p->model.input_count)];
  uint8_t *pointer = *which;
  if ((fault == INPUT_NULL || fault == INPUT_ALIGNMENT) && !p->model.input_count) return 0;
  if (fault >= TOO_MANY_ARGUMENTS && !p->model.operator_count) return 0;
  switch (fault) {
    case INPUT_ALIGNMENT:
      if (element_bytes(p->inputs[which - p->in].dtype) == 1) return 0;
      *which += 1;
      check_refused(p, session, d, SUBBYTE_BAD_ARGUMENT, -1);
      break;
    case INPUT_NULL:
    case OUTPUT_NULL:
      *which = NULL;
      check_refused(p, session, d, SUBBYTE_BAD_ARGUMENT, -1);
      break;
    case TOO_MANY_ARGUMENTS:
      op->argument_count = SUBBYTE_MAX_ARGUMENTS + 1 + (int32_t)choose(d, 99);
      check_refused(p, session, d, SUBBYTE_BAD_ARGUMENT, index);
      break;
    case UNKNOWN_SPACE: {
      subbyte_argument *a = &p->arguments[index][choose(d, (uint32_t)op->argument_count)], before = *a;
      a->space = SUBBYTE_STATE + 1 + choose(d, 9);
      check_refused(p, session, d, SUBBYTE_BAD_ARGUMENT, index);
      *a = before;
      break;
    }
    case KERNEL:
      r->fails_at = (int32_t)choose(d, r->tiles);
      r->status = 1 + (int32_t)choose(d, 6);
      check_refused(p, session, d, SUBBYTE_KERNEL_FAILED, index);
      break;
    case INDEX:
      if (p->model.workspace_bytes < 32 || r->tiles != 1) return 0;
      r->fails_at = 0;
      r->status = SUBBYTE_BAD_INDEX;
      check_refused(p, session, d, SUBBYTE_BAD_INDEX, index);
      break;
    default: return 0;
  }
  *which = pointer;
  if (p->model.operator_count) {
    *op = operator_before;
    r->fails_at = -1;
  }
  return 1;
}

static void check_forked(plan *p, subbyte_session *session) {
#if !defined(__SANITIZE_THREAD__) /* which forbids threads after a fork, and waits for them */
  int status;
  const pid_t child = fork();
  CHECK(child >= 0);
  if (child == 0) {
    check_run(p, session, 7, 0);
    check_run(p, session, 8, 1);
    subbyte_session_destroy(session);
    _exit(0);
  }
  CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0);
#else
  (void)p, (void)session;
#endif
}

static const char *run_case(decisions *d) {
  static plan p;
  subbyte_session *session;
  const uint32_t fault = choose(d, 2) ? choose(d, FAULTS) : NO_FAULT;
  const int32_t threads = choose(d, 3) ? 1 + (int32_t)choose(d, 4) : 1;
  uint32_t runs, i;
  int refused;
  draw_plan(&p, d);
  refused = refused_by_create(&p, d, fault, threads);
  CHECK(subbyte_session_create(&p.model, p.weights, p.model.weights_bytes, threads, &session) == SUBBYTE_OK);
  reset_states(&p);
  check_states(&p, session);
  runs = 1 + choose(d, 24);
  for (i = 0; i < runs; ++i) {
    if (choose(d, 8) == 1) {
      CHECK(subbyte_session_reset(session) == SUBBYTE_OK);
      reset_states(&p);
    }
    if (i == runs / 2) refused |= refused_by_run(&p, d, session, fault);
    check_run(&p, session, i, choose(d, 4) == 0);
  }
  if (choose(d, 64) == 1) check_forked(&p, session);
  subbyte_session_destroy(session);
  for (i = 0; i < (uint32_t)p.block_count; ++i) free(p.blocks[i]);
  return refused ? "refused" : "ran";
}

#if defined(__SANITIZE_ADDRESS__)
int __lsan_do_recoverable_leak_check(void);
enum { LEAKS_EVERY = 256 };
#endif

int main(void) {
  uint32_t length, cases = 0;
  while (fread(&length, sizeof length, 1, stdin) == 1) {
    uint8_t *bytes = (uint8_t *)malloc(length ? length : 1);
    decisions d;
    alarm(60); /* a case that hangs ends the program */
    CHECK(bytes != NULL && length <= MOST_BYTES && fread(bytes, 1, length, stdin) == length);
    d.at = bytes;
    d.end = bytes + length;
    puts(run_case(&d));
    free(bytes);
#if defined(__SANITIZE_ADDRESS__)
    if (++cases % LEAKS_EVERY == 0) CHECK(__lsan_do_recoverable_leak_check() == 0);
#else
    (void)++cases;
#endif
    fflush(stdout);
  }
  return 0;
}
