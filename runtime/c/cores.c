/* Deals the allowed CPUs to the workers of a pool, whole physical cores together.
 *
 * Each worker gets a set of its own, so that two never share a core; inside its set the system still moves it away from
 * other programs. The core on which the caller runs belongs to no worker; when the caller has moved, cores are dealt anew.
 */
#if defined(__linux__) && !defined(_GNU_SOURCE)
#define _GNU_SOURCE
#endif

#include "cores.h"

#include <stdlib.h>

#if defined(__linux__)
#include <sched.h>
#include <stdio.h>

typedef struct {
  int32_t cpu;
  int32_t core;   /* the lowest CPU that shares its physical core */
  int32_t worker; /* whose it is; -1: nobody's */
} place;

struct subbyte_cores {
  int32_t workers;
  int32_t count;
  int dealt;
  place places[1]; /* [count], sorted by core */
};

int32_t subbyte_cores_allowed(void) {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) != 0) return 1;
  return CPU_COUNT(&set);
}

int32_t subbyte_first_sibling(const char *root, int32_t cpu) {
  char path[512];
  int first = -1;
  FILE *file;
  snprintf(path, sizeof path, "%s/sys/devices/system/cpu/cpu%d/topology/thread_siblings_list", root, (int)cpu);
  file = fopen(path, "r");
  if (file == NULL) return -1;
  if (fscanf(file, "%d", &first) != 1) first = -1;
  fclose(file);
  return first;
}

static int by_core(const void *a, const void *b) {
  const place *left = (const place *)a, *right = (const place *)b;
  return left->core != right->core ? left->core - right->core : left->cpu - right->cpu;
}

subbyte_cores *subbyte_cores_create(int32_t workers) {
  cpu_set_t set;
  subbyte_cores *cores;
  int32_t cpu;
  if (sched_getaffinity(0, sizeof set, &set) != 0 || CPU_COUNT(&set) <= workers) return NULL;
  cores = (subbyte_cores *)calloc(1, sizeof *cores + sizeof(place) * (size_t)CPU_COUNT(&set));
  if (cores == NULL) return NULL;
  cores->workers = workers;
  for (cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (CPU_ISSET(cpu, &set)) {
      place *p = &cores->places[cores->count++];
      p->cpu = cpu;
      p->core = subbyte_first_sibling("", cpu);
      if (p->core < 0) p->core = cpu;
      p->worker = -1;
    }
  }
  qsort(cores->places, (size_t)cores->count, sizeof(place), by_core);
  return cores;
}

int subbyte_cores_deal(subbyte_cores *cores) {
  const int32_t cpu = sched_getcpu();
  int32_t i, mine = -1, others = 0, next = -1, last_core = -1, by_physical_core;
  for (i = 0; i < cores->count; ++i) {
    if (cores->places[i].cpu == cpu) mine = i;
  }
  if (cores->dealt && (mine < 0 || cores->places[mine].worker < 0)) return 0;

  for (i = 0; i < cores->count; ++i) {
    if (mine >= 0 && cores->places[i].core == cores->places[mine].core) continue;
    if (cores->places[i].core != last_core) ++others;
    last_core = cores->places[i].core;
  }
  by_physical_core = others >= cores->workers; /* else some must make do with a sibling of another thread's core */
  last_core = -1;
  for (i = 0; i < cores->count; ++i) {
    place *p = &cores->places[i];
    if (i == mine || (by_physical_core && mine >= 0 && p->core == cores->places[mine].core)) {
      p->worker = -1;
      continue;
    }
    if (!by_physical_core || p->core != last_core) next = (next + 1) % cores->workers;
    last_core = p->core;
    p->worker = next;
  }
  cores->dealt = 1;
  return 1;
}

void subbyte_cores_bind(const subbyte_cores *cores, int32_t worker, pthread_t thread) {
  cpu_set_t set;
  int32_t i;
  CPU_ZERO(&set);
  for (i = 0; i < cores->count; ++i) {
    if (cores->places[i].worker == worker) CPU_SET(cores->places[i].cpu, &set);
  }
  (void)pthread_setaffinity_np(thread, sizeof set, &set); /* refused: the thread stays where the system puts it */
}

void subbyte_cores_destroy(subbyte_cores *cores) { free(cores); }
#else
#if defined(_WIN32)
#include <windows.h>
int32_t subbyte_cores_allowed(void) {
  SYSTEM_INFO info;
  GetSystemInfo(&info);
  return (int32_t)info.dwNumberOfProcessors;
}
#else
#include <unistd.h>
int32_t subbyte_cores_allowed(void) {
  const long count = sysconf(_SC_NPROCESSORS_ONLN);
  return count > 0 ? (int32_t)count : 1;
}
#endif
subbyte_cores *subbyte_cores_create(int32_t workers) {
  (void)workers;
  return NULL;
}
void subbyte_cores_destroy(subbyte_cores *cores) { (void)cores; }
#endif
