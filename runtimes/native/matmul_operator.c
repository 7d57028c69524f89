// edgemem::MatMul: x [..., K] times w, plus an optional term. w is read as it lies, without a second copy.
// Inputs: x, w [K, N] ([N, K] where the attribute transposed is 1), add [N] or [..., N] (optional), scale [K / block, N]
// (optional: w has integers of 4 bits). Output [..., N].
#include <stdlib.h>

#include "stages.h"

#define NAME "edgemem::MatMul: "

struct matmul {
  struct engine engine;
  int64_t transposed;
};

static OrtStatus *compute(void *kernel, OrtKernelContext *context) {
  const struct matmul *matmul = kernel;
  struct tensor x;
  struct product product = {.transposed = matmul->transposed};
  TRY(read_input(context, 0, &x));
  if (x.rank < 1) return failure(NAME "x is a scalar, and must have an axis");
  product.rows = rows_of(&x), product.depth = x.dims[x.rank - 1], product.x = x.data;
  TRY(read_matrix(context, NAME, 1, "w", 3, &product));
  x.dims[x.rank - 1] = product.columns;
  TRY(read_add(context, NAME, 2, x.dims, x.rank, &product));
  TRY(make_output(context, 0, x.dims, x.rank, (void **)&product.out));
  return run_product(context, &matmul->engine, &product);
}

static OrtStatus *create(const OrtCustomOp *op, const OrtApi *api, const OrtKernelInfo *info, void **kernel) {
  (void)op, (void)api;
  struct matmul *matmul = malloc(sizeof *matmul);
  if (!matmul) return failure(NAME "no memory");
  matmul->engine = engine_of_session();
  OrtStatus *status = integer_attribute(info, "transposed", 0, 1, &matmul->transposed);
  if (status) free(matmul);
  *kernel = status ? NULL : matmul;
  return status;
}

static int input_type(const OrtCustomOp *op, size_t index) { return op && index == 1 ? ORT_ANY : ORT_FLOAT32; }
static const char *name(const OrtCustomOp *op) { return op ? "MatMul" : NULL; }
static size_t inputs(const OrtCustomOp *op) { return op ? 4 : 0; }
static size_t outputs(const OrtCustomOp *op) { return op ? 1 : 0; }
static int input_is(const OrtCustomOp *op, size_t index) { return op && index > 1 ? ORT_OPTIONAL : ORT_REQUIRED; }
static int output_is(const OrtCustomOp *op, size_t index) { return op && index ? ORT_OPTIONAL : ORT_REQUIRED; }

const OrtCustomOp matmul_operator = {
    OPERATOR_BASICS, .GetName = name, .GetInputType = input_type, .GetInputTypeCount = inputs, .GetOutputType = is_float,
    .GetOutputTypeCount = outputs, .GetInputCharacteristic = input_is, .GetOutputCharacteristic = output_is,
    .CreateKernelV2 = create, .KernelComputeV2 = compute, .KernelDestroy = free_kernel};
