/* The CPU quota of this process's own cgroup, and how often it ran out: v1 and v2, the group and all above it.
 *
 * The rules of the quota are those of runtime/cgroup.py, which says why there are two.
 */
#if !defined(_POSIX_C_SOURCE)
#define _POSIX_C_SOURCE 200809L
#endif

#include "system_files.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Whether `word` is one of a list with commas. */
static int is_in(const char *list, const char *word) {
  const size_t length = strlen(word);
  for (; *list; list += strcspn(list, ","), list += *list == ',')
    if (strcspn(list, ",") == length && strncmp(list, word, length) == 0) return 1;
  return 0;
}

/* mountinfo writes a space as \040. */
static void unescape(char *text) {
  char *to = text;
  for (; *text; ++text) {
    if (text[0] == '\\' && text[1] >= '0' && text[1] <= '3' && text[2] >= '0' && text[2] <= '7' && text[3] >= '0' &&
        text[3] <= '7') {
      *to++ = (char)(64 * (text[1] - '0') + 8 * (text[2] - '0') + text[3] - '0');
      text += 3;
    } else {
      *to++ = *text;
    }
  }
  *to = '\0';
}

/* The path of our group in the hierarchy that has the cpu controller; its version, 0: not told. */
static int path_of(const char *root, char *path, size_t bytes) {
  char *text = subbyte_text_of(root, "/proc/self/cgroup"), *line, *rest = NULL;
  int version = 0;
  for (line = text ? strtok_r(text, "\n", &rest) : NULL; line != NULL; line = strtok_r(NULL, "\n", &rest)) {
    char *controllers = strchr(line, ':'), *where = controllers ? strchr(controllers + 1, ':') : NULL;
    if (where == NULL) continue;
    *controllers++ = *where++ = '\0';
    if (is_in(controllers, "cpu"))
      version = 1;
    else if (version == 0 && strcmp(line, "0") == 0 && *controllers == '\0')
      version = 2;
    else
      continue;
    if (strlen(where) >= bytes) version = 0;
    else strcpy(path, where);
    if (version != 2) break; /* in a mixture the controller is in one hierarchy: v1's, where it is named there */
  }
  free(text);
  return version;
}

void subbyte_group_find(subbyte_group *g, const char *root) {
  char path[SUBBYTE_PATH], *text, *line, *rest = NULL;
  const int version = path_of(root, path, sizeof path);
  memset(g, 0, sizeof *g);
  text = version ? subbyte_text_of(root, "/proc/self/mountinfo") : NULL;
  for (line = text ? strtok_r(text, "\n", &rest) : NULL; line != NULL; line = strtok_r(NULL, "\n", &rest)) {
    char shown[SUBBYTE_PATH], mount[SUBBYTE_PATH], kind[64], options[512];
    const char *after = strstr(line, " - "), *inside = "";
    if (after == NULL || sscanf(line, "%*s %*s %*s %1023s %1023s", shown, mount) != 2) continue;
    if (sscanf(after, " - %63s %*s %511s", kind, options) != 2) continue;
    if (strcmp(kind, version == 2 ? "cgroup2" : "cgroup") != 0 || (version == 1 && !is_in(options, "cpu"))) continue;
    unescape(shown);
    unescape(mount);
    if (strcmp(shown, "/") == 0) shown[0] = '\0';
    if (strncmp(path, shown, strlen(shown)) == 0 && strstr(path, "..") == NULL) inside = path + strlen(shown);
    if (*inside != '/' || inside[1] == '\0') inside = ""; /* the top, or another's part of the hierarchy */
    snprintf(g->mount, sizeof g->mount, "%s%s", root, mount);
    snprintf(g->inside, sizeof g->inside, "%s", inside);
    g->version = version;
    break;
  }
  free(text);
}

static double quota_in(const char *folder, int version) {
  char *lent = subbyte_text_of(folder, version == 2 ? "/cpu.max" : "/cpu.cfs_quota_us");
  char *period = version == 2 ? NULL : subbyte_text_of(folder, "/cpu.cfs_period_us");
  char *between = version == 2 && lent ? strchr(lent, ' ') : NULL;
  double quota, whole;
  if (between != NULL) *between = '\0';
  quota = subbyte_number_in(lent, 0); /* "max", or -1: no quota */
  whole = subbyte_number_in(between ? between + 1 : period, 0);
  free(lent);
  free(period);
  return quota > 0 && quota < SUBBYTE_UNKNOWN && whole > 0 && whole < SUBBYTE_UNKNOWN ? quota / whole : SUBBYTE_UNKNOWN;
}

static double throttled_in(const char *folder) {
  char *text = subbyte_text_of(folder, "/cpu.stat"), *line, *rest = NULL;
  double found = SUBBYTE_UNKNOWN;
  for (line = text ? strtok_r(text, "\n", &rest) : NULL; line != NULL; line = strtok_r(NULL, "\n", &rest))
    if (strncmp(line, "nr_throttled ", 13) == 0) {
      found = subbyte_number_in(line + 13, 0);
      break;
    }
  free(text);
  return found;
}

void subbyte_group_read(const subbyte_group *g, double *quota, double *throttled) {
  char folder[3 * SUBBYTE_PATH];
  size_t top = strlen(g->mount);
  *quota = *throttled = SUBBYTE_UNKNOWN;
  if (g->version == 0) return;
  snprintf(folder, sizeof folder, "%s%s", g->mount, g->inside);
  for (;;) {
    const double lent = quota_in(folder, g->version), count = throttled_in(folder);
    if (lent < *quota) *quota = lent;
    if (count < SUBBYTE_UNKNOWN) *throttled = count + (*throttled < SUBBYTE_UNKNOWN ? *throttled : 0.0);
    if (strlen(folder) <= top) return;
    *strrchr(folder, '/') = '\0';
  }
}
