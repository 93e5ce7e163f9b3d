/* Sessions: a model with its own arena, a workspace for each thread, and a thread pool. */
#include <stdlib.h>

#include "internal.h"

/* Whether an operator is worth distributing over threads is found out by trying: small ones are faster on one thread.
 * But what one costs depends on the others: threads that share all of them find their part of the data in their caches.
 * So whole runs are tried next, two at a time in each of two ways, and the faster way stays. Runs with a hook do not count. */
enum { TRIALS = 6, SURELY_SHARED_NS = 100000 }; /* ns */
enum { EACH_ITS_OWN_WAY, ALL_SHARED, WAYS, RUNS_A_WAY = 4, TRIAL_RUNS = TRIALS + WAYS * RUNS_A_WAY };

typedef struct {
  uint64_t shared_ns; /* the fastest trial on all threads, 0 before the first */
  uint64_t alone_ns;  /* the fastest trial on the calling thread */
  int32_t trials;
} trial;

struct subbyte_session {
  const subbyte_model *model;
  const void *weights;
  subbyte_pool *pool; /* NULL with one thread */
  int32_t threads;
  trial *trials; /* [operator_count], with a pool only */
  int32_t runs;  /* so far, up to TRIAL_RUNS */
  uint64_t way_ns[WAYS]; /* the fastest run, 0 before the first */
  void *block;              /* one allocation: arena, state, then a workspace for each thread */
  uint8_t *arena;
  uint8_t *workspaces;
  size_t workspace_stride;
  void *state;             /* [states->bytes], where the model has one */
  int32_t running;         /* atomic: a run is under way */
  subbyte_failure failure; /* of the last run that failed */
};

/* One operator on its way through the pool. */
typedef struct {
  const subbyte_session *session;
  const subbyte_buffers *buffers;
  const subbyte_operator *op;
  int32_t status; /* atomic: the first failure */
} operator_job;

/* Workspaces of two threads are kept apart by more than a cache line, so that prefetchers do not share them either. */
static size_t padded(size_t bytes) { return (bytes + 4 * SUBBYTE_ALIGNMENT - 1) & ~(size_t)(4 * SUBBYTE_ALIGNMENT - 1); }

int32_t subbyte_session_create(const subbyte_model *model, const void *weights, size_t weights_bytes, int32_t threads,
                               subbyte_session **session) {
  subbyte_session *made;
  size_t arena, state, stride, total;
  int32_t status;
  if (session == NULL) return SUBBYTE_BAD_ARGUMENT;
  *session = NULL;
  if (model == NULL || threads < 1 || threads > SUBBYTE_MAX_THREADS) return SUBBYTE_BAD_ARGUMENT;
  if (model->abi != SUBBYTE_ABI) return SUBBYTE_BAD_ABI;
  if (weights_bytes != model->weights_bytes) return SUBBYTE_BAD_ARGUMENT;
  if (weights_bytes && (weights == NULL || ((uintptr_t)weights & (SUBBYTE_ALIGNMENT - 1)) != 0)) return SUBBYTE_BAD_ARGUMENT;

  status = subbyte_ask_for(model);
  if (status != SUBBYTE_OK) return status;

  made = (subbyte_session *)calloc(1, sizeof *made);
  if (made == NULL) return SUBBYTE_NO_MEMORY;
  arena = padded(model->arena_bytes);
  stride = padded(model->workspace_bytes);
  state = model->states ? padded(model->states->bytes) : 0;
  total = arena + state + stride * (size_t)threads + SUBBYTE_ALIGNMENT;
  made->model = model;
  made->weights = weights;
  made->threads = threads;
  made->workspace_stride = stride;
  made->block = calloc(1, total); /* zeroed: what a kernel leaves unwritten is the same in every run */
  if (made->block != NULL) {
    made->arena = (uint8_t *)(((uintptr_t)made->block + SUBBYTE_ALIGNMENT - 1) & ~(uintptr_t)(SUBBYTE_ALIGNMENT - 1));
    made->state = made->arena + arena;
    made->workspaces = made->arena + arena + state;
    if (threads > 1) made->trials = (trial *)calloc((size_t)model->operator_count + 1, sizeof(trial));
    if (made->trials != NULL) made->pool = subbyte_pool_create(threads);
  }
  if (made->block == NULL || (threads > 1 && made->pool == NULL)) {
    subbyte_session_destroy(made);
    return SUBBYTE_NO_MEMORY;
  }
  status = subbyte_session_reset(made);
  if (status != SUBBYTE_OK) {
    subbyte_session_destroy(made);
    return status;
  }
  *session = made;
  return SUBBYTE_OK;
}

static void run_part(void *context, int32_t worker, int32_t begin, int32_t end) {
  operator_job *job = (operator_job *)context;
  subbyte_buffers mine = *job->buffers;
  int32_t status;
  mine.workspace = job->session->workspaces + job->session->workspace_stride * (size_t)worker;
  status = subbyte_run_tiles(job->op, &mine, begin, end);
  if (status != SUBBYTE_OK) __atomic_store_n(&job->status, status, __ATOMIC_RELAXED);
}

static int32_t run_shared(subbyte_session *session, const subbyte_buffers *buffers, const subbyte_operator *op) {
  operator_job job;
  job.session = session;
  job.buffers = buffers;
  job.op = op;
  job.status = SUBBYTE_OK;
  subbyte_pool_run(session->pool, run_part, &job, op->tiles);
  return __atomic_load_n(&job.status, __ATOMIC_RELAXED);
}

static void keep_fastest(uint64_t *fastest, uint64_t ns) {
  if (*fastest == 0 || ns < *fastest) *fastest = ns;
}

/* The way of this run: trials of single operators come first, then pairs of runs in either way in turn. */
static int32_t way_of_run(const subbyte_session *session) {
  if (session->runs < TRIALS) return EACH_ITS_OWN_WAY;
  if (session->runs < TRIAL_RUNS) return (session->runs - TRIALS) / 2 % WAYS;
  return session->way_ns[ALL_SHARED] < session->way_ns[EACH_ITS_OWN_WAY] ? ALL_SHARED : EACH_ITS_OWN_WAY;
}

static int32_t run_operator(subbyte_session *session, const subbyte_buffers *buffers, int32_t index, int32_t way) {
  const subbyte_operator *op = &session->model->operators[index];
  trial *t = &session->trials[index];
  uint64_t start;
  int32_t status;
  int alone;
  if (op->tiles <= 1) return subbyte_run_tiles(op, buffers, 0, op->tiles);
  if (way == ALL_SHARED) return run_shared(session, buffers, op);
  if (t->trials == TRIALS) {
    alone = t->alone_ns != 0 && t->alone_ns <= t->shared_ns;
    return alone ? subbyte_run_tiles(op, buffers, 0, op->tiles) : run_shared(session, buffers, op);
  }
  alone = t->trials % 2;
  start = subbyte_now();
  status = alone ? subbyte_run_tiles(op, buffers, 0, op->tiles) : run_shared(session, buffers, op);
  keep_fastest(alone ? &t->alone_ns : &t->shared_ns, subbyte_now() - start);
  t->trials = t->alone_ns == 0 && t->shared_ns > SURELY_SHARED_NS ? TRIALS : t->trials + 1;
  return status;
}

/* A run on all threads. */
static int32_t run_on_pool(subbyte_session *session, subbyte_buffers *buffers, subbyte_hook hook, void *user) {
  uint64_t began;
  int32_t i, way;
  int32_t status = subbyte_begin(session->model, buffers);
  if (status != SUBBYTE_OK) return subbyte_failed(session->model, buffers, -1, status);
  subbyte_pool_enter(session->pool);
  way = way_of_run(session);
  began = subbyte_now();
  for (i = 0; i < session->model->operator_count; ++i) {
    const uint64_t start = hook ? subbyte_now() : 0;
    status = run_operator(session, buffers, i, way);
    if (status != SUBBYTE_OK) return subbyte_end(session->model, buffers, subbyte_failed(session->model, buffers, i, status));
    if (hook) hook(user, i, subbyte_now() - start);
  }
  if (session->runs < TRIAL_RUNS && hook == NULL) {
    if (session->runs >= TRIALS) keep_fastest(&session->way_ns[way], subbyte_now() - began);
    ++session->runs;
  }
  return subbyte_end(session->model, buffers, SUBBYTE_OK);
}

static subbyte_buffers buffers_of(const subbyte_session *session, const void *const *inputs, void *const *outputs) {
  subbyte_buffers buffers = {0};
  buffers.weights = session->weights;
  buffers.arena = session->arena;
  buffers.workspace = session->workspaces;
  buffers.state = session->state;
  buffers.inputs = inputs;
  buffers.outputs = outputs;
  return buffers;
}

int32_t subbyte_session_run(subbyte_session *session, const void *const *inputs, void *const *outputs, subbyte_hook hook,
                            void *user) {
  subbyte_buffers buffers;
  int32_t status;
  if (session == NULL) return SUBBYTE_BAD_ARGUMENT;
  if (__atomic_exchange_n(&session->running, 1, __ATOMIC_ACQUIRE)) return SUBBYTE_BUSY;
  buffers = buffers_of(session, inputs, outputs);
  status = session->pool == NULL ? subbyte_run(session->model, &buffers, hook, user)
                                 : run_on_pool(session, &buffers, hook, user);
  if (status != SUBBYTE_OK) session->failure = buffers.failure;
  __atomic_store_n(&session->running, 0, __ATOMIC_RELEASE);
  return status;
}

int32_t subbyte_session_reset(subbyte_session *session) {
  subbyte_buffers buffers;
  if (session == NULL) return SUBBYTE_BAD_ARGUMENT;
  buffers = buffers_of(session, NULL, NULL);
  return subbyte_reset(session->model, &buffers);
}

void *subbyte_session_state(subbyte_session *session, int32_t index) {
  const subbyte_states *states = session ? session->model->states : NULL;
  if (states == NULL || index < 0 || index >= states->count) return NULL;
  return (uint8_t *)session->state + states->states[index].offset;
}

const subbyte_model *subbyte_session_model(const subbyte_session *session) { return session->model; }

const subbyte_failure *subbyte_session_failure(const subbyte_session *session) { return session ? &session->failure : NULL; }

const void *subbyte_session_arena(const subbyte_session *session) { return session ? session->arena : NULL; }

void subbyte_session_destroy(subbyte_session *session) {
  if (session == NULL) return;
  subbyte_pool_destroy(session->pool);
  free(session->trials);
  free(session->block);
  free(session);
}
