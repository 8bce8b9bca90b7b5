// The matrix library of a GPU that does not exist, as driver.c is its driver: it has an algorithm for everything, and
// multiplies nothing.

#include <stddef.h>
#include <stdint.h>
#include <string.h>

static uintptr_t last_handle;
static int new_handle(void **handle) { return *handle = (void *)(last_handle += 16), 0; }

int cublasLtCreate(void **library) { return new_handle(library); }
int cublasLtDestroy(void *library) { return 0; }
int cublasLtMatmulDescCreate(void **description, int compute, int scale) { return new_handle(description); }
int cublasLtMatmulDescSetAttribute(void *description, int attribute, const void *value, size_t bytes) { return 0; }
int cublasLtMatmulDescDestroy(void *description) { return 0; }
int cublasLtMatrixLayoutCreate(void **layout, int type, uint64_t rows, uint64_t columns, int64_t stride) {
    return new_handle(layout);
}
int cublasLtMatrixLayoutSetAttribute(void *layout, int attribute, const void *value, size_t bytes) { return 0; }
int cublasLtMatrixLayoutDestroy(void *layout) { return 0; }
int cublasLtMatmulPreferenceCreate(void **preference) { return new_handle(preference); }
int cublasLtMatmulPreferenceSetAttribute(void *preference, int attribute, const void *value, size_t bytes) { return 0; }
int cublasLtMatmulPreferenceDestroy(void *preference) { return 0; }

struct Choice {
    uint64_t algorithm[8];
    size_t workspace_bytes;
    int status;
    float waves;
    int reserved[4];
};
int cublasLtMatmulAlgoGetHeuristic(void *library, void *description, void *a, void *b, void *c, void *d, void *preference,
                                   int wanted, struct Choice *choices, int *found) {
    *found = wanted < 2 ? wanted : 2;
    memset(choices, 0, *found * sizeof *choices);
    for (int i = 0; i < *found; i++) choices[i].algorithm[0] = i == 0 ? 24 : 20; // tiles of 256 x 128 and of 128 x 128
    return 0;
}
int cublasLtMatmulAlgoConfigGetAttribute(const uint64_t *algorithm, int attribute, void *value, size_t bytes, size_t *written) {
    uint32_t tile = algorithm[0];
    if (attribute != 1 || bytes != sizeof tile) return 7;
    memcpy(value, &tile, bytes);
    return *written = bytes, 0;
}
int cublasLtMatmul(void) { return 0; }
