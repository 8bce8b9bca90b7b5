// The driver of a GPU that does not exist: the CUDA driver's functions that Burn and Firebrick call, with host memory for the
// device's. Kernels are not run. What a launch asks for is checked against what an H200 grants, and memory must not be
// allocated while a graph is recorded: a violation is reported and the call fails, as it would on a GPU.
//
// So that everything around the kernels runs where there is no GPU: that each variant a model needs compiles when it is asked
// for, that steps can be recorded and replayed, that results come back. See scripts/check-cuda-host.sh.

#define _GNU_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NOT_SUPPORTED = 801, NOT_PERMITTED_WHILE_CAPTURING = 900 };
enum { SHARED_BYTES_WITHOUT_ASKING = 48 << 10, SHARED_BYTES_MAX = 227 << 10, MEMORY_GIB = 20, FUNCTIONS_MAX = 4096, BLOCKS_MAX = 1 << 16 };

typedef uint64_t Address;

#define RUNTIME_BYTES (((size_t)263 << 20) + stack_bytes * 132 * 2048) // a context, and the stacks of all threads of an H200

static size_t stack_bytes = 1024;

static int is_capturing;
static size_t nodes;          // of the graph that is being recorded
static uintptr_t last_handle; // streams, events, modules and graphs are numbers

static void *new_handle(void) { return (void *)(last_handle += 16); }

static int refuse(const char *what, int error) {
    fprintf(stderr, "null CUDA driver: %s\n", what);
    return error;
}

// Device.

static int attribute_of_h200(int attribute) {
    switch (attribute) {
    case 1: return 1024;                          // threads of a block
    case 2: case 3: return 1024;                  // along x and y
    case 4: return 64;                            // along z
    case 5: return 2147483647;                    // blocks along x
    case 6: case 7: return 65535;                 // along y and z
    case 8: return SHARED_BYTES_WITHOUT_ASKING;   // of a block
    case 10: return 32;                           // lanes of a warp
    case 12: case 82: return 65536;               // registers of a block and a multiprocessor
    case 16: return 132;                          // multiprocessors
    case 39: return 2048;                         // threads of a multiprocessor
    case 75: return 9;                            // compute capability 9.0
    case 76: return 0;
    case 81: return 228 << 10;                    // shared memory of a multiprocessor
    case 97: return SHARED_BYTES_MAX;             // of a block that asks for it
    default: return 1;
    }
}
// The compiler looks for the driver's private functions, and does without.
int cuGetExportTable(const void **table, const void *id) { return *table = NULL, NOT_SUPPORTED; }
int cuInit(unsigned flags) { return SUCCESS; }
int cuDriverGetVersion(int *version) { return *version = 13000, SUCCESS; }
int cuDeviceGet(int *device, int ordinal) { return *device = ordinal, SUCCESS; }
int cuDeviceGetCount(int *count) { return *count = 1, SUCCESS; }
int cuDeviceGetName(char *name, int length, int device) { return snprintf(name, length, "null GPU"), SUCCESS; }
int cuDeviceGetUuid(void *uuid, int device) { return memset(uuid, 1, 16), SUCCESS; }
int cuDeviceGetUuid_v2(void *uuid, int device) { return cuDeviceGetUuid(uuid, device); }
int cuDeviceGetLuid(char *luid, unsigned *mask, int device) { return NOT_SUPPORTED; }
int cuDeviceGetPCIBusId(char *id, int length, int device) { return snprintf(id, length, "0000:00:00.0"), SUCCESS; }
int cuDeviceTotalMem_v2(size_t *bytes, int device) { return *bytes = (size_t)MEMORY_GIB << 30, SUCCESS; }
int cuDeviceGetAttribute(int *value, int attribute, int device) { return *value = attribute_of_h200(attribute), SUCCESS; }
int cuDevicePrimaryCtxRetain(void **context, int device) { return *context = new_handle(), SUCCESS; }
int cuDevicePrimaryCtxRelease_v2(int device) { return SUCCESS; }
int cuCtxSetCurrent(void *context) { return SUCCESS; }
int cuCtxGetCurrent(void **context) { return *context = (void *)1, SUCCESS; }
int cuCtxSetLimit(int limit, size_t value) {
    if (limit == 0) stack_bytes = value;
    return SUCCESS;
}
int cuCtxSynchronize(void) { return SUCCESS; }
int cuCtxGetStreamPriorityRange(int *least, int *greatest) { return *least = 0, *greatest = -5, SUCCESS; }

// Memory: pages that take room only when they are touched. What is allocated of the device's is counted.

static size_t allocated, allocated_at_most;
static struct Block {
    Address address;
    size_t bytes;
} blocks[BLOCKS_MAX];
static int num_blocks;

static void *new_memory(size_t bytes) {
    void *memory = mmap(NULL, bytes ? bytes : 1, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return memory == MAP_FAILED ? NULL : memory;
}
static int allocate(void **memory, size_t bytes) {
    if (is_capturing) return refuse("memory is allocated while a graph is recorded", NOT_PERMITTED_WHILE_CAPTURING);
    return (*memory = new_memory(bytes)) ? SUCCESS : OUT_OF_MEMORY;
}
int cuMemGetInfo_v2(size_t *free, size_t *total) {
    *total = (size_t)MEMORY_GIB << 30, *free = *total - RUNTIME_BYTES - allocated;
    return SUCCESS;
}
int cuMemAlloc_v2(Address *address, size_t bytes) {
    if (allocated + bytes > ((size_t)MEMORY_GIB << 30) - RUNTIME_BYTES) return OUT_OF_MEMORY;
    if (num_blocks == BLOCKS_MAX) return refuse("more allocations than it can count", OUT_OF_MEMORY);
    int error = allocate((void **)address, bytes);
    if (error) return error;
    blocks[num_blocks++] = (struct Block){*address, bytes};
    allocated += bytes;
    if (allocated > allocated_at_most) allocated_at_most = allocated;
    return SUCCESS;
}
int cuMemAllocAsync(Address *address, size_t bytes, void *stream) { return cuMemAlloc_v2(address, bytes); }
int cuMemFree_v2(Address address) {
    for (int i = 0; i < num_blocks; i++) {
        if (blocks[i].address != address) continue;
        munmap((void *)address, blocks[i].bytes);
        allocated -= blocks[i].bytes;
        blocks[i] = blocks[--num_blocks];
        return SUCCESS;
    }
    return refuse("memory is freed that is not allocated", INVALID_VALUE);
}
int cuMemFreeAsync(Address address, void *stream) { return cuMemFree_v2(address); }
// What was allocated at the worst moment, for those who ask by NULL_CUDA_MEMORY.
__attribute__((destructor)) static void tell_memory(void) {
    const char *file = getenv("NULL_CUDA_MEMORY");
    FILE *to = file ? fopen(file, "w") : NULL;
    if (to) fprintf(to, "%zu\n", (allocated_at_most + RUNTIME_BYTES) >> 20), fclose(to);
}
int cuMemAllocHost_v2(void **memory, size_t bytes) { return allocate(memory, bytes); }
int cuMemHostAlloc(void **memory, size_t bytes, unsigned flags) { return allocate(memory, bytes); }
int cuMemFreeHost(void *memory) { return SUCCESS; }
int cuMemHostGetDevicePointer_v2(Address *address, void *memory, unsigned flags) { return *address = (Address)memory, SUCCESS; }
int cuMemcpyHtoDAsync_v2(Address to, const void *from, size_t bytes, void *stream) {
    return memcpy((void *)to, from, bytes), SUCCESS;
}
int cuMemcpyDtoHAsync_v2(void *to, Address from, size_t bytes, void *stream) {
    return memcpy(to, (void *)from, bytes), SUCCESS;
}
int cuMemcpyDtoDAsync_v2(Address to, Address from, size_t bytes, void *stream) {
    return memmove((void *)to, (void *)from, bytes), SUCCESS;
}
int cuMemsetD8Async(Address to, unsigned char value, size_t count, void *stream) { return SUCCESS; }
int cuMemsetD32Async(Address to, unsigned value, size_t count, void *stream) { return SUCCESS; }

enum { HOST_MEMORY = 1 };
struct Side {
    size_t x, y;
    unsigned kind;
    char *host;
    Address device;
    void *array;
    size_t pitch;
};
struct Copy2D {
    struct Side from, to;
    size_t width, height;
};
static char *row_of(const struct Side *side, size_t row) {
    char *first = side->kind == HOST_MEMORY ? side->host : (char *)side->device;
    return first + (side->y + row) * side->pitch + side->x;
}
int cuMemcpy2DAsync_v2(const struct Copy2D *copy, void *stream) {
    for (size_t row = 0; row < copy->height; row++) memcpy(row_of(&copy->to, row), row_of(&copy->from, row), copy->width);
    return SUCCESS;
}

// Streams, events and graphs.

int cuStreamCreate(void **stream, unsigned flags) { return *stream = new_handle(), SUCCESS; }
int cuStreamCreateWithPriority(void **stream, unsigned flags, int priority) { return *stream = new_handle(), SUCCESS; }
int cuStreamDestroy_v2(void *stream) { return SUCCESS; }
int cuStreamSynchronize(void *stream) { return SUCCESS; }
int cuStreamQuery(void *stream) { return SUCCESS; }
int cuStreamWaitEvent(void *stream, void *event, unsigned flags) { return SUCCESS; }
int cuStreamBeginCapture_v2(void *stream, int mode) { return is_capturing = 1, nodes = 0, SUCCESS; }
int cuStreamEndCapture(void *stream, void **graph) { return is_capturing = 0, *graph = new_handle(), SUCCESS; }
int cuStreamIsCapturing(void *stream, int *status) { return *status = is_capturing, SUCCESS; }
int cuEventCreate(void **event, unsigned flags) { return *event = new_handle(), SUCCESS; }
int cuEventDestroy_v2(void *event) { return SUCCESS; }
int cuEventRecord(void *event, void *stream) { return SUCCESS; }
int cuEventSynchronize(void *event) { return SUCCESS; }
int cuEventQuery(void *event) { return SUCCESS; }
int cuEventElapsedTime_v2(float *milliseconds, void *start, void *end) { return *milliseconds = 1, SUCCESS; }
int cuGraphGetNodes(void *graph, void **list, size_t *count) {
    for (size_t i = 0; list && i < *count; i++) list[i] = new_handle();
    return *count = nodes, SUCCESS;
}
int cuGraphNodeGetType(void *node, int *type) { return *type = 0, SUCCESS; } // a kernel
int cuGraphInstantiateWithFlags(void **executable, void *graph, unsigned long long flags) {
    return *executable = new_handle(), SUCCESS;
}
int cuGraphUpload(void *executable, void *stream) { return SUCCESS; }
int cuGraphLaunch(void *executable, void *stream) { return SUCCESS; }
int cuGraphDestroy(void *graph) { return SUCCESS; }
int cuGraphExecDestroy(void *executable) { return SUCCESS; }

// Kernels.

struct Function {
    char name[64];
    unsigned shared_bytes; // it may use
};
static struct Function functions[FUNCTIONS_MAX];
static int num_functions;

enum { MAX_DYNAMIC_SHARED_SIZE_BYTES = 8 };
int cuModuleLoadData(void **module, const void *image) { return *module = new_handle(), SUCCESS; }
int cuModuleUnload(void *module) { return SUCCESS; }
int cuModuleGetFunction(struct Function **function, void *module, const char *name) {
    if (num_functions == FUNCTIONS_MAX) return refuse("more functions than it has room for", OUT_OF_MEMORY);
    *function = &functions[num_functions++];
    snprintf((*function)->name, sizeof (*function)->name, "%s", name);
    (*function)->shared_bytes = SHARED_BYTES_WITHOUT_ASKING;
    return SUCCESS;
}
int cuFuncGetAttribute(int *value, int attribute, struct Function *function) { return *value = 0, SUCCESS; }
int cuFuncSetAttribute(struct Function *function, int attribute, int value) {
    if (attribute != MAX_DYNAMIC_SHARED_SIZE_BYTES) return SUCCESS;
    if (value > SHARED_BYTES_MAX) return refuse("a kernel asks for more shared memory than a block has", INVALID_VALUE);
    return function->shared_bytes = value, SUCCESS;
}

enum { CLUSTER_DIMENSION = 4 };
struct Attribute {
    int id;
    char padding[4];
    union {
        char bytes[64];
        unsigned cluster[3];
    } value;
};
struct Launch {
    unsigned blocks[3], threads[3], shared_bytes;
    void *stream;
    struct Attribute *attributes;
    unsigned num_attributes;
};
// The two kernels without which no request ends. The choice of tokens leaves the second token for every row, and no row with
// numbers that are not finite; results are copied to the host.
static void run(const char *name, unsigned rows, void **arguments) {
    if (strcmp(name, "sample") == 0) {
        int *out = *(int **)arguments[3];
        for (unsigned row = 0; row < rows; row++) out[row] = 1, out[rows + row] = 0;
    } else if (strcmp(name, "read_back") == 0) {
        memcpy(*(void **)arguments[0], *(void **)arguments[1], *(int *)arguments[2] * sizeof(int));
    }
}
int cuLaunchKernelEx(const struct Launch *launch, struct Function *function, void **arguments, void **extra) {
    char what[256];
    const unsigned *blocks = launch->blocks, *threads = launch->threads;
    int fits = blocks[1] <= 65535 && blocks[2] <= 65535 && threads[0] * threads[1] * threads[2] <= 1024 &&
               launch->shared_bytes <= function->shared_bytes;
    for (unsigned i = 0; i < launch->num_attributes; i++) {
        const struct Attribute *attribute = &launch->attributes[i];
        if (attribute->id == CLUSTER_DIMENSION) fits &= attribute->value.cluster[0] <= 8 && blocks[0] % attribute->value.cluster[0] == 0;
    }
    if (!fits) {
        snprintf(what, sizeof what, "%s with %u x %u x %u blocks of %u threads and %u bytes of shared memory cannot run",
                 function->name, blocks[0], blocks[1], blocks[2], threads[0], launch->shared_bytes);
        return refuse(what, INVALID_VALUE);
    }
    if (is_capturing) nodes++;
    run(function->name, blocks[1], arguments);
    return SUCCESS;
}
int cuLaunchKernel(struct Function *function, unsigned x, unsigned y, unsigned z, unsigned threads_x, unsigned threads_y,
                   unsigned threads_z, unsigned shared_bytes, void *stream, void **arguments, void **extra) {
    struct Launch launch = {{x, y, z}, {threads_x, threads_y, threads_z}, shared_bytes, stream, NULL, 0};
    return cuLaunchKernelEx(&launch, function, arguments, extra);
}
int cuTensorMapEncodeTiled(void *map, int type, unsigned rank, void *address, const uint64_t *sizes, const uint64_t *strides,
                           const unsigned *box, const unsigned *steps, int interleave, int swizzle, int promotion, int fill) {
    int fits = (uintptr_t)address % 16 == 0;
    for (unsigned i = 0; i < rank; i++) fits &= sizes[i] > 0 && box[i] > 0 && box[i] <= 256;
    for (unsigned i = 0; i + 1 < rank; i++) fits &= strides[i] % 16 == 0;
    return fits ? SUCCESS : refuse("a description of a matrix for bulk copies is not valid", INVALID_VALUE);
}
int cuGetErrorName(int error, const char **name) { return *name = "an error of the null CUDA driver", SUCCESS; }
int cuGetErrorString(int error, const char **text) { return cuGetErrorName(error, text); }
