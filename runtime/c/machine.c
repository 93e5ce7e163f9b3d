/* What a figure is measured on: processor, clock, load, memory, system; and what disturbs it. Python reads it from here. */
#if !defined(_GNU_SOURCE)
#define _GNU_SOURCE /* for sched_getaffinity */
#endif

#include "machine.h"

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

#include "cores.h"
#include "cpu_features.h"

#if !defined(SUBBYTE_ROOT)
#define SUBBYTE_ROOT "" /* of /proc and /sys, but in tests */
#endif
#define CPUS "/sys/devices/system/cpu"

/* The architecture as in a target triple, and the key by which /proc/cpuinfo of such CPUs is told from that of others. */
#if defined(__x86_64__)
static const char ARCHITECTURE[] = "x86_64", OWN_KEY[] = "vendor_id";
#elif defined(__i386__)
static const char ARCHITECTURE[] = "i386", OWN_KEY[] = "vendor_id";
#elif defined(__aarch64__)
static const char ARCHITECTURE[] = "aarch64", OWN_KEY[] = "CPU implementer";
#elif defined(__arm__)
static const char ARCHITECTURE[] = "armv7", OWN_KEY[] = "CPU implementer";
#elif defined(__riscv) && __riscv_xlen == 64
static const char ARCHITECTURE[] = "riscv64", OWN_KEY[] = "hart";
#elif defined(__riscv)
static const char ARCHITECTURE[] = "riscv32", OWN_KEY[] = "hart";
#else
static const char ARCHITECTURE[] = "unknown", OWN_KEY[] = "";
#endif

/* ---- files ---- */

typedef struct {
  const char *at; /* NULL: there is none */
  size_t length;
} part;

/* The first value of a key in lines of "key : value" or "key=value". */
static part row_of(const char *text, char between, const char *key) {
  const size_t length = strlen(key);
  part found = {NULL, 0};
  while (text != NULL && *text && found.at == NULL) {
    const char *end = strchr(text, '\n'), *mark, *last;
    if (end == NULL) end = text + strlen(text);
    mark = (const char *)memchr(text, between, (size_t)(end - text));
    while (text < end && isspace((unsigned char)*text)) ++text;
    for (last = mark; mark != NULL && last > text && isspace((unsigned char)last[-1]); --last) continue;
    if (mark != NULL && text <= mark && (size_t)(last - text) == length && memcmp(text, key, length) == 0) {
      for (++mark; mark < end && isspace((unsigned char)*mark); ++mark) continue;
      found.at = mark;
      for (last = end; last > mark && isspace((unsigned char)last[-1]); --last) continue;
      found.length = (size_t)(last - mark);
    }
    text = *end ? end + 1 : end;
  }
  return found;
}

/* As much of it as fits. */
static void copy(char to[SUBBYTE_TEXT], part text) {
  if (text.length >= SUBBYTE_TEXT) text.length = SUBBYTE_TEXT - 1;
  if (text.length) memcpy(to, text.at, text.length);
  to[text.length] = '\0';
}

static void copy_file(char to[SUBBYTE_TEXT], const char *root, const char *path, const char *otherwise) {
  char *text = subbyte_text_of(root, path);
  part all = {text != NULL ? text : otherwise, 0};
  all.length = strlen(all.at);
  copy(to, all);
  free(text);
}

static double number_in(part text, int fraction) {
  char digits[SUBBYTE_TEXT];
  if (text.at == NULL || text.length >= SUBBYTE_TEXT) return SUBBYTE_UNKNOWN;
  copy(digits, text);
  return subbyte_number_in(digits, fraction);
}

/* A file's number over `unit`; unknown also when it is 0 and `zero` does not count. */
static double number_of(const char *root, const char *path, double unit, int zero) {
  char *text = subbyte_text_of(root, path);
  const double value = subbyte_number_in(text, 1);
  free(text);
  if (value == 0.0 && !zero) return SUBBYTE_UNKNOWN;
  return value / unit;
}

static double kilobytes(const char *meminfo, const char *key) {
  part row = row_of(meminfo, ':', key);
  double value;
  if (row.length > 3 && memcmp(row.at + row.length - 3, " kB", 3) == 0) row.length -= 3;
  value = number_in(row, 0);
  return value < SUBBYTE_UNKNOWN ? 1024.0 * value : SUBBYTE_UNKNOWN;
}

static int is_word_in(part text, const char *word) {
  const size_t length = strlen(word);
  size_t i, next;
  for (i = 0; i < text.length; i = next + 1) {
    for (next = i; next < text.length && text.at[next] != ' ' && text.at[next] != '\t'; ++next) continue;
    if (next - i == length && memcmp(text.at + i, word, length) == 0) return 1;
  }
  return 0;
}

/* ---- features ---- */

/* Writes those that the CPU has: all names, without those that it lacks. */
static void read_features(char *features, size_t bytes) {
#ifdef SUBBYTE_FEATURES
#define NAME(name, word, bit, saved) name " "
  static const char every[] = SUBBYTE_FEATURES(NAME);
#undef NAME
  subbyte_model asked;
  char missing[1024];
  const char *name;
  size_t used = 0, length;
  part lacks = {missing, 0};
  memset(&asked, 0, sizeof asked);
  asked.abi = SUBBYTE_ABI;
  asked.features = every;
  (void)subbyte_missing_features(&asked, missing, sizeof missing);
  lacks.length = strlen(missing);
  for (name = every; *name; name += length + 1) {
    char word[32];
    length = strcspn(name, " ");
    snprintf(word, sizeof word, "%.*s", (int)length, name);
    if (is_word_in(lacks, word) || used + length + 2 > bytes) continue;
    used += (size_t)snprintf(features + used, bytes - used, "%s%s", used ? " " : "", word);
  }
#else
  (void)bytes;
  *features = '\0';
#endif
}

/* ---- cores ---- */

/* Adds it, unless it is there. */
static int added(int *cores, int count, int core) {
  int i;
  for (i = 0; i < count; ++i)
    if (cores[i] == core) return count;
  if (count < SUBBYTE_MOST_CPUS) cores[count++] = core;
  return count;
}

int subbyte_physical_cpus(const char *root, int cpus[SUBBYTE_MOST_CPUS]) {
  const long online = sysconf(_SC_NPROCESSORS_ONLN);
  int cores[SUBBYTE_MOST_CPUS], count = 0, cpu;
  cpu_set_t allowed;
  const int told = sched_getaffinity(0, sizeof allowed, &allowed) == 0;
  for (cpu = 0; cpu < SUBBYTE_MOST_CPUS && cpu < CPU_SETSIZE; ++cpu) {
    int core, more;
    if (told ? !CPU_ISSET(cpu, &allowed) : cpu >= (online > 0 ? online : 1)) continue;
    core = subbyte_first_sibling(root, cpu);
    more = added(cores, count, core < 0 ? cpu : core);
    if (more > count) cpus[count] = cpu;
    count = more;
  }
  return count;
}

static int physical_cores(const char *root, int otherwise) {
  int cores[SUBBYTE_MOST_CPUS], count = 0;
  char folder[512];
  struct dirent *entry;
  DIR *open_folder;
  snprintf(folder, sizeof folder, "%s" CPUS, root);
  open_folder = opendir(folder);
  while (open_folder != NULL && (entry = readdir(open_folder)) != NULL) {
    int core;
    if (strncmp(entry->d_name, "cpu", 3) != 0 || !isdigit((unsigned char)entry->d_name[3])) continue;
    core = subbyte_first_sibling(root, atoi(entry->d_name + 3));
    if (core >= 0) count = added(cores, count, core);
  }
  if (open_folder != NULL) closedir(open_folder);
  return count ? count : otherwise;
}

static int usable_cores(const char *root) {
  int cpus[SUBBYTE_MOST_CPUS];
  int count = subbyte_physical_cpus(root, cpus);
  double quota, throttled;
  subbyte_group group;
  subbyte_group_find(&group, root);
  subbyte_group_read(&group, &quota, &throttled);
  if (quota + 0.5 < (double)count) count = (int)(quota + 0.5);
  return count > 1 ? count : 1;
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

/* Whether a file holds `yes`; negative: it cannot be read. */
static int holds(const char *root, const char *path, const char *yes) {
  char *text = subbyte_text_of(root, path);
  const int found = text == NULL ? -1 : strcmp(text, yes) == 0;
  free(text);
  return found;
}

static int boost(const char *root) {
  const int allowed = holds(root, CPUS "/intel_pstate/no_turbo", "0");
  return allowed >= 0 ? allowed : holds(root, CPUS "/cpufreq/boost", "1");
}

static int is_there(const char *root, const char *path) {
  char name[512];
  snprintf(name, sizeof name, "%s%s", root, path);
  return access(name, F_OK) == 0;
}

/* Of CPUs without the flag: what device tree or firmware say. */
static int hypervisor(const char *root) {
  static const char vendors[][8] = {"QEMU", "VMware", "Xen", "Amazon", "Google"};
  char vendor[SUBBYTE_TEXT];
  size_t i;
  if (is_there(root, "/sys/hypervisor/type") || is_there(root, "/proc/device-tree/hypervisor")) return 1;
  copy_file(vendor, root, "/sys/class/dmi/id/sys_vendor", "");
  for (i = 0; i < sizeof vendors / sizeof *vendors; ++i)
    if (strstr(vendor, vendors[i]) != NULL) return 1;
  return *vendor ? 0 : -1;
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

/* Whether /proc/cpuinfo is that of another architecture, or the CPU itself says that it is emulated. */
static int is_emulated(const char *cpuinfo) {
  static const char keys[][16] = {"vendor_id", "CPU implementer", "hart"};
  size_t i;
  if (says_tcg()) return 1;
  if (*OWN_KEY == '\0' || row_of(cpuinfo, ':', OWN_KEY).at != NULL) return 0;
  for (i = 0; i < sizeof keys / sizeof *keys; ++i)
    if (row_of(cpuinfo, ':', keys[i]).at != NULL) return 1;
  return 0;
}

static void read_processor(subbyte_machine_facts *m, const char *root, const char *cpuinfo) {
  static const char names[][12] = {"model name", "Model", "Hardware", "uarch", "CPU part"};
  const part flags = row_of(cpuinfo, ':', "flags");
  size_t i;
  for (i = 0; i < sizeof names / sizeof *names && m->cpu[0] == '\0'; ++i) copy(m->cpu, row_of(cpuinfo, ':', names[i]));
  if (m->cpu[0] == '\0') snprintf(m->cpu, sizeof m->cpu, "%s", m->architecture);
  copy_file(m->governor, root, CPUS "/cpu0/cpufreq/scaling_governor", "");
  m->mhz = number_of(root, CPUS "/cpu0/cpufreq/scaling_cur_freq", 1000, 0);
  if (m->mhz == SUBBYTE_UNKNOWN) m->mhz = number_in(row_of(cpuinfo, ':', "cpu MHz"), 1);
  m->mhz_min = number_of(root, CPUS "/cpu0/cpufreq/cpuinfo_min_freq", 1000, 0);
  m->mhz_max = number_of(root, CPUS "/cpu0/cpufreq/cpuinfo_max_freq", 1000, 0);
  m->boost = boost(root);
  m->temperature_c = hottest(root);
  m->virtualised = flags.at != NULL ? is_word_in(flags, "hypervisor") : hypervisor(root);
}

static void read_system(subbyte_machine_facts *m, const char *root) {
  char *meminfo = subbyte_text_of(root, "/proc/meminfo"), *release = subbyte_text_of(root, "/etc/os-release");
  char *load = subbyte_text_of(root, "/proc/loadavg");
  part name = row_of(release, '=', "PRETTY_NAME");
  struct utsname here;
  if (uname(&here) != 0) memset(&here, 0, sizeof here);
  if (load != NULL) load[strcspn(load, " ")] = '\0';
  m->load_1min = subbyte_number_in(load, 1);
  m->memory_bytes = kilobytes(meminfo, "MemTotal");
  m->memory_available_bytes = kilobytes(meminfo, "MemAvailable");
  for (; name.length && *name.at == '"'; ++name.at, --name.length) continue;
  while (name.length && name.at[name.length - 1] == '"') --name.length;
  copy(m->system, name);
  if (m->system[0] == '\0') snprintf(m->system, sizeof m->system, "%s", here.sysname);
  copy_file(m->kernel, root, "/proc/sys/kernel/osrelease", here.release);
  free(meminfo);
  free(release);
  free(load);
}

void subbyte_machine_read(subbyte_machine_facts *m, const char *root) {
  const long online = sysconf(_SC_NPROCESSORS_ONLN);
  char *cpuinfo = subbyte_text_of(root, "/proc/cpuinfo");
  memset(m, 0, sizeof *m);
  m->architecture = ARCHITECTURE;
  read_features(m->features, sizeof m->features);
  m->logical_cpus = online > 0 ? (int)online : 1;
  m->physical_cores = physical_cores(root, m->logical_cpus);
  m->usable_cores = usable_cores(root);
  read_system(m, root);
  m->emulated = is_emulated(cpuinfo);
  if (m->emulated) { /* the rest would be of the emulator's host */
    m->mhz = m->mhz_min = m->mhz_max = m->temperature_c = SUBBYTE_UNKNOWN;
    m->boost = m->virtualised = -1;
  } else {
    read_processor(m, root, cpuinfo);
  }
  free(cpuinfo);
}

/* ---- what is said of it ---- */

static void known_whole(subbyte_json *j, const char *key, double value) {
  if (value < SUBBYTE_UNKNOWN)
    subbyte_json_whole(j, key, (long long)value);
  else
    subbyte_json_null(j, key);
}

static void features_json(subbyte_json *j, const char *features) {
  char name[32];
  size_t length;
  subbyte_json_open(j, "features", '[');
  for (; *features; features += length + (features[length] != '\0')) {
    length = strcspn(features, " ");
    snprintf(name, sizeof name, "%.*s", (int)length, features);
    subbyte_json_text(j, NULL, name);
  }
  subbyte_json_close(j, ']');
}

void subbyte_machine_json(subbyte_json *j, const char *key, const subbyte_machine_facts *m, const char *version) {
  subbyte_json_open(j, key, '{');
  subbyte_json_text(j, "cpu", m->cpu[0] ? m->cpu : NULL);
  subbyte_json_text(j, "architecture", m->architecture);
  features_json(j, m->features);
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
  if (version != NULL) {
    subbyte_json_null(j, "python"); /* there is none where C alone measures */
    subbyte_json_null(j, "numpy");
    subbyte_json_text(j, "subbyte", version);
  }
  subbyte_json_close(j, '}');
}

void subbyte_disturbances(subbyte_warnings *w, const subbyte_machine_facts *m, int threads) {
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

int32_t subbyte_machine(int32_t threads, char **json) {
  subbyte_machine_facts *m;
  subbyte_warnings *w;
  subbyte_json j = {0};
  if (json == NULL) return SUBBYTE_BAD_ARGUMENT;
  *json = NULL;
  m = (subbyte_machine_facts *)calloc(1, sizeof *m);
  w = (subbyte_warnings *)calloc(1, sizeof *w);
  if (m != NULL && w != NULL) {
    subbyte_machine_read(m, SUBBYTE_ROOT);
    subbyte_disturbances(w, m, threads);
    subbyte_json_open(&j, NULL, '{');
    subbyte_machine_json(&j, "machine", m, NULL);
    subbyte_warnings_json(&j, w);
    subbyte_json_close(&j, '}');
    if (!j.failed) *json = j.text;
    if (j.failed) free(j.text);
  }
  free(m);
  free(w);
  return *json != NULL ? SUBBYTE_OK : SUBBYTE_NO_MEMORY;
}
