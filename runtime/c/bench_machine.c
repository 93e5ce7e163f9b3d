/* What a figure was measured on: processor, clock, load, memory, system; what disturbs it; and the
 * cores that the process is kept on.
 *
 * The rules and names are those of runtime/machine.py and runtime/host.py. What is allocated here stays until the end.
 */
#if !defined(_GNU_SOURCE)
#define _GNU_SOURCE /* for sched_setaffinity */
#endif

#include <ctype.h>
#include <dirent.h>
#include <math.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/utsname.h>
#include <unistd.h>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include "bench.h"
#include "cpu_features.h"

#define CPUS "/sys/devices/system/cpu"

/* ---- files ---- */

static void copy_text(char *to, const char *text) {
  size_t length = text ? strlen(text) : 0;
  if (length >= BENCH_TEXT) length = BENCH_TEXT - 1;
  if (length) memcpy(to, text, length);
  to[length] = '\0';
}

/* A file's number over `unit`; unknown also when it is 0 and `zero` does not count. */
static double number_of(const char *root, const char *path, double unit, int zero) {
  char *text = subbyte_text_of(root, path);
  const double value = subbyte_number_in(text, 1);
  free(text);
  if (value == 0.0 && !zero) return SUBBYTE_UNKNOWN;
  return value / unit;
}

/* The first value of a key in lines of "key : value" or "key=value"; NULL: none. */
static char *row_of(const char *text, char between, const char *key) {
  const size_t length = strlen(key);
  while (text != NULL && *text) {
    const char *end = strchr(text, '\n'), *mark, *last;
    if (end == NULL) end = text + strlen(text);
    mark = (const char *)memchr(text, between, (size_t)(end - text));
    while (text < end && isspace((unsigned char)*text)) ++text;
    if (mark != NULL && text <= mark) {
      for (last = mark; last > text && isspace((unsigned char)last[-1]); --last) continue;
      if ((size_t)(last - text) == length && memcmp(text, key, length) == 0) {
        char *value;
        for (++mark; mark < end && isspace((unsigned char)*mark); ++mark) continue;
        while (end > mark && isspace((unsigned char)end[-1])) --end;
        value = (char *)bench_allocate((size_t)(end - mark) + 1);
        memcpy(value, mark, (size_t)(end - mark));
        return value;
      }
    }
    text = *end ? end + 1 : end;
  }
  return NULL;
}

/* ---- features ---- */

#define ROW(alias, name) {alias, name},
static const char *const ALIASES[][2] = {SUBBYTE_FEATURE_ALIASES(ROW)};
#undef ROW

static int by_text(const void *a, const void *b) { return strcmp(*(char *const *)a, *(char *const *)b); }

static char *canonical(const char *name, size_t length) {
  char *plain = (char *)bench_allocate(length + 16), *to = plain;
  size_t i;
  for (i = 0; i < length; ++i)
    if (strchr("_-.", name[i]) == NULL && !(name[i] == '+' && to == plain)) *to++ = (char)tolower((unsigned char)name[i]);
  for (i = 0; i < sizeof ALIASES / sizeof *ALIASES; ++i)
    if (strcmp(plain, ALIASES[i][0]) == 0) {
      memset(plain, 0, length + 16);
      strcpy(plain, ALIASES[i][1]);
      break;
    }
  return plain;
}

/* Sorted names in a row of /proc/cpuinfo; `riscv`: "rv64imac_zba" is i, m, a, c, zba. Returns how many. */
static int names_in(const char *row, int riscv, char ***names) {
  int count = 0, unique = 0, i;
  *names = (char **)bench_allocate(sizeof(char *) * (strlen(row) + 1));
  if (riscv) {
    const char *c;
    for (c = row + (strlen(row) < 4 ? strlen(row) : 4); *c && *c != '_'; ++c) (*names)[count++] = canonical(c, 1);
    row = *c ? c + 1 : c;
  }
  while (*row) {
    const size_t length = strcspn(row, riscv ? "_" : " \t");
    if (length > 0) (*names)[count++] = canonical(row, length);
    row += length + (row[length] != '\0');
  }
  qsort(*names, (size_t)count, sizeof **names, by_text);
  for (i = 0; i < count; ++i)
    if (unique == 0 || strcmp((*names)[i], (*names)[unique - 1]) != 0) (*names)[unique++] = (*names)[i];
  return unique;
}

/* Features that every core has: cores of different kinds have those they share. */
static void read_features(bench_machine *m, const char *cpuinfo) {
  static const char *const keys[] = {"flags", "Features", "isa"};
  int kind, found = 0;
  m->features = NULL;
  m->feature_count = 0;
  for (kind = 0; kind < 3; ++kind) {
    const char *text = cpuinfo;
    char *row, *last = NULL;
    while ((row = row_of(text, ':', keys[kind])) != NULL) {
      if (last == NULL || strcmp(row, last) != 0) {
        char **names;
        const int count = names_in(row, kind == 2, &names);
        if (!found++) {
          m->features = names;
          m->feature_count = count;
        } else {
          int i, kept = 0;
          for (i = 0; i < m->feature_count; ++i)
            if (bsearch(&m->features[i], names, (size_t)count, sizeof *names, by_text) != NULL)
              m->features[kept++] = m->features[i];
          m->feature_count = kept;
        }
      }
      free(last);
      last = row;
      if (kind == 0) break; /* x86 cores are alike */
      do text = strchr(text, '\n') ? strchr(text, '\n') + 1 : text + strlen(text);
      while (strncmp(text, keys[kind], strlen(keys[kind])) != 0 && *text);
    }
    free(last);
  }
}

/* ---- cores ---- */

static char *siblings_of(const char *root, int cpu) {
  char path[128];
  snprintf(path, sizeof path, CPUS "/cpu%d/topology/thread_siblings_list", cpu);
  return subbyte_text_of(root, path);
}

/* One logical CPU of each physical core that this process may run on, in order; returns how many. */
static int physical_cpus(const char *root, int *cpus) {
  static char *cores[BENCH_MOST_CPUS];
  const long online = sysconf(_SC_NPROCESSORS_ONLN);
  cpu_set_t allowed;
  const int told = sched_getaffinity(0, sizeof allowed, &allowed) == 0;
  int count = 0, cpu, i;
  for (cpu = 0; cpu < BENCH_MOST_CPUS && cpu < CPU_SETSIZE; ++cpu) {
    char *core, itself[16];
    if (told ? !CPU_ISSET(cpu, &allowed) : cpu >= (online > 0 ? online : 1)) continue;
    core = siblings_of(root, cpu);
    if (core == NULL) {
      snprintf(itself, sizeof itself, "%d", cpu);
      core = strdup(itself);
      if (core == NULL) bench_fail("out of memory", NULL);
    }
    for (i = 0; i < count && strcmp(cores[i], core) != 0; ++i) continue;
    if (i < count) {
      free(core);
      continue;
    }
    cores[count] = core;
    cpus[count++] = cpu;
  }
  for (i = 0; i < count; ++i) free(cores[i]);
  return count;
}

static int physical_cores(const char *root, int otherwise) {
  static char *cores[BENCH_MOST_CPUS];
  char folder[512];
  struct dirent *entry;
  DIR *open_folder;
  int count = 0, i;
  snprintf(folder, sizeof folder, "%s" CPUS, root);
  open_folder = opendir(folder);
  while (open_folder != NULL && (entry = readdir(open_folder)) != NULL) {
    char *core;
    if (strncmp(entry->d_name, "cpu", 3) != 0 || !isdigit((unsigned char)entry->d_name[3])) continue;
    core = siblings_of(root, atoi(entry->d_name + 3));
    for (i = 0; core != NULL && i < count && strcmp(cores[i], core) != 0; ++i) continue;
    if (core == NULL || i < count || count == BENCH_MOST_CPUS)
      free(core);
    else
      cores[count++] = core;
  }
  if (open_folder != NULL) closedir(open_folder);
  for (i = 0; i < count; ++i) free(cores[i]);
  return count ? count : otherwise;
}

static int usable_cores(const char *root) {
  int cpus[BENCH_MOST_CPUS];
  int count = physical_cpus(root, cpus);
  double quota, throttled;
  subbyte_group group;
  subbyte_group_find(&group, root);
  subbyte_group_read(&group, &quota, &throttled);
  if (quota + 0.5 < (double)count) count = (int)(quota + 0.5);
  return count > 1 ? count : 1;
}

static cpu_set_t before;
static int is_pinned;

int bench_pin(int threads, int *cpus) {
  int every[BENCH_MOST_CPUS], i;
  const int count = physical_cpus("", every);
  cpu_set_t chosen;
  if (threads > count || sched_getaffinity(0, sizeof before, &before) != 0) return 0;
  CPU_ZERO(&chosen);
  for (i = 0; i < threads; ++i) { /* the first CPU serves most interrupts */
    cpus[i] = every[count - threads + i];
    CPU_SET(cpus[i], &chosen);
  }
  is_pinned = sched_setaffinity(0, sizeof chosen, &chosen) == 0;
  return is_pinned ? threads : 0;
}

int bench_may_pin(void) {
  cpu_set_t now;
  return sched_getaffinity(0, sizeof now, &now) == 0 && sched_setaffinity(0, sizeof now, &now) == 0;
}

void bench_unpin(void) {
  if (is_pinned) (void)sched_setaffinity(0, sizeof before, &before);
  is_pinned = 0;
}

/* ---- the rest ---- */

static double hottest(const char *root) {
  char folder[512], path[600];
  double most = SUBBYTE_UNKNOWN;
  struct dirent *entry;
  DIR *zones;
  snprintf(folder, sizeof folder, "%s/sys/class/thermal", root);
  zones = opendir(folder);
  while (zones != NULL && (entry = readdir(zones)) != NULL) {
    double found;
    if (strncmp(entry->d_name, "thermal_zone", 12) != 0) continue;
    snprintf(path, sizeof path, "/sys/class/thermal/%s/temp", entry->d_name);
    found = number_of(root, path, 1000, 1);
    if (found < SUBBYTE_UNKNOWN && (most == SUBBYTE_UNKNOWN || found > most)) most = found;
  }
  if (zones != NULL) closedir(zones);
  return most;
}

static double kilobytes(const char *meminfo, const char *key) {
  char *row = row_of(meminfo, ':', key);
  const size_t length = row ? strlen(row) : 0;
  double value;
  if (length > 3 && strcmp(row + length - 3, " kB") == 0) row[length - 3] = '\0';
  value = subbyte_number_in(row, 0);
  free(row);
  return value < SUBBYTE_UNKNOWN ? 1024.0 * value : SUBBYTE_UNKNOWN;
}

static int boost(const char *root) {
  char *text = subbyte_text_of(root, CPUS "/intel_pstate/no_turbo");
  int found = text == NULL ? -1 : strcmp(text, "0") == 0;
  free(text);
  if (found >= 0) return found;
  text = subbyte_text_of(root, CPUS "/cpufreq/boost");
  found = text == NULL ? -1 : strcmp(text, "1") == 0;
  free(text);
  return found;
}

/* On CPUs without the flag: what device tree or firmware say. */
static int hypervisor(const char *root) {
  static const char *const vendors[] = {"QEMU", "VMware", "Xen", "Amazon", "Google"};
  char path[512], *vendor;
  int found = 0;
  size_t i;
  snprintf(path, sizeof path, "%s/sys/hypervisor/type", root);
  if (access(path, F_OK) == 0) return 1;
  snprintf(path, sizeof path, "%s/proc/device-tree/hypervisor", root);
  if (access(path, F_OK) == 0) return 1;
  vendor = subbyte_text_of(root, "/sys/class/dmi/id/sys_vendor");
  if (vendor == NULL) return -1;
  for (i = 0; i < sizeof vendors / sizeof *vendors; ++i) found |= strstr(vendor, vendors[i]) != NULL;
  free(vendor);
  return found;
}

static const char *architecture(const char *name) {
  static const char *const same[][2] = {{"amd64", "x86_64"}, {"x64", "x86_64"},  {"arm64", "aarch64"},
                                        {"i686", "i386"},    {"armv7l", "armv7"}, {"armv8l", "armv7"}};
  size_t i;
  for (i = 0; i < sizeof same / sizeof *same; ++i)
    if (strcmp(name, same[i][0]) == 0) return same[i][1];
  return name;
}

void bench_machine_read(bench_machine *m, const char *root) {
  static const char *const names[] = {"model name", "Model", "Hardware", "uarch", "CPU part"};
  char *cpuinfo = subbyte_text_of(root, "/proc/cpuinfo"), *meminfo = subbyte_text_of(root, "/proc/meminfo");
  char *release = subbyte_text_of(root, "/etc/os-release"), *text = NULL, *flags = row_of(cpuinfo, ':', "flags");
  struct utsname here;
  const long online = sysconf(_SC_NPROCESSORS_ONLN);
  size_t i;
  memset(m, 0, sizeof *m);
  if (uname(&here) != 0) memset(&here, 0, sizeof here);
  for (i = 0; here.machine[i]; ++i) here.machine[i] = (char)tolower((unsigned char)here.machine[i]);
  copy_text(m->architecture, architecture(here.machine));
  for (i = 0; i < sizeof names / sizeof *names && (text == NULL || *text == '\0'); ++i) {
    free(text);
    text = row_of(cpuinfo, ':', names[i]);
  }
  copy_text(m->cpu, text != NULL && *text ? text : m->architecture);
  free(text);
  read_features(m, cpuinfo);
  m->logical_cpus = online > 0 ? (int)online : 1;
  m->physical_cores = physical_cores(root, m->logical_cpus);
  m->usable_cores = usable_cores(root);
  text = subbyte_text_of(root, CPUS "/cpu0/cpufreq/scaling_governor");
  copy_text(m->governor, text);
  free(text);
  m->mhz = number_of(root, CPUS "/cpu0/cpufreq/scaling_cur_freq", 1000, 0);
  if (m->mhz == SUBBYTE_UNKNOWN) {
    text = row_of(cpuinfo, ':', "cpu MHz");
    m->mhz = subbyte_number_in(text, 1);
    free(text);
  }
  m->mhz_min = number_of(root, CPUS "/cpu0/cpufreq/cpuinfo_min_freq", 1000, 0);
  m->mhz_max = number_of(root, CPUS "/cpu0/cpufreq/cpuinfo_max_freq", 1000, 0);
  m->boost = boost(root);
  m->temperature_c = hottest(root);
  text = subbyte_text_of(root, "/proc/loadavg");
  if (text != NULL) text[strcspn(text, " ")] = '\0';
  m->load_1min = subbyte_number_in(text, 1);
  free(text);
  m->memory_bytes = kilobytes(meminfo, "MemTotal");
  m->memory_available_bytes = kilobytes(meminfo, "MemAvailable");
  text = row_of(release, '=', "PRETTY_NAME");
  if (text != NULL) {
    char *begin = text + strspn(text, "\"");
    while (*begin && begin[strlen(begin) - 1] == '"') begin[strlen(begin) - 1] = '\0';
    copy_text(m->system, begin);
  }
  if (m->system[0] == '\0') copy_text(m->system, here.sysname);
  free(text);
  text = subbyte_text_of(root, "/proc/sys/kernel/osrelease");
  copy_text(m->kernel, text != NULL ? text : here.release);
  free(text);
  if (flags == NULL) {
    m->virtualised = hypervisor(root);
  } else {
    for (text = strtok(flags, " \t"); text != NULL; text = strtok(NULL, " \t"))
      m->virtualised |= strcmp(text, "hypervisor") == 0;
  }
  free(flags);
  free(cpuinfo);
  free(meminfo);
  free(release);
}

/* ---- emulators ---- */

/* The architecture that Linux writes such a /proc/cpuinfo for; NULL: not told. */
static const char *family_of(const char *cpuinfo) {
  static const char *const keys[][2] = {{"vendor_id", "x86"}, {"CPU implementer", "arm"}, {"hart", "riscv"}};
  size_t i;
  for (i = 0; i < sizeof keys / sizeof *keys; ++i) {
    char *row = row_of(cpuinfo, ':', keys[i][0]);
    const int found = row != NULL;
    free(row);
    if (found) return keys[i][1];
  }
  return NULL;
}

/* Of this program; NULL: one of another. */
static const char *own_family(void) {
#if defined(__x86_64__)
  return "x86";
#elif defined(__aarch64__) || defined(__arm__)
  return "arm";
#elif defined(__riscv)
  return "riscv";
#else
  return NULL;
#endif
}

/* Whether the CPU itself says that qemu translates its code (TCG), not KVM. */
static int says_tcg(void) {
#if defined(__x86_64__)
  unsigned int most, words[3];
  char name[13] = "";
  __cpuid(0x40000000U, most, words[0], words[1], words[2]);
  memcpy(name, words, sizeof words);
  return strcmp(name, "TCGTCGTCGTCG") == 0;
#else
  return 0;
#endif
}

void bench_emulation(bench_machine *m) {
  char *cpuinfo = subbyte_text_of("", "/proc/cpuinfo");
  const char *told = family_of(cpuinfo), *own = own_family();
  m->emulated = says_tcg() || (told != NULL && own != NULL && strcmp(told, own) != 0);
  free(cpuinfo);
  if (!m->emulated) return;
  m->cpu[0] = '\0';
  m->feature_count = -1;
  m->governor[0] = '\0';
  m->mhz = m->mhz_min = m->mhz_max = m->temperature_c = SUBBYTE_UNKNOWN;
  m->boost = m->virtualised = -1;
}

static void known_whole(subbyte_json *j, const char *key, double value) {
  if (value < SUBBYTE_UNKNOWN)
    subbyte_json_whole(j, key, (long long)value);
  else
    subbyte_json_null(j, key);
}

void bench_machine_json(subbyte_json *j, const char *key, const bench_machine *m) {
  int i;
  subbyte_json_open(j, key, '{');
  subbyte_json_text(j, "cpu", m->cpu[0] ? m->cpu : NULL);
  subbyte_json_text(j, "architecture", m->architecture);
  if (m->feature_count < 0) {
    subbyte_json_null(j, "features");
  } else {
    subbyte_json_open(j, "features", '[');
    for (i = 0; i < m->feature_count; ++i) subbyte_json_text(j, NULL, m->features[i]);
    subbyte_json_close(j, ']');
  }
  subbyte_json_whole(j, "logical_cpus", m->logical_cpus);
  subbyte_json_whole(j, "physical_cores", m->physical_cores);
  subbyte_json_whole(j, "usable_cores", m->usable_cores);
  subbyte_json_text(j, "governor", m->governor[0] ? m->governor : NULL);
  subbyte_json_real(j, "mhz", m->mhz);
  subbyte_json_real(j, "mhz_min", m->mhz_min);
  subbyte_json_real(j, "mhz_max", m->mhz_max);
  subbyte_json_flag(j, "boost", m->boost);
  subbyte_json_real(j, "temperature_c", m->temperature_c);
  subbyte_json_real(j, "load_1min", m->load_1min);
  known_whole(j, "memory_bytes", m->memory_bytes);
  known_whole(j, "memory_available_bytes", m->memory_available_bytes);
  subbyte_json_text(j, "system", m->system);
  subbyte_json_text(j, "kernel", m->kernel);
  subbyte_json_flag(j, "virtualised", m->virtualised);
  subbyte_json_null(j, "python"); /* there is none in this program */
  subbyte_json_null(j, "numpy");
  subbyte_json_text(j, "subbyte", subbyte_bench_data.version);
  subbyte_json_close(j, '}');
}

void bench_disturbances(subbyte_warnings *w, const bench_machine *m, int threads) {
  if (m->emulated) subbyte_warn(w, "this program runs under an emulator: its times are not those of the machine");
  if (m->load_1min < SUBBYTE_UNKNOWN && m->load_1min > fmax(0.5, (double)(m->logical_cpus - threads)))
    subbyte_warn(w, "other programs load this machine (load %.1f on %d CPUs): stop them", m->load_1min, m->logical_cpus);
  if (m->governor[0] && strcmp(m->governor, "performance") != 0)
    subbyte_warn(w, "the clock follows the load (governor '%.60s'): cpupower frequency-set -g performance", m->governor);
  if (m->virtualised > 0) subbyte_warn(w, "this is a virtual machine: its host may take the CPU away unseen");
  if (m->temperature_c < SUBBYTE_UNKNOWN && m->temperature_c > 85)
    subbyte_warn(w, "the CPU is at %.0f C and may throttle: cool it", m->temperature_c);
  if (m->usable_cores < threads)
    subbyte_warn(w, "%d threads share %d cores: use fewer threads", threads, m->usable_cores);
}
