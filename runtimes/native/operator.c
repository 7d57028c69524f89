#include "operator.h"

#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

const OrtApi *ort;
bool ort_gives_references;
const struct kernels *const *levels;

static _Thread_local int64_t session_threads;
static _Thread_local bool session_exact;

// Says of the session that this thread makes next how many threads it will have, 0 being as many as there are
// processors, and whether it multiplies matrices of integers in floating point.
__attribute__((visibility("default"))) void edgemem_next_session(int64_t threads, int exact);
void edgemem_next_session(int64_t threads, int exact) { session_threads = threads, session_exact = exact; }

bool is_session_exact(void) { return session_exact; }

int64_t threads_of_session(void) {
  if (session_threads > 0) return session_threads;
  long processors = sysconf(_SC_NPROCESSORS_ONLN);
  return processors > 0 ? processors : 1;
}

OrtStatus *failure(const char *format, ...) {
  char text[512];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  return ort->CreateStatus(ORT_INVALID_ARGUMENT, text);
}

static OrtStatus *copy_shape(const OrtValue *value, size_t index, struct tensor *tensor) {
  OrtShape *shape = NULL;
  TRY(ort->GetTensorTypeAndShape(value, &shape));
  OrtStatus *status = ort->GetTensorElementType(shape, &tensor->type);
  if (!status) status = ort->GetDimensionsCount(shape, &tensor->rank);
  if (!status && tensor->rank > RANK_MAX)
    status = failure("input %zu has %zu axes; at most %d are supported", index, tensor->rank, RANK_MAX);
  if (!status) status = ort->GetDimensions(shape, tensor->dims, tensor->rank);
  ort->ReleaseTensorTypeAndShapeInfo(shape);
  return status;
}

static OrtStatus *read_shape(const OrtValue *value, size_t index, struct tensor *tensor) {
  const int64_t *dims = NULL;
  if (!ort_gives_references) return copy_shape(value, index, tensor);
  TRY(ort->GetTensorElementTypeAndShapeDataReference(value, &tensor->type, &dims, &tensor->rank));
  if (tensor->rank > RANK_MAX)
    return failure("input %zu has %zu axes; at most %d are supported", index, tensor->rank, RANK_MAX);
  for (size_t i = 0; i < tensor->rank; i++) tensor->dims[i] = dims[i];
  return NULL;
}

OrtStatus *read_input(const OrtKernelContext *context, size_t index, struct tensor *tensor) {
  const OrtValue *value = NULL;
  void *data = NULL;
  tensor->data = NULL, tensor->type = 0, tensor->rank = 0;
  TRY(ort->KernelContext_GetInput(context, index, &value));
  if (!value) return NULL;
  TRY(read_shape(value, index, tensor));
  TRY(ort->GetTensorMutableData((OrtValue *)value, &data));
  tensor->data = data ? data : tensor;  // a tensor without elements may have no address, and is present all the same
  return NULL;
}

OrtStatus *read_if_given(const OrtKernelContext *context, size_t index, struct tensor *tensor) {
  size_t inputs = 0;
  tensor->data = NULL, tensor->type = 0, tensor->rank = 0;
  TRY(ort->KernelContext_GetInputCount(context, &inputs));
  return index < inputs ? read_input(context, index, tensor) : NULL;
}

void join_axes(struct tensor *tensor, size_t first) {
  while (tensor->rank > first + 1) tensor->dims[first] *= tensor->dims[--tensor->rank];
}

OrtStatus *make_output(OrtKernelContext *context, size_t index, const int64_t *dims, size_t rank, void **data) {
  OrtValue *value = NULL;
  *data = NULL;
  TRY(ort->KernelContext_GetOutput(context, index, dims, rank, &value));
  if (!value) return NULL;
  TRY(ort->GetTensorMutableData(value, data));
  static char no_elements;  // such a tensor may have no address
  if (!*data) *data = &no_elements;
  return NULL;
}

static const char *type_name(int type) {
  switch (type) {
    case ORT_FLOAT32: return "float32";
    case ORT_FLOAT16: return "float16";
    case ORT_INT8: return "int8";
    case ORT_INT64: return "int64";
    case ORT_INT4: return "int4";
    default: return "another type";
  }
}

// Writes "float32 [1, 8, 256, 64]".
static void describe(char *text, size_t size, int type, const int64_t *dims, size_t rank) {
  size_t used = (size_t)snprintf(text, size, "%s [", type_name(type));
  for (size_t i = 0; i < rank && used < size; i++)
    used += (size_t)snprintf(text + used, size - used, i ? ", %lld" : "%lld", (long long)dims[i]);
  if (used < size) snprintf(text + used, size - used, "]");
}

OrtStatus *expect(const struct tensor *tensor, const char *owner, size_t index, const char *what, int type,
                  const int64_t *dims, size_t rank) {
  char got[160], want[160];
  bool same = tensor->data && tensor->type == type && tensor->rank == rank;
  for (size_t i = 0; same && i < rank; i++) same = tensor->dims[i] == dims[i];
  if (same) return NULL;
  describe(want, sizeof want, type, dims, rank);
  if (!tensor->data) return failure("%sinput %zu (%s) is missing; it must be %s", owner, index, what, want);
  describe(got, sizeof got, tensor->type, tensor->dims, tensor->rank);
  return failure("%sinput %zu (%s) is %s, and must be %s", owner, index, what, got, want);
}

OrtStatus *float_attribute(const OrtKernelInfo *info, const char *name, float *value) {
  OrtStatus *status = ort->KernelInfoGetAttribute_float(info, name, value);
  if (!status) return NULL;
  ort->ReleaseStatus(status);
  return failure("the attribute %s is missing; it must be a float", name);
}

OrtStatus *integer_attribute(const OrtKernelInfo *info, const char *name, int64_t least, int64_t most, int64_t *value) {
  OrtStatus *status = ort->KernelInfoGetAttribute_int64(info, name, value);
  if (status) {
    ort->ReleaseStatus(status);
    return failure("the attribute %s is missing; it must be an integer from %lld to %lld", name, (long long)least,
                   (long long)most);
  }
  if (*value >= least && *value <= most) return NULL;
  return failure("the attribute %s is %lld, and must be from %lld to %lld", name, (long long)*value, (long long)least,
                 (long long)most);
}

OrtStatus *run_tasks(const OrtKernelContext *context, void (*task)(void *data, size_t index), void *data, int64_t count,
                     int64_t work) {
  const int64_t worth_a_thread = 1 << 16;
  if (count > 1 && work >= 2 * worth_a_thread)
    return ort->KernelContext_ParallelFor(context, task, (size_t)count, 0, data);
  for (int64_t index = 0; index < count; index++) task(data, (size_t)index);
  return NULL;
}

int64_t rows_of(const struct tensor *tensor) {
  int64_t rows = 1;
  for (size_t i = 0; i + 1 < tensor->rank; i++) rows *= tensor->dims[i];
  return rows;
}

#define UNUSED __attribute__((unused))
const char *on_the_cpu(UNUSED const OrtCustomOp *op) { return NULL; }
int in_memory(UNUSED const OrtCustomOp *op, UNUSED size_t index) { return 0; }
int is_float(UNUSED const OrtCustomOp *op, UNUSED size_t index) { return ORT_FLOAT32; }
int first_version(UNUSED const OrtCustomOp *op) { return 1; }
int last_version(UNUSED const OrtCustomOp *op) { return INT_MAX; }
int one(UNUSED const OrtCustomOp *op) { return 1; }
int zero(UNUSED const OrtCustomOp *op) { return 0; }
void free_kernel(void *kernel) { free(kernel); }
void keep_kernel(UNUSED void *kernel) {}
