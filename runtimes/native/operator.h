// What all operators share: reading tensors, and errors in words.
#ifndef EDGEMEM_OPERATOR_H
#define EDGEMEM_OPERATOR_H

#include <stdbool.h>

#include "kernels.h"
#include "ort_abi.h"

enum { RANK_MAX = 8 };

// ONNX Runtime's functions, and the instruction sets for kernels made from now on; set as the library is registered.
extern const OrtApi *ort;
extern bool ort_gives_references;  // it has GetTensorElementTypeAndShapeDataReference
extern const struct kernels *const *levels;

// Of the session that is being made in this thread; its kernels keep both.
int64_t threads_of_session(void);
bool is_session_exact(void);

extern const OrtCustomOp memory_attention_operator, swiglu_operator, rms_norm_operator, matmul_operator;
extern const OrtCustomOp norm_matmul_operator, gated_mlp_operator;
extern const OrtCustomOp causal_conv_operator, selective_state_operator, gated_delta_operator, weighted_past_operator;
extern const OrtCustomOp linear_attention_operator;

struct tensor {
  const void *data;  // null: an optional input that is absent
  int type;
  size_t rank;
  int64_t dims[RANK_MAX];
};

// An error for the user, as printf would write it.
OrtStatus *failure(const char *format, ...) __attribute__((format(printf, 1, 2)));

// Returns from the function with an error, if there is one.
#define TRY(call)                        \
  do {                                   \
    OrtStatus *status_ = (call);         \
    if (status_) return status_;         \
  } while (0)

OrtStatus *read_input(const OrtKernelContext *context, size_t index, struct tensor *tensor);

// The same; absent too where the graph's node ends before it.
OrtStatus *read_if_given(const OrtKernelContext *context, size_t index, struct tensor *tensor);

// Makes the axes from `first` on one.
void join_axes(struct tensor *tensor, size_t first);

// An output's place; null where the graph does not use it.
OrtStatus *make_output(OrtKernelContext *context, size_t index, const int64_t *dims, size_t rank, void **data);

// The error of a tensor that has not this element type and these dimensions. The message names operator and tensor.
OrtStatus *expect(const struct tensor *tensor, const char *owner, size_t index, const char *what, int type,
                  const int64_t *dims, size_t rank);

OrtStatus *float_attribute(const OrtKernelInfo *info, const char *name, float *value);
OrtStatus *integer_attribute(const OrtKernelInfo *info, const char *name, int64_t least, int64_t most, int64_t *value);

// Runs tasks 0 .. count - 1, on the session's threads where `work` (multiplications of all) is worth it.
OrtStatus *run_tasks(const OrtKernelContext *context, void (*task)(void *data, size_t index), void *data, int64_t count,
                     int64_t work);

// Product of the first dimensions: rows of a tensor whose last axis is the width.
int64_t rows_of(const struct tensor *tensor);

// Parts of an OrtCustomOp that are the same for all.
const char *on_the_cpu(const OrtCustomOp *op);
int in_memory(const OrtCustomOp *op, size_t index);
int is_float(const OrtCustomOp *op, size_t index);
int first_version(const OrtCustomOp *op);
int last_version(const OrtCustomOp *op);
int one(const OrtCustomOp *op);
int zero(const OrtCustomOp *op);
void free_kernel(void *kernel);  // one that `create` has allocated
void keep_kernel(void *kernel);  // one that is shared and lives on

#define OPERATOR_BASICS                                                                                             \
  .version = ORT_API_VERSION, .GetExecutionProviderType = on_the_cpu, .GetInputMemoryType = in_memory,              \
  .GetVariadicInputMinArity = one, .GetVariadicInputHomogeneity = zero, .GetVariadicOutputMinArity = one,           \
  .GetVariadicOutputHomogeneity = zero, .GetStartVersion = first_version, .GetEndVersion = last_version

#endif
