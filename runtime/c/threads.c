/* A parking thread pool: workers take parts of a job from shares, spin for a short bounded time, then sleep.
 *
 * Every thread has a share of its own, always the same tiles of a job of that size: what it reads it has mostly written
 * itself, in the operator before, and has it in its own cache. It takes them from the front, three quarters of what is left
 * at a time; when none are left it takes half of another's, from the back. So a thread that sleeps, or that the system has put
 * aside, holds up little. A share is one atomic word, changed by compare-and-swap: the number of the job in its high half,
 * then the first unit left and the one after the last. A unit is one tile, or several where a job has very many.
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
typedef int process;
static process this_process(void) { return 0; } /* there is no fork */
#else
#include <pthread.h>
#include <unistd.h>
typedef pid_t process;
static process this_process(void) { return getpid(); }
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

enum { MOST_UNITS = 65535 };

typedef struct {
  uint64_t work; /* atomic: job number << 32 | first unit << 16 | end */
  char apart[SUBBYTE_ALIGNMENT - sizeof(uint64_t)];
} share;

typedef struct {
  subbyte_pool *pool;
  int32_t index; /* 1 .. threads-1 */
  thread_handle handle;
} worker;

struct subbyte_pool {
  share *shares;   /* [threads], after the workers */
  subbyte_job job; /* this and the next three are fixed while tiles of the job run */
  void *context;
  int32_t tiles;
  int32_t unit;         /* tiles in a unit */
  uint32_t number;      /* of the job */
  int32_t done;         /* atomic: tiles finished */
  int32_t asleep;       /* atomic: workers that sleep or are about to */
  int32_t owner_asleep; /* atomic: the caller sleeps until the job is done */
  int32_t stop;         /* atomic */
  int32_t threads;
  uint64_t spin_ns;
  mutex lock;
  condition work_ready;
  condition job_done;
  process made_in;      /* the process that has the workers */
  subbyte_cores *cores; /* NULL where threads are not kept apart */
  int32_t started;      /* workers that run */
  worker workers[1];    /* [threads - 1], allocated with the pool */
};

/* A forked child has the memory of the pool but none of its workers, and perhaps a lock that one of them held. */
static int has_workers(const subbyte_pool *pool) { return pool->made_in == this_process(); }

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

static uint32_t first_of(uint64_t work) { return (uint32_t)work >> 16; }
static uint32_t end_of(uint64_t work) { return (uint32_t)work & MOST_UNITS; }

static uint64_t packed(uint64_t number, uint32_t first, uint32_t end) { return number << 32 | first << 16 | end; }

static int has_work(subbyte_pool *pool) {
  int32_t i;
  for (i = 0; i < pool->threads; ++i) {
    const uint64_t work = __atomic_load_n(&pool->shares[i].work, __ATOMIC_SEQ_CST);
    if (first_of(work) < end_of(work)) return 1;
  }
  return 0;
}

static int job_is_done(subbyte_pool *pool) { return __atomic_load_n(&pool->done, __ATOMIC_SEQ_CST) == pool->tiles; }

/* Takes a part of what is left of one share, at least a unit: the first of them if it is the thread's own, else the last. */
static int take_part(share *from, int own, uint32_t *first, uint32_t *end) {
  uint64_t work = __atomic_load_n(&from->work, __ATOMIC_ACQUIRE);
  while (first_of(work) < end_of(work)) {
    const uint32_t units = end_of(work) - first_of(work);
    const uint32_t part = own ? units - units / 4 : (units + 1) / 2;
    const uint64_t left = own ? work + ((uint64_t)part << 16) : work - part;
    if (!__atomic_compare_exchange_n(&from->work, &work, left, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE)) continue;
    *first = own ? first_of(work) : end_of(left);
    *end = own ? first_of(left) : end_of(work);
    return 1;
  }
  return 0;
}

static int take_any(subbyte_pool *pool, int32_t index, uint32_t *first, uint32_t *end) {
  int32_t i;
  for (i = 0; i < pool->threads; ++i) {
    const int32_t whose = index + i < pool->threads ? index + i : index + i - pool->threads;
    if (take_part(&pool->shares[whose], i == 0, first, end)) return 1;
  }
  return 0;
}

static void run_parts(subbyte_pool *pool, int32_t index) {
  uint32_t first, last;
  while (take_any(pool, index, &first, &last)) {
    const int32_t tiles = pool->tiles; /* read now: after the last tile the owner may start another job */
    const int32_t begin = (int32_t)first * pool->unit;
    const int32_t end = (int32_t)last * pool->unit < tiles ? (int32_t)last * pool->unit : tiles;
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
  return has_work(pool) || __atomic_load_n(&pool->stop, __ATOMIC_SEQ_CST);
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
  const size_t bytes = sizeof(subbyte_pool) + (sizeof(worker) + sizeof(share)) * (size_t)threads + SUBBYTE_ALIGNMENT;
  subbyte_pool *pool = (subbyte_pool *)calloc(1, bytes);
  uintptr_t behind;
  int32_t i;
  if (pool == NULL) return NULL;
  behind = (uintptr_t)&pool->workers[threads] + SUBBYTE_ALIGNMENT - 1;
  pool->shares = (share *)(behind & ~(uintptr_t)(SUBBYTE_ALIGNMENT - 1));
  pool->threads = threads;
  pool->made_in = this_process();
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
  if (pool->cores == NULL || !subbyte_cores_deal(pool->cores) || !has_workers(pool)) return;
  for (i = 0; i < pool->started; ++i) subbyte_cores_bind(pool->cores, i, pool->workers[i].handle);
#else
  (void)pool;
#endif
}

void subbyte_pool_run(subbyte_pool *pool, subbyte_job job, void *context, int32_t tiles) {
  const uint32_t threads = (uint32_t)pool->threads;
  uint64_t start;
  uint32_t units, i;
  pool->job = job;
  pool->context = context;
  pool->tiles = tiles;
  pool->unit = 1 + (tiles - 1) / MOST_UNITS;
  ++pool->number;
  __atomic_store_n(&pool->done, 0, __ATOMIC_RELAXED);
  units = ((uint32_t)tiles + (uint32_t)pool->unit - 1) / (uint32_t)pool->unit;
  for (i = threads; i-- > 0;)
    __atomic_store_n(&pool->shares[i].work, packed(pool->number, units * i / threads, units * (i + 1) / threads),
                     __ATOMIC_SEQ_CST);
  if (__atomic_load_n(&pool->asleep, __ATOMIC_SEQ_CST) && has_workers(pool)) {
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
  if (has_workers(pool)) {
    mutex_lock(&pool->lock);
    __atomic_store_n(&pool->stop, 1, __ATOMIC_SEQ_CST);
    condition_wake_all(&pool->work_ready);
    mutex_unlock(&pool->lock);
    for (i = 0; i < pool->started; ++i) thread_join(pool->workers[i].handle);
    condition_destroy(&pool->work_ready);
    condition_destroy(&pool->job_done);
    mutex_destroy(&pool->lock);
  }
  subbyte_cores_destroy(pool->cores);
  free(pool);
}
