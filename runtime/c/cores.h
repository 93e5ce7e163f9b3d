/* Which cores each worker of a pool may run on: disjoint sets, none of them the caller's core. */
#ifndef SUBBYTE_CORES_H
#define SUBBYTE_CORES_H

#include <stdint.h>

/* Logical CPUs this process may run on; 1 where that is not known. */
int32_t subbyte_cores_allowed(void);

typedef struct subbyte_cores subbyte_cores;

/* NULL where threads cannot be bound, or when there are not enough cores to give each worker its own. */
subbyte_cores *subbyte_cores_create(int32_t workers);

#if defined(__linux__)
#include <pthread.h>
/* The lowest CPU that shares a physical core with `cpu`; -1 where the system does not say. `root` is "" but in tests. */
int32_t subbyte_first_sibling(const char *root, int32_t cpu);

/* Deals the cores anew if the calling thread has moved onto a worker's; returns 1 when workers must be bound again. */
int subbyte_cores_deal(subbyte_cores *cores);

/* Binds the thread of worker 0 .. workers-1 to its share. */
void subbyte_cores_bind(const subbyte_cores *cores, int32_t worker, pthread_t thread);
#endif

void subbyte_cores_destroy(subbyte_cores *cores);

#endif
