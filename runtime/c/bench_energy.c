/* Joules of RAPL counters through Linux powercap: package and DRAM domains, as runtime/rapl.py reads them.
 *
 * A counter holds microjoules, wraps at max_energy_range_uj, and moves about once a millisecond (Intel SDM, volume 3,
 * 15.10). Core, uncore and psys are left out: the first two are parts of the package, the last includes it. Where Linux shows
 * a zone for each die of a package but the processor has one counter for all of them, it counts once.
 */
#if !defined(_POSIX_C_SOURCE)
#define _POSIX_C_SOURCE 200809L
#endif

#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#include "bench.h"
#include "internal.h"

enum { MIN_TICKS = 100, MOST_FOLDERS = 256 };
#if !defined(BENCH_POLL_S)
#define BENCH_POLL_S 1.0 /* far below the time in which a counter wraps: a minute at the least */
#endif
static const double TICK_S = 0.001;
static const double POLL_S = BENCH_POLL_S;

typedef struct {
  char name[64];
  char path[600]; /* of energy_uj */
  uint64_t range, last, total; /* uJ */
} domain;

typedef struct {
  domain domains[BENCH_MOST_DOMAINS];
  int count;
  char mirrors[BENCH_MOST_DOMAINS][64]; /* names of zones that show one of these counters again */
  int mirror_count;
  char source[BENCH_SOURCE];
  char *missing; /* why it failed */
  size_t bytes;
} rapl;

typedef struct {
  double joules, window_s;
  long ticks;
} reading;

static int refuse(rapl *r, const char *format, ...) {
  const char *lead = "no energy counter can be read on this machine. rapl: ";
  size_t used = 0;
  va_list values;
  if (r->count == 0) used = (size_t)snprintf(r->missing, r->bytes, "%s", lead);
  va_start(values, format);
  if (used < r->bytes) used += (size_t)vsnprintf(r->missing + used, r->bytes - used, format, values);
  va_end(values);
  if (r->count == 0 && used < r->bytes)
    snprintf(r->missing + used, r->bytes - used,
             " hwmon: this program reads no board sensors: use `subbyte bench --meter hwmon`.");
  return -1;
}

/* ---- files ---- */

/* "Grant it ... chmod a+r ROOT/intel-rapl*\/FILE": this file of every zone. */
static int refuse_closed(rapl *r, const char *path) {
  const char *file = strrchr(path, '/');
  size_t root = (size_t)(file - path);
  while (root > 0 && path[root - 1] != '/') --root;
  return refuse(r,
                "cannot read %s: permission denied. Grant it until the next boot with: sudo chmod a+r "
                "%.*sintel-rapl*%s%s, or run as root.",
                path, (int)root, path, file,
                strcmp(file, "/energy_uj") == 0 ? " (it is closed by default, CVE-2020-8694)" : "");
}

/* Whether a zone is a link whose target is not there. */
static int points_nowhere(const char *path) {
  char folder[600];
  struct stat known;
  snprintf(folder, sizeof folder, "%.*s", (int)(strrchr(path, '/') - path), path);
  return stat(folder, &known) != 0 && errno == ENOENT;
}

static int read_line(rapl *r, const char *path, char *line, size_t bytes) {
  FILE *file = fopen(path, "r");
  int error = errno;
  if (file != NULL) {
    const size_t got = fread(line, 1, bytes - 1, file);
    error = ferror(file) ? errno : 0;
    line[got] = '\0';
    line[strcspn(line, "\n")] = '\0';
    fclose(file);
    if (!error) return 0;
  }
  if (error == EACCES || error == EPERM) return refuse_closed(r, path);
  if (error == ENOENT && points_nowhere(path))
    return refuse(r,
                  "%.*s points nowhere. The powercap tree is masked, as container runtimes do. Measure outside of the "
                  "container, or start it with `docker run --security-opt systempaths=unconfined` or `podman run "
                  "--security-opt unmask=/sys/devices/virtual/powercap`.",
                  (int)(strrchr(path, '/') - path), path);
  return refuse(r, "cannot read %s: %s. Is its driver loaded?", path, strerror(error));
}

static int read_uj(rapl *r, const char *path, uint64_t *uj) {
  char line[64];
  if (read_line(r, path, line, sizeof line) != 0) return -1;
  errno = 0;
  *uj = strtoull(line, NULL, 10);
  if (*line == '\0' || line[strspn(line, "0123456789")] != '\0' || errno != 0)
    return refuse(r, "%s holds '%.40s', expected a number of microjoules", path, line);
  return 0;
}

static int read_counter(rapl *r, const domain *d, uint64_t *uj) {
  if (read_uj(r, d->path, uj) != 0) return -1;
  if (*uj > d->range)
    return refuse(r, "%s holds %" PRIu64 ", expected 0 .. %" PRIu64 ", its max_energy_range_uj", d->path, *uj, d->range);
  return 0;
}

/* intel-rapl before intel-rapl-mmio, which shows the same package again. */
static int by_name(const void *a, const void *b) {
  const char *left = *(char *const *)a, *right = *(char *const *)b;
  const int first = strstr(left, "mmio") != NULL, second = strstr(right, "mmio") != NULL;
  return first != second ? first - second : strcmp(left, right);
}

/* Names of the folders of domains, sorted; returns how many. */
static int folders(const char *root, char **names) {
  DIR *listed = opendir(root);
  struct dirent *entry;
  int count = 0;
  while (listed != NULL && count < MOST_FOLDERS && (entry = readdir(listed)) != NULL) {
    if (strncmp(entry->d_name, "intel-rapl", 10) != 0 || strchr(entry->d_name, ':') == NULL) continue;
    names[count] = (char *)bench_allocate(strlen(entry->d_name) + 1);
    strcpy(names[count++], entry->d_name);
  }
  if (listed != NULL) closedir(listed);
  qsort(names, (size_t)count, sizeof *names, by_name);
  return count;
}

/* The name of a zone that counts: its own, or "dram" with that of its package; "" for others. */
static int name_of(rapl *r, const char *root, const char *folder, char *name, size_t bytes) {
  char path[600], kind[64];
  snprintf(path, sizeof path, "%.300s/%.200s/name", root, folder);
  name[0] = '\0';
  if (read_line(r, path, kind, sizeof kind) != 0) return -1;
  if (strncmp(kind, "package", 7) == 0) {
    snprintf(name, bytes, "%s", kind);
  } else if (strcmp(kind, "dram") == 0) { /* intel-rapl:0:2 is a part of intel-rapl:0 */
    snprintf(path, sizeof path, "%.300s/%.*s/name", root, (int)(strrchr(folder, ':') - folder), folder);
    if (read_line(r, path, kind, sizeof kind) != 0) return -1;
    if (strncmp(kind, "package", 7) == 0)
      snprintf(name, bytes, "dram%.59s", kind + 7);
    else
      snprintf(name, bytes, "%s", kind);
  }
  return 0;
}

static size_t package_of(const char *name) {
  const char *die = strstr(name, "-die-");
  return die != NULL ? (size_t)(die - name) : strlen(name);
}

/* 1: two dies of a package show one counter, read between two readings of the other, it is between them; -1: failed. */
static int mirrors(rapl *r, const domain *d, const domain *other) {
  const size_t length = package_of(d->name);
  uint64_t before, between, after;
  if (d->range != other->range || length != package_of(other->name) || strncmp(d->name, other->name, length) != 0) return 0;
  if (read_counter(r, other, &before) || read_counter(r, d, &between) || read_counter(r, other, &after)) return -1;
  if (before <= after) return before <= between && between <= after;
  return between >= before || between <= after; /* it wrapped */
}

static int find(rapl *r, const char *root) {
  static char *names[MOST_FOLDERS];
  const int count = folders(root, names);
  domain found[BENCH_MOST_DOMAINS];
  int i, known, kept = 0, failed = 0;
  r->mirror_count = 0;
  if (count == MOST_FOLDERS) failed = refuse(r, "%s has %d zones or more, this program reads fewer", root, count);
  for (i = 0; i < count && !failed; ++i) {
    domain *d = &found[kept];
    char path[600];
    if (kept == BENCH_MOST_DOMAINS) {
      failed = refuse(r, "%s has more than %d domains, this program reads no more", root, kept);
      break;
    }
    memset(d, 0, sizeof *d);
    failed = name_of(r, root, names[i], d->name, sizeof d->name);
    if (failed || d->name[0] == '\0') continue;
    for (known = 0; known < kept && strcmp(found[known].name, d->name) != 0; ++known) continue;
    if (known < kept) continue;
    for (known = 0; known < r->mirror_count && strcmp(r->mirrors[known], d->name) != 0; ++known) continue;
    if (known < r->mirror_count) continue;
    snprintf(path, sizeof path, "%.300s/%.200s/max_energy_range_uj", root, names[i]);
    snprintf(d->path, sizeof d->path, "%.300s/%.200s/energy_uj", root, names[i]);
    failed = read_uj(r, path, &d->range) || read_counter(r, d, &d->last);
    for (known = 0; known < kept && !failed; ++known) {
      const int same = mirrors(r, d, &found[known]);
      failed = same < 0;
      if (same == 1 && r->mirror_count < BENCH_MOST_DOMAINS) {
        strcpy(r->mirrors[r->mirror_count++], d->name);
        break;
      }
    }
    kept += known == kept;
  }
  for (i = 0; i < count; ++i) free(names[i]);
  if (failed) return -1;
  if (kept == 0)
    return refuse(r,
                  "there is no RAPL counter in %s: the processor has none, the kernel lacks intel_rapl (sudo modprobe "
                  "intel_rapl_common intel_rapl_msr), or this is a virtual machine or container.",
                  root);
  memcpy(r->domains, found, sizeof found);
  r->count = kept;
  strcpy(r->source, "RAPL ");
  for (i = 0; i < kept; ++i) {
    if (i) strcat(r->source, " + ");
    strcat(r->source, found[i].name);
  }
  strcat(r->source, " (powercap");
  for (i = 0; i < r->mirror_count; ++i) {
    strcat(r->source, i ? ", " : "; left out: ");
    strcat(r->source, r->mirrors[i]);
  }
  strcat(r->source, r->mirror_count ? ", the same counter)" : ")");
  return 0;
}

/* ---- a window ---- */

static int update(rapl *r) {
  int i;
  for (i = 0; i < r->count; ++i) {
    domain *d = &r->domains[i];
    uint64_t now;
    if (read_counter(r, d, &now) != 0) return -1;
    d->total += now >= d->last ? now - d->last : now + d->range - d->last;
    d->last = now;
  }
  return 0;
}

static int start(rapl *r) {
  int i;
  for (i = 0; i < r->count; ++i) {
    r->domains[i].total = 0;
    if (read_counter(r, &r->domains[i], &r->domains[i].last) != 0) return -1;
  }
  return 0;
}

static int stop(rapl *r, uint64_t began, const char *what, reading *found) {
  int i;
  if (update(r) != 0) return -1;
  found->window_s = (double)(subbyte_now() - began) / 1e9;
  found->ticks = (long)(found->window_s / TICK_S);
  for (found->joules = 0.0, i = 0; i < r->count; ++i) found->joules += (double)r->domains[i].total / 1e6;
  if (found->ticks < MIN_TICKS)
    return refuse(r,
                  "the %s of %.3f s holds %ld updates of %s, at least %d are needed for a figure to trust: measure for "
                  "about %.1f s or longer",
                  what, found->window_s, found->ticks, r->source, (int)MIN_TICKS,
                  found->window_s * MIN_TICKS / (double)(found->ticks > 1 ? found->ticks : 1));
  if (found->joules == 0.0)
    return refuse(r,
                  "%s did not move in %.2f s: the counter is frozen, as in some virtual machines. Measure on the bare "
                  "machine.",
                  r->source, found->window_s);
  return 0;
}

/* Waits, or calls where there is a `call`, until `seconds` are over; looks at the counters often enough to see each wrap. */
static int spend(rapl *r, void (*call)(void *), void *context, double seconds, uint64_t began, long *calls) {
  double polled = 0.0, now = 0.0;
  while (now < seconds || (call != NULL && *calls == 0)) {
    if (call != NULL) {
      call(context);
      ++*calls;
    } else {
      const double rest = seconds - now < POLL_S ? seconds - now : POLL_S;
      struct timespec pause;
      pause.tv_sec = (time_t)rest;
      pause.tv_nsec = (long)((rest - (double)pause.tv_sec) * 1e9);
      (void)nanosleep(&pause, NULL);
    }
    now = (double)(subbyte_now() - began) / 1e9;
    if (now - polled >= POLL_S) {
      if (update(r) != 0) return -1;
      polled = now;
    }
  }
  return 0;
}

int bench_energy_measure(const char *powercap, void (*call)(void *), void *context, double seconds, bench_energy *e,
                         char *missing, size_t bytes) {
  static rapl r;
  reading idle, busy;
  uint64_t began;
  int i;
  memset(e, 0, sizeof *e);
  r.count = 0;
  r.missing = missing;
  r.bytes = bytes;
  if (find(&r, powercap) != 0 || start(&r) != 0) return -1;
  began = subbyte_now();
  if (spend(&r, NULL, NULL, seconds, began, NULL) != 0 || stop(&r, began, "idle window", &idle) != 0) return -1;
  call(context); /* warms up outside the window */
  if (start(&r) != 0) return -1;
  began = subbyte_now();
  if (spend(&r, call, context, seconds, began, &e->calls) != 0 || stop(&r, began, "window", &busy) != 0) return -1;
  e->gross = busy.joules;
  e->window_s = busy.window_s;
  e->ticks = busy.ticks;
  e->idle_w = idle.joules / idle.window_s;
  e->idle_window_s = idle.window_s;
  e->net = e->gross - e->idle_w * e->window_s;
  e->domain_count = r.count;
  for (i = 0; i < r.count; ++i) {
    strcpy(e->domains[i].name, r.domains[i].name);
    e->domains[i].joules = (double)r.domains[i].total / 1e6;
  }
  strcpy(e->source, r.source);
  return 0;
}

void bench_energy_json(subbyte_json *j, const char *key, const bench_energy *e) {
  int i;
  if (e == NULL) {
    subbyte_json_null(j, key);
    return;
  }
  subbyte_json_open(j, key, '{');
  subbyte_json_real(j, "joules_gross", e->gross);
  subbyte_json_real(j, "joules_net", e->net);
  subbyte_json_real(j, "window_s", e->window_s);
  subbyte_json_real(j, "idle_w", e->idle_w);
  subbyte_json_real(j, "idle_window_s", e->idle_window_s);
  subbyte_json_whole(j, "calls", e->calls);
  subbyte_json_whole(j, "ticks", e->ticks);
  subbyte_json_open(j, "domains", '{');
  for (i = 0; i < e->domain_count; ++i) subbyte_json_real(j, e->domains[i].name, e->domains[i].joules);
  subbyte_json_close(j, '}');
  subbyte_json_text(j, "source", e->source);
  subbyte_json_text(j, "provenance", "measured");
  subbyte_json_real(j, "joules_per_call_gross", e->gross / (double)e->calls);
  subbyte_json_real(j, "joules_per_call_net", e->net / (double)e->calls);
  subbyte_json_close(j, '}');
}
