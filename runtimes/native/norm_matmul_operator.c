// edgemem::NormMatMul: RMSNorm(x) times w, plus an optional term: the beginning of a layer's half as one node.
// Inputs: x [..., K], norm [K], w [K, N] ([N, K] where the attribute transposed is 1), add [N] or [..., N] (optional),
// scale [K / block, N] (optional: w has integers of 4 bits).
// Outputs: [..., N], and RMSNorm(x) [..., K], which every node must name: it is where the norm's rows lie meanwhile.
#include <stdlib.h>

#include "stages.h"

#define NAME "edgemem::NormMatMul: "

struct norm_matmul {
  struct engine engine;
  int64_t transposed;
  float epsilon;
};

static OrtStatus *compute(void *kernel, OrtKernelContext *context) {
  const struct norm_matmul *self = kernel;
  struct tensor x, weight;
  struct product product = {.transposed = self->transposed};
  TRY(read_input(context, 0, &x));
  TRY(read_input(context, 1, &weight));
  if (x.rank < 1) return failure(NAME "x is a scalar, and must have an axis");
  const int64_t width = x.dims[x.rank - 1];
  product.rows = rows_of(&x), product.depth = width;
  TRY(expect(&weight, NAME, 1, "norm", ORT_FLOAT32, &width, 1));
  TRY(read_matrix(context, NAME, 2, "w", 4, &product));
  struct rms_norm norm = {self->engine.kernels, x.data, NULL, weight.data, self->epsilon, NULL, NULL, width};
  TRY(make_output(context, 1, x.dims, x.rank, (void **)&norm.out));
  if (!norm.out) return failure(NAME "output 1 (the norm's rows) is not connected");
  x.dims[x.rank - 1] = product.columns;
  TRY(read_add(context, NAME, 3, x.dims, x.rank, &product));
  TRY(make_output(context, 0, x.dims, x.rank, (void **)&product.out));
  TRY(run_rms_norm(context, &norm, product.rows));
  product.x = norm.out;
  return run_product(context, &self->engine, &product);
}

static OrtStatus *create(const OrtCustomOp *op, const OrtApi *api, const OrtKernelInfo *info, void **kernel) {
  (void)op, (void)api;
  struct norm_matmul *self = malloc(sizeof *self);
  if (!self) return failure(NAME "no memory");
  self->engine = engine_of_session();
  OrtStatus *status = integer_attribute(info, "transposed", 0, 1, &self->transposed);
  if (!status) status = float_attribute(info, "eps", &self->epsilon);
  if (status) free(self);
  *kernel = status ? NULL : self;
  return status;
}

static int input_type(const OrtCustomOp *op, size_t index) { return op && index == 2 ? ORT_ANY : ORT_FLOAT32; }
static const char *name(const OrtCustomOp *op) { return op ? "NormMatMul" : NULL; }
static size_t inputs(const OrtCustomOp *op) { return op ? 5 : 0; }
static size_t outputs(const OrtCustomOp *op) { return op ? 2 : 0; }
static int input_is(const OrtCustomOp *op, size_t index) { return op && index > 2 ? ORT_OPTIONAL : ORT_REQUIRED; }
static int output_is(const OrtCustomOp *op, size_t index) { return op && index > 1 ? ORT_OPTIONAL : ORT_REQUIRED; }

const OrtCustomOp norm_matmul_operator = {
    OPERATOR_BASICS, .GetName = name, .GetInputType = input_type, .GetInputTypeCount = inputs, .GetOutputType = is_float,
    .GetOutputTypeCount = outputs, .GetInputCharacteristic = input_is, .GetOutputCharacteristic = output_is,
    .CreateKernelV2 = create, .KernelComputeV2 = compute, .KernelDestroy = free_kernel};
