/* A parking thread pool: workers take parts of a job from one atomic word, spin for a short bounded time, then sleep.
 *
 * The word holds the number of the job in its high half and the tiles left in its low half. Whoever takes tiles does it by
 * compare-and-swap, so a worker that wakes late finds nothing left and nobody waits for it. Parts shrink as the job runs
 * out, so that a thread the system has put aside holds up little.
 */
#if defined(__linux__) && !defined(_GNU_SOURCE)
#define _GNU_SOURCE /* affinity */
#endif

#include <stdlib.h>

#include "cores.h"
#include "internal.h"

#if defined(_WIN32)
#include <windows.h>
typedef HANDLE thread_handle;
typedef SRWLOCK mutex;
typedef CONDITION_VARIABLE condition;
#define THREAD_RESULT DWORD WINAPI
static void mutex_create(mutex *m) { InitializeSRWLock(m); }
static void mutex_destroy(mutex *m) { (void)m; }
static void mutex_lock(mutex *m) { AcquireSRWLockExclusive(m); }
static void mutex_unlock(mutex *m) { ReleaseSRWLockExclusive(m); }
static void condition_create(condition *c) { InitializeConditionVariable(c); }
static void condition_destroy(condition *c) { (void)c; }
static void condition_wait(condition *c, mutex *m) { SleepConditionVariableSRW(c, m, INFINITE, 0); }
static void condition_wake_all(condition *c) { WakeAllConditionVariable(c); }
static void thread_join(thread_handle t) {
  WaitForSingleObject(t, INFINITE);
  CloseHandle(t);
}
#else
#include <pthread.h>
typedef pthread_t thread_handle;
typedef pthread_mutex_t mutex;
typedef pthread_cond_t condition;
#define THREAD_RESULT void *
static void mutex_create(mutex *m) { pthread_mutex_init(m, NULL); }
static void mutex_destroy(mutex *m) { pthread_mutex_destroy(m); }
static void mutex_lock(mutex *m) { pthread_mutex_lock(m); }
static void mutex_unlock(mutex *m) { pthread_mutex_unlock(m); }
static void condition_create(condition *c) { pthread_cond_init(c, NULL); }
static void condition_destroy(condition *c) { pthread_cond_destroy(c); }
static void condition_wait(condition *c, mutex *m) { pthread_cond_wait(c, m); }
static void condition_wake_all(condition *c) { pthread_cond_broadcast(c); }
static void thread_join(thread_handle t) { pthread_join(t, NULL); }
#endif

/* How long a thread without work spins before it sleeps: a few times what waking a sleeping one costs. */
#define SPIN_NS 50000
#define PAUSES_BETWEEN_CLOCKS 16

typedef struct {
  subbyte_pool *pool;
  int32_t index; /* 1 .. threads-1 */
  thread_handle handle;
} worker;

struct subbyte_pool {
  uint64_t work; /* atomic: job number << 32 | tiles left */
  char apart[SUBBYTE_ALIGNMENT - sizeof(uint64_t)];
  subbyte_job job; /* this and the next two are fixed while tiles of the job run */
  void *context;
  int32_t tiles;
  int32_t done;         /* atomic: tiles finished */
  int32_t asleep;       /* atomic: workers that sleep or are about to */
  int32_t owner_asleep; /* atomic: the caller sleeps until the job is done */
  int32_t stop;         /* atomic */
  int32_t threads;
  uint64_t spin_ns;
  mutex lock;
  condition work_ready;
  condition job_done;
  subbyte_cores *cores; /* NULL where threads are not kept apart */
  int32_t started;      /* workers that run */
  worker workers[1];    /* [threads - 1], allocated with the pool */
};

static void pause_briefly(void) {
  int32_t i;
  for (i = 0; i < PAUSES_BETWEEN_CLOCKS; ++i) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__) || defined(__arm__)
    __asm__ volatile("yield" ::: "memory");
#else
    __asm__ volatile("" ::: "memory");
#endif
  }
}

static uint32_t tiles_left(subbyte_pool *pool) { return (uint32_t)__atomic_load_n(&pool->work, __ATOMIC_SEQ_CST); }

static int job_is_done(subbyte_pool *pool) { return __atomic_load_n(&pool->done, __ATOMIC_SEQ_CST) == pool->tiles; }

/* Takes the last tiles that are left: half of a fair share, at least one. */
static int take_part(subbyte_pool *pool, int32_t *begin, int32_t *end) {
  uint64_t work = __atomic_load_n(&pool->work, __ATOMIC_ACQUIRE);
  for (;;) {
    const uint32_t left = (uint32_t)work;
    uint32_t part = left / (2u * (uint32_t)pool->threads);
    if (left == 0) return 0;
    if (part == 0) part = 1;
    if (__atomic_compare_exchange_n(&pool->work, &work, work - part, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE)) {
      *begin = (int32_t)(left - part);
      *end = (int32_t)left;
      return 1;
    }
  }
}

static void run_parts(subbyte_pool *pool, int32_t index) {
  int32_t begin, end;
  while (take_part(pool, &begin, &end)) {
    const int32_t tiles = pool->tiles; /* read now: after the last tile the owner may start another job */
    pool->job(pool->context, index, begin, end);
    if (__atomic_add_fetch(&pool->done, end - begin, __ATOMIC_SEQ_CST) == tiles && index != 0 &&
        __atomic_load_n(&pool->owner_asleep, __ATOMIC_SEQ_CST)) {
      mutex_lock(&pool->lock);
      condition_wake_all(&pool->job_done);
      mutex_unlock(&pool->lock);
    }
  }
}

static int has_work_or_stops(subbyte_pool *pool) {
  return tiles_left(pool) != 0 || __atomic_load_n(&pool->stop, __ATOMIC_SEQ_CST);
}

static THREAD_RESULT run_worker(void *argument) {
  const worker *me = (const worker *)argument;
  subbyte_pool *pool = me->pool;
  while (!__atomic_load_n(&pool->stop, __ATOMIC_SEQ_CST)) {
    const uint64_t start = subbyte_now();
    run_parts(pool, me->index);
    while (!has_work_or_stops(pool) && subbyte_now() - start < pool->spin_ns) pause_briefly();
    if (has_work_or_stops(pool)) continue;
    mutex_lock(&pool->lock);
    __atomic_add_fetch(&pool->asleep, 1, __ATOMIC_SEQ_CST);
    while (!has_work_or_stops(pool)) condition_wait(&pool->work_ready, &pool->lock);
    __atomic_sub_fetch(&pool->asleep, 1, __ATOMIC_SEQ_CST);
    mutex_unlock(&pool->lock);
  }
  return 0;
}

static int start_worker(worker *w) {
#if defined(_WIN32)
  w->handle = CreateThread(NULL, 0, run_worker, w, 0, NULL);
  return w->handle != NULL;
#else
  return pthread_create(&w->handle, NULL, run_worker, w) == 0;
#endif
}

subbyte_pool *subbyte_pool_create(int32_t threads) {
  const size_t bytes = sizeof(subbyte_pool) + sizeof(worker) * (size_t)threads;
  subbyte_pool *pool = (subbyte_pool *)calloc(1, bytes);
  int32_t i;
  if (pool == NULL) return NULL;
  pool->threads = threads;
  pool->cores = subbyte_cores_create(threads - 1);
  pool->spin_ns = subbyte_cores_allowed() >= threads ? SPIN_NS : 0; /* never spin on a core that another thread needs */
  mutex_create(&pool->lock);
  condition_create(&pool->work_ready);
  condition_create(&pool->job_done);
  for (i = 1; i < threads; ++i) {
    worker *w = &pool->workers[i - 1];
    w->pool = pool;
    w->index = i;
    if (!start_worker(w)) {
      subbyte_pool_destroy(pool);
      return NULL;
    }
    ++pool->started;
  }
  return pool;
}

void subbyte_pool_enter(subbyte_pool *pool) {
#if defined(__linux__)
  int32_t i;
  if (pool->cores == NULL || !subbyte_cores_deal(pool->cores)) return;
  for (i = 0; i < pool->started; ++i) subbyte_cores_bind(pool->cores, i, pool->workers[i].handle);
#else
  (void)pool;
#endif
}

void subbyte_pool_run(subbyte_pool *pool, subbyte_job job, void *context, int32_t tiles) {
  const uint64_t number = (__atomic_load_n(&pool->work, __ATOMIC_RELAXED) >> 32) + 1;
  uint64_t start;
  pool->job = job;
  pool->context = context;
  pool->tiles = tiles;
  __atomic_store_n(&pool->done, 0, __ATOMIC_RELAXED);
  __atomic_store_n(&pool->work, number << 32 | (uint32_t)tiles, __ATOMIC_SEQ_CST);
  if (__atomic_load_n(&pool->asleep, __ATOMIC_SEQ_CST)) {
    mutex_lock(&pool->lock);
    condition_wake_all(&pool->work_ready);
    mutex_unlock(&pool->lock);
  }
  run_parts(pool, 0);
  start = subbyte_now();
  while (!job_is_done(pool)) {
    if (subbyte_now() - start < pool->spin_ns) {
      pause_briefly();
      continue;
    }
    mutex_lock(&pool->lock);
    __atomic_store_n(&pool->owner_asleep, 1, __ATOMIC_SEQ_CST);
    while (!job_is_done(pool)) condition_wait(&pool->job_done, &pool->lock);
    __atomic_store_n(&pool->owner_asleep, 0, __ATOMIC_SEQ_CST);
    mutex_unlock(&pool->lock);
  }
}

void subbyte_pool_destroy(subbyte_pool *pool) {
  int32_t i;
  if (pool == NULL) return;
  mutex_lock(&pool->lock);
  __atomic_store_n(&pool->stop, 1, __ATOMIC_SEQ_CST);
  condition_wake_all(&pool->work_ready);
  mutex_unlock(&pool->lock);
  for (i = 0; i < pool->started; ++i) thread_join(pool->workers[i].handle);
  subbyte_cores_destroy(pool->cores);
  condition_destroy(&pool->work_ready);
  condition_destroy(&pool->job_done);
  mutex_destroy(&pool->lock);
  free(pool);
}
