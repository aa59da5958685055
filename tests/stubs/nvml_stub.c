/* libnvidia-ml.so.1 for tests: it tells the GPUs of the file that NVML_STUB_FIXTURE names (see the README of this folder).
 * Built with NVML_STUB_OLD it lacks what drivers before 2020 lacked. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { kMostGpus = 80, kMostCpus = 512 };
enum { kSuccess = 0, kUninitialized = 1, kInvalidArgument = 2, kNotSupported = 3, kNotFound = 6 };

typedef struct {
  int index;
  char name[96], bus[32];
  long long mib;
  int major, minor, generation, width, mig, virtualization, node;
  int direct_to[36]; /* per link: another GPU, or -1 for a switch */
  int links, inactive;
  int error, handle_error;
  unsigned char cpus[kMostCpus];
} Gpu;

typedef struct {
  char legacy_bus_id[16];
  unsigned domain, bus, device, device_id, subsystem_id;
  char bus_id[32];
} PciInfo;

static Gpu gpus[kMostGpus];
static int levels[kMostGpus][kMostGpus], p2p[kMostGpus][kMostGpus];
static int count, initialised;
static char driver[96], version[96];

#define EXPORT __attribute__((visibility("default")))

static void read_cpus(Gpu* gpu, const char* text) {
  while (*text != '\0') {
    char* end;
    long first = strtol(text, &end, 10), last = first;
    if (*end == '-') last = strtol(end + 1, &end, 10);
    for (; first <= last && first < kMostCpus; ++first) gpu->cpus[first] = 1;
    text = *end == ',' ? end + 1 : end;
    if (end == text && *text != '\0' && *text != ',') break;
  }
}

/* "12s": 12 links to switches; "4g2": 4 links to GPU 2; several with commas; "!": the first so many are down. */
static void read_links(Gpu* gpu, const char* text) {
  while (*text != '\0') {
    char* end;
    long number = strtol(text, &end, 10), target = -1;
    if (*end == '!') {
      gpu->inactive = (int)number;
      ++end;
    } else {
      if (*end == 'g') {
        target = strtol(end + 1, &end, 10);
      } else if (*end == 's') {
        ++end;
      }
      while (number-- > 0 && gpu->links < 36) gpu->direct_to[gpu->links++] = (int)target;
    }
    if (*end != ',') break;
    text = end + 1;
  }
}

static void read_gpu(char* words) {
  Gpu* gpu = &gpus[count];
  char *word, *rest = NULL;
  memset(gpu, 0, sizeof *gpu);
  gpu->index = count++;
  gpu->node = -1;
  for (word = strtok_r(words, " \n", &rest); word != NULL; word = strtok_r(NULL, " \n", &rest)) {
    char* value = strchr(word, '=');
    if (value == NULL) continue;
    *value++ = '\0';
    if (strcmp(word, "name") == 0) {
      snprintf(gpu->name, sizeof gpu->name, "%s", value);
      for (char* c = gpu->name; *c != '\0'; ++c) *c = *c == '_' ? ' ' : *c;
    }
    if (strcmp(word, "bus") == 0) snprintf(gpu->bus, sizeof gpu->bus, "%s", value);
    if (strcmp(word, "mib") == 0) gpu->mib = atoll(value);
    if (strcmp(word, "cc") == 0) sscanf(value, "%d.%d", &gpu->major, &gpu->minor);
    if (strcmp(word, "pcie") == 0) sscanf(value, "%dx%d", &gpu->generation, &gpu->width);
    if (strcmp(word, "cpus") == 0) read_cpus(gpu, value);
    if (strcmp(word, "node") == 0) gpu->node = atoi(value);
    if (strcmp(word, "mig") == 0) gpu->mig = atoi(value);
    if (strcmp(word, "virtualization") == 0) gpu->virtualization = atoi(value);
    if (strcmp(word, "links") == 0) read_links(gpu, value);
    if (strcmp(word, "error") == 0) gpu->error = atoi(value);
    if (strcmp(word, "handle_error") == 0) gpu->handle_error = atoi(value);
  }
}

static void read_pair(const char* words) {
  char from[8], to[8];
  int level = -1, status = -1, a, b;
  const char* key;
  if (sscanf(words, "%7s %7s", from, to) != 2) return;
  if ((key = strstr(words, "level=")) != NULL) level = atoi(key + 6);
  if ((key = strstr(words, "p2p=")) != NULL) status = atoi(key + 4);
  for (a = 0; a < kMostGpus; ++a) {
    for (b = 0; b < kMostGpus; ++b) {
      const int forth = (*from == '*' || atoi(from) == a) && (*to == '*' || atoi(to) == b);
      const int back = (*from == '*' || atoi(from) == b) && (*to == '*' || atoi(to) == a);
      if (!forth && !back) continue;
      if (level >= 0) levels[a][b] = level;
      if (status >= 0) p2p[a][b] = status;
    }
  }
}

EXPORT int nvmlInit_v2(void) {
  const char* path = getenv("NVML_STUB_FIXTURE");
  FILE* file = path != NULL ? fopen(path, "r") : NULL;
  char line[1024];
  int result = kSuccess;
  if (file == NULL) return 9; /* driver not loaded */
  count = 0;
  memset(levels, 0, sizeof levels);
  memset(p2p, 0, sizeof p2p);
  while (fgets(line, sizeof line, file) != NULL) {
    line[strcspn(line, "\n")] = '\0';
    if (strncmp(line, "gpu ", 4) == 0 && count < kMostGpus) read_gpu(line + 4);
    if (strncmp(line, "pair ", 5) == 0) read_pair(line + 5);
    if (strncmp(line, "init ", 5) == 0) result = atoi(line + 5);
    if (strncmp(line, "driver ", 7) == 0) snprintf(driver, sizeof driver, "%.80s", line + 7);
    if (strncmp(line, "nvml ", 5) == 0) snprintf(version, sizeof version, "%.80s", line + 5);
  }
  fclose(file);
  initialised = result == kSuccess;
  return result;
}

EXPORT int nvmlShutdown(void) {
  const int result = initialised ? kSuccess : kUninitialized;
  initialised = 0;
  return result;
}

EXPORT const char* nvmlErrorString(int result) {
  switch (result) {
    case kSuccess:
      return "Success";
    case kNotSupported:
      return "Not Supported";
    case 9:
      return "Driver Not Loaded";
    case 15:
      return "GPU is lost";
    case 18:
      return "Driver/library version mismatch";
    default:
      return "Unknown Error";
  }
}

EXPORT int nvmlDeviceGetCount_v2(unsigned* result) {
  if (!initialised) return kUninitialized;
  *result = (unsigned)count;
  return kSuccess;
}

EXPORT int nvmlDeviceGetHandleByIndex_v2(unsigned index, Gpu** device) {
  if (!initialised) return kUninitialized;
  if (index >= (unsigned)count) return kInvalidArgument;
  *device = &gpus[index];
  return gpus[index].handle_error;
}

/* What every question begins with. */
#define ASK(gpu)                           \
  if (!initialised) return kUninitialized; \
  if ((gpu)->error != 0) return (gpu)->error

static int give(char* text, unsigned length, const char* value) {
  if (strlen(value) >= length) return 7; /* insufficient size */
  strcpy(text, value);
  return kSuccess;
}

EXPORT int nvmlSystemGetDriverVersion(char* text, unsigned length) {
  return give(text, length, driver);
}
EXPORT int nvmlSystemGetNVMLVersion(char* text, unsigned length) {
  return give(text, length, version);
}

EXPORT int nvmlDeviceGetName(Gpu* gpu, char* text, unsigned length) {
  ASK(gpu);
  return give(text, length, gpu->name);
}

EXPORT int nvmlDeviceGetUUID(Gpu* gpu, char* text, unsigned length) {
  char uuid[64];
  ASK(gpu);
  snprintf(uuid, sizeof uuid, "GPU-%08d-0000-0000-0000-000000000000", gpu->index);
  return give(text, length, uuid);
}

static void give_bus(const Gpu* gpu, PciInfo* info) {
  memset(info, 0, sizeof *info);
  sscanf(gpu->bus, "%x:%x:%x", &info->domain, &info->bus, &info->device);
  snprintf(info->bus_id, sizeof info->bus_id, "%08X:%02X:%02X.0", info->domain & 0xFFFFFFFFu,
           info->bus & 0xFFu, info->device & 0xFFu);
}

EXPORT int nvmlDeviceGetPciInfo_v3(Gpu* gpu, PciInfo* info) {
  ASK(gpu);
  give_bus(gpu, info);
  return kSuccess;
}

EXPORT int nvmlDeviceGetMemoryInfo(Gpu* gpu, unsigned long long memory[3]) {
  ASK(gpu);
  memory[0] = memory[1] = (unsigned long long)gpu->mib << 20;
  memory[2] = 0;
  return kSuccess;
}

EXPORT int nvmlDeviceGetCudaComputeCapability(Gpu* gpu, int* major, int* minor) {
  ASK(gpu);
  *major = gpu->major;
  *minor = gpu->minor;
  return kSuccess;
}

EXPORT int nvmlDeviceGetMaxPcieLinkGeneration(Gpu* gpu, unsigned* generation) {
  ASK(gpu);
  *generation = (unsigned)gpu->generation;
  return gpu->generation > 0 ? kSuccess : kNotSupported;
}

EXPORT int nvmlDeviceGetMaxPcieLinkWidth(Gpu* gpu, unsigned* width) {
  ASK(gpu);
  *width = (unsigned)gpu->width;
  return gpu->width > 0 ? kSuccess : kNotSupported;
}

EXPORT int nvmlDeviceGetCpuAffinity(Gpu* gpu, unsigned words, unsigned long* set) {
  int cpu;
  ASK(gpu);
  memset(set, 0, words * sizeof *set);
  for (cpu = 0; cpu < kMostCpus && cpu < (int)(words * 64); ++cpu) {
    if (gpu->cpus[cpu]) set[cpu / 64] |= 1UL << (cpu % 64);
  }
  return kSuccess;
}

EXPORT int nvmlDeviceGetTopologyCommonAncestor(const Gpu* a, const Gpu* b, int* level) {
  ASK(a);
  ASK(b);
  *level = levels[a->index][b->index];
  return kSuccess;
}

#ifndef NVML_STUB_OLD

EXPORT int nvmlDeviceGetMemoryAffinity(Gpu* gpu, unsigned words, unsigned long* set, int scope) {
  ASK(gpu);
  if (gpu->node < 0 || scope != 0) return kNotSupported;
  memset(set, 0, words * sizeof *set);
  set[gpu->node / 64] |= 1UL << (gpu->node % 64);
  return kSuccess;
}

EXPORT int nvmlDeviceGetMigMode(Gpu* gpu, unsigned* current, unsigned* pending) {
  ASK(gpu);
  *current = *pending = (unsigned)gpu->mig;
  return gpu->major >= 8 ? kSuccess : kNotSupported;
}

EXPORT int nvmlDeviceGetVirtualizationMode(Gpu* gpu, int* mode) {
  ASK(gpu);
  *mode = gpu->virtualization;
  return kSuccess;
}

EXPORT int nvmlDeviceGetP2PStatus(Gpu* a, Gpu* b, int index, int* status) {
  ASK(a);
  ASK(b);
  if (index < 0 || index > 4) return kInvalidArgument;
  *status = p2p[a->index][b->index];
  return kSuccess;
}

EXPORT int nvmlDeviceGetNvLinkState(Gpu* gpu, unsigned link, int* active) {
  ASK(gpu);
  if (gpu->links == 0) return kNotSupported;
  if (link >= (unsigned)gpu->links) return kInvalidArgument;
  *active = (int)link >= gpu->inactive;
  return kSuccess;
}

EXPORT int nvmlDeviceGetNvLinkRemoteDeviceType(Gpu* gpu, unsigned link, int* type) {
  ASK(gpu);
  if (link >= (unsigned)gpu->links) return kInvalidArgument;
  *type = gpu->direct_to[link] < 0 ? 2 : 0;
  return kSuccess;
}

EXPORT int nvmlDeviceGetNvLinkRemotePciInfo_v2(Gpu* gpu, unsigned link, PciInfo* info) {
  ASK(gpu);
  if (link >= (unsigned)gpu->links) return kInvalidArgument;
  if (gpu->direct_to[link] < 0) return kNotFound;
  give_bus(&gpus[gpu->direct_to[link]], info);
  return kSuccess;
}

#endif
