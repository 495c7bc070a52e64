/* A FAKE of NVIDIA's libnvidia-ml.so.1 for tests: two GPUs whose answers a file decides.
 *
 * $FAKE_NVML_RULES names a file of lines `FUNCTION DEVICE CODE VALUE` (DEVICE -1: any). CODE is the return code;
 * -1 makes the call hang for as long as the line stands. Without a line a call succeeds with the default below.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define EXPORT __attribute__((visibility("default")))
#define ERROR_TIMEOUT 10
#define ERROR_NOT_FOUND 6
#define ERROR_INSUFFICIENT_SIZE 7

typedef unsigned long long u64;
typedef struct { unsigned int index; } device;
static device devices[2] = {{0}, {1}};
static device instances[2] = {{10}, {11}};

static int rule(const char *function, int index, u64 *value) {
    const char *path = getenv("FAKE_NVML_RULES");
    for (;;) {
        FILE *file = path ? fopen(path, "r") : NULL;
        int code = 0, hangs = 0;
        if (file) {
            char name[128];
            int at, line_code;
            u64 line_value;
            while (fscanf(file, "%127s %d %d %llu", name, &at, &line_code, &line_value) == 4) {
                if (strcmp(name, function) || (at != -1 && at != index)) continue;
                hangs = line_code == -1;
                code = line_code;
                *value = line_value;
            }
            fclose(file);
        }
        if (!hangs) return code;
        usleep(20000);
    }
}

EXPORT int nvmlInitWithFlags(unsigned int flags) { u64 v = flags; return rule("nvmlInitWithFlags", -1, &v); }
EXPORT int nvmlShutdown(void) { return 0; }

EXPORT int nvmlSystemGetDriverVersion(char *version, unsigned int length) {
    u64 v = 0;
    snprintf(version, length, "999.01-fake");
    return rule("nvmlSystemGetDriverVersion", -1, &v);
}

EXPORT int nvmlDeviceGetCount_v2(unsigned int *count) {
    u64 v = 2;
    int code = rule("nvmlDeviceGetCount_v2", -1, &v);
    *count = (unsigned int)v;
    return code;
}

EXPORT int nvmlDeviceGetHandleByIndex_v2(unsigned int index, device **handle) {
    u64 v = 0;
    int code = rule("nvmlDeviceGetHandleByIndex_v2", (int)index, &v);
    *handle = &devices[index];
    return code;
}

typedef struct {
    char busIdLegacy[16];
    unsigned int domain, bus, device, pciDeviceId, pciSubSystemId;
    char busId[32];
} pci_info;

EXPORT int nvmlDeviceGetPciInfo_v3(device *handle, pci_info *info) {
    u64 v = 0;
    memset(info, 0, sizeof *info);
    snprintf(info->busId, sizeof info->busId, "00000000:%02X:00.0", 0x3A + handle->index);
    return rule("nvmlDeviceGetPciInfo_v3", (int)handle->index, &v);
}

EXPORT int nvmlDeviceGetName(device *handle, char *name, unsigned int length) {
    u64 v = 0;
    snprintf(name, length, "Fake GPU %u", handle->index);
    return rule("nvmlDeviceGetName", (int)handle->index, &v);
}

typedef struct { unsigned int gpu, memory; } utilisation;
EXPORT int nvmlDeviceGetUtilizationRates(device *handle, utilisation *rates) {
    u64 v = 40 + handle->index;
    int code = rule("nvmlDeviceGetUtilizationRates", (int)handle->index, &v);
    rates->gpu = (unsigned int)v;
    rates->memory = 7;
    return code;
}

typedef struct { u64 total, free, used; } memory_info;
EXPORT int nvmlDeviceGetMemoryInfo(device *handle, memory_info *memory) {
    u64 v = 24000000000ull;
    int code = rule("nvmlDeviceGetMemoryInfo", (int)handle->index, &v);
    memory->total = v;
    memory->used = v == ~0ull ? v : v / 4;
    memory->free = memory->total - memory->used;
    return code;
}

#define NUMBER(FUNCTION, TYPE, DEFAULT)                                  \
    EXPORT int FUNCTION(device *handle, TYPE *out) {                      \
        u64 v = (DEFAULT);                                                \
        int code = rule(#FUNCTION, (int)handle->index, &v);               \
        *out = (TYPE)v;                                                   \
        return code;                                                      \
    }
#define NUMBER_OF_KIND(FUNCTION, TYPE, DEFAULT)                          \
    EXPORT int FUNCTION(device *handle, int kind, TYPE *out) {            \
        u64 v = (DEFAULT);                                                \
        int code = rule(#FUNCTION, (int)handle->index, &v);               \
        *out = (TYPE)v;                                                   \
        return code;                                                      \
    }

NUMBER(nvmlDeviceGetPowerUsage, unsigned int, 250000)
NUMBER(nvmlDeviceGetEnforcedPowerLimit, unsigned int, 450000)
NUMBER(nvmlDeviceGetCurrentClocksEventReasons, u64, 0x01 | 0x04)
NUMBER(nvmlDeviceGetMaxMigDeviceCount, unsigned int, 7)
NUMBER_OF_KIND(nvmlDeviceGetTemperature, unsigned int, 61)
NUMBER_OF_KIND(nvmlDeviceGetClockInfo, unsigned int, kind == 1 ? 1800 : 9500)

EXPORT int nvmlDeviceGetTotalEccErrors(device *handle, int kind, int counter, u64 *count) {
    *count = kind == 0 ? 12 : 3;
    (void)counter;
    return rule("nvmlDeviceGetTotalEccErrors", (int)handle->index, count);
}

/* Rules `field_ID`: CODE is the field's own return code, VALUE its value. Without one, memory is at 72 degrees and
 * all counters stand at 0; `field_type` changes the type that values are said to have (1: 32 bits, 3: 64 bits). */
typedef struct {
    unsigned int id, scope;
    long long timestamp, latency;
    int type, code;
    union { double d; unsigned int ui; unsigned long ul; u64 ull; long long sll; int si; unsigned short us; } value;
} field_value;
EXPORT int nvmlDeviceGetFieldValues(device *handle, int count, field_value *fields) {
    u64 v = 0;
    int code = rule("nvmlDeviceGetFieldValues", (int)handle->index, &v);
    for (int i = 0; i < count && !code; i++) {
        char name[32];
        u64 value = fields[i].id == 82 ? 72 : 0, type = 3;
        snprintf(name, sizeof name, "field_%u", fields[i].id);
        fields[i].code = rule(name, (int)handle->index, &value);
        rule("field_type", (int)handle->index, &type);
        fields[i].type = (int)type;
        fields[i].value.ull = value;
    }
    return code;
}
NUMBER_OF_KIND(nvmlDeviceGetPcieThroughput, unsigned int, kind == 0 ? 3000 : 5000)
NUMBER(nvmlDeviceGetCurrPcieLinkGeneration, unsigned int, 4)
NUMBER(nvmlDeviceGetMaxPcieLinkGeneration, unsigned int, 5)
NUMBER(nvmlDeviceGetCurrPcieLinkWidth, unsigned int, 16)
NUMBER(nvmlDeviceGetMaxPcieLinkWidth, unsigned int, 16)

EXPORT int nvmlDeviceGetMigMode(device *handle, unsigned int *current, unsigned int *pending) {
    u64 v = 0;
    int code = rule("nvmlDeviceGetMigMode", (int)handle->index, &v);
    *current = *pending = (unsigned int)v;
    return code;
}

EXPORT int nvmlDeviceGetMigDeviceHandleByIndex(device *handle, unsigned int number, device **instance) {
    u64 v = 0;
    if (number >= 2) return ERROR_NOT_FOUND;
    *instance = &instances[number];
    return rule("nvmlDeviceGetMigDeviceHandleByIndex", (int)handle->index, &v);
}

typedef struct { unsigned int pid; u64 memory; unsigned int gpu_instance, compute_instance; } process_info;
EXPORT int nvmlDeviceGetComputeRunningProcesses_v3(device *handle, unsigned int *count, process_info *found) {
    u64 pid = 0;
    int code = rule("nvmlDeviceGetComputeRunningProcesses_v3", (int)handle->index, &pid);
    if (code || !pid) { *count = 0; return code; }
    if (!found || *count < 1) { *count = 1; return ERROR_INSUFFICIENT_SIZE; }
    *count = 1;
    found[0].pid = (unsigned int)pid;
    found[0].memory = handle->index == 0 ? 1000000000ull : ~0ull;
    return 0;
}
EXPORT int nvmlDeviceGetGraphicsRunningProcesses_v3(device *handle, unsigned int *count, process_info *found) {
    u64 v = 0;
    (void)found;
    *count = 0;
    return rule("nvmlDeviceGetGraphicsRunningProcesses_v3", (int)handle->index, &v);
}

EXPORT int nvmlEventSetCreate(void **set) { u64 v = 0; *set = devices; return rule("nvmlEventSetCreate", -1, &v); }
EXPORT int nvmlDeviceRegisterEvents(device *handle, u64 kinds, void *set) {
    (void)set;
    return rule("nvmlDeviceRegisterEvents", (int)handle->index, &kinds);
}

/* VALUE is the Xid, seen on device 1; without a line there is none. */
typedef struct { device *handle; u64 kind, data; unsigned int gpu_instance, compute_instance; } event_data;
EXPORT int nvmlEventSetWait_v2(void *set, event_data *event, unsigned int timeout_ms) {
    u64 xid = 0;
    int code = rule("nvmlEventSetWait_v2", -1, &xid);
    (void)set;
    usleep(20000);
    if (code || !xid) { (void)timeout_ms; return code ? code : ERROR_TIMEOUT; }
    memset(event, 0, sizeof *event);
    event->handle = &devices[1];
    event->kind = 8;
    event->data = xid;
    return 0;
}
