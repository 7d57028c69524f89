/* A libcudart whose device is host memory. Work is done when it is issued; during a capture it is recorded instead. */
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

enum { OK = 0, INVALID = 1, FULL = 2, NO_DEVICE = 100 };
typedef struct { size_t x, y, z; } Pos;
typedef struct { char *ptr; size_t pitch, xsize, ysize; } Pitched;
typedef struct { void *src_array; Pos src_pos; Pitched src; void *dst_array; Pos dst_pos; Pitched dst; Pos extent; int kind; } Box;
typedef struct Copy { Box box; struct Copy *next; } Copy;

static Copy **recording;
static int devices(void) { const char *set = getenv("STAND_IN_DEVICES"); return set ? atoi(set) : 1; }

const char *cudaGetErrorName(int code) {
    return code == FULL ? "cudaErrorMemoryAllocation" : code == NO_DEVICE ? "cudaErrorNoDevice" : "cudaErrorInvalidValue";
}
int cudaDriverGetVersion(int *v) { *v = 12060; return OK; }
int cudaRuntimeGetVersion(int *v) { *v = 12060; return OK; }
int cudaGetDeviceCount(int *n) { *n = devices(); return *n ? OK : NO_DEVICE; }
int cudaDeviceGetAttribute(int *v, int which, int device) { *v = which == 75 ? 8 : which == 76 ? 7 : 1; return device; }
int cudaDeviceGetPCIBusId(char *text, int length, int device) { strncpy(text, "0000:01:00.0", length); return device; }
int cudaGetDeviceProperties(char *p, int device) { strcpy(p, "Board"); return device; }
int cudaSetDevice(int device) { return device < devices() ? OK : INVALID; }
int cudaGetLastError(void) { return OK; }
int cudaMemGetInfo(size_t *free, size_t *total) { *free = 3u << 30; *total = 4ul << 30; return OK; }
int cudaMalloc(void **p, size_t n) {
    if (n > 1ul << 30) return FULL;
    if (posix_memalign(p, 256, n)) return FULL;
    memset(*p, 0xFF, n);
    return OK;
}
int cudaFree(void *p) { free(p); return OK; }
int cudaHostAlloc(void **p, size_t n, unsigned flags) { return flags ? INVALID : cudaMalloc(p, n); }
int cudaFreeHost(void *p) { return cudaFree(p); }

static void copy(const Box *b) {
    for (size_t z = 0; z < b->extent.z; z++)
        for (size_t y = 0; y < b->extent.y; y++)
            memmove(b->dst.ptr + b->dst_pos.x + (b->dst_pos.y + y + (b->dst_pos.z + z) * b->dst.ysize) * b->dst.pitch,
                    b->src.ptr + b->src_pos.x + (b->src_pos.y + y + (b->src_pos.z + z) * b->src.ysize) * b->src.pitch,
                    b->extent.x);
}
int cudaMemcpy3DAsync(const Box *b, void *stream) {
    if (b->extent.x > b->dst.pitch || b->extent.x > b->src.pitch || !stream) return INVALID;
    if (!recording) { copy(b); return OK; }
    for (; *recording; recording = &(*recording)->next) {}
    *recording = calloc(1, sizeof(Copy));
    (*recording)->box = *b;
    return OK;
}
int cudaMemcpy2DAsync(char *dst, size_t dpitch, char *src, size_t spitch, size_t width, size_t height, int kind, void *stream) {
    Box b = {.src = {src, spitch, width, height}, .dst = {dst, dpitch, width, height}, .extent = {width, height, 1}, .kind = kind};
    return cudaMemcpy3DAsync(&b, stream);
}
int cudaMemcpyAsync(char *dst, char *src, size_t n, int kind, void *stream) {
    return cudaMemcpy2DAsync(dst, n, src, n, n, 1, kind, stream);
}

int cudaStreamCreateWithFlags(void **s, unsigned flags) { *s = malloc(1); return flags > 1 ? INVALID : OK; }
int cudaStreamDestroy(void *s) { return cudaFree(s); }
int cudaStreamSynchronize(void *s) { return s && !recording ? OK : INVALID; }
static Copy *head;
int cudaStreamBeginCapture(void *s, int mode) { head = NULL; recording = &head; return s && mode == 1 ? OK : INVALID; }
int cudaStreamEndCapture(void *s, void **graph) {
    Copy **box = malloc(sizeof *box);
    *box = head; recording = NULL; *graph = box;
    return s ? OK : INVALID;
}
int cudaGraphInstantiate(void **made, Copy **graph, unsigned long long flags) {
    Copy **box = malloc(sizeof *box);
    *box = *graph; *made = box;
    return flags ? INVALID : OK;
}
int cudaGraphLaunch(Copy **graph, void *s) {
    for (Copy *each = *graph; each; each = each->next) copy(&each->box);
    return s ? OK : INVALID;
}
int cudaGraphDestroy(void *g) { return cudaFree(g); }
int cudaGraphExecDestroy(void *g) { return cudaFree(g); }

int cudaEventCreate(void **e) { *e = malloc(1); return OK; }
int cudaEventRecord(void *e, void *s) { return e && s ? OK : INVALID; }
int cudaEventElapsedTime(float *ms, void *a, void *b) { *ms = 1.5f; return a && b ? OK : INVALID; }
int cudaEventDestroy(void *e) { return cudaFree(e); }
