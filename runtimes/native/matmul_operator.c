// edgemem::MatMul: x [..., K] times w, plus an optional term. w is read as it lies, without a second copy.
// Inputs: x, w [K, N] ([N, K] where the attribute transposed is 1), add [N] or [..., N] (optional). Output [..., N].
#include <stdlib.h>

#include "operator.h"

#define NAME "edgemem::MatMul: "

struct matmul {
  const struct kernels *kernels;
  int64_t transposed;
};

struct call {
  struct product product;
  const struct kernels *kernels;
};

static void one_panel(void *data, size_t index) {
  const struct call *call = data;
  call->kernels->multiply(&call->product, (int64_t)index);
}

static OrtStatus *read_add(const OrtKernelContext *context, const int64_t *dims, size_t rank, struct product *product) {
  struct tensor add = {0};
  size_t inputs = 0;
  TRY(ort->KernelContext_GetInputCount(context, &inputs));
  if (inputs > 2) TRY(read_input(context, 2, &add));
  if (!add.data) return NULL;
  bool one_row = add.rank == 1;
  TRY(expect(&add, NAME, 2, "add", ORT_FLOAT32, one_row ? dims + rank - 1 : dims, one_row ? 1 : rank));
  product->add = add.data;
  product->add_row = one_row ? 0 : product->columns;
  return NULL;
}

static OrtStatus *compute(void *kernel, OrtKernelContext *context) {
  const struct matmul *matmul = kernel;
  struct tensor x, w;
  struct call call = {0};
  struct product *product = &call.product;
  TRY(read_input(context, 0, &x));
  TRY(read_input(context, 1, &w));
  if (x.rank < 1) return failure(NAME "x is a scalar, and must have an axis");
  product->depth = x.dims[x.rank - 1];
  product->columns = w.rank == 2 ? w.dims[!matmul->transposed] : 0;
  const int64_t columns = product->columns, depth = product->depth;
  const int64_t as_is[2] = {depth, columns}, turned[2] = {columns, depth};
  TRY(expect(&w, NAME, 1, "w", ORT_FLOAT32, matmul->transposed ? turned : as_is, 2));
  product->rows = rows_of(&x);
  product->transposed = matmul->transposed;
  x.dims[x.rank - 1] = columns;
  TRY(read_add(context, x.dims, x.rank, product));
  product->x = x.data, product->w = w.data;
  TRY(make_output(context, 0, x.dims, x.rank, (void **)&product->out));
  product->panel = columns <= 512 ? 256 : 512;
  call.kernels = matmul->kernels;
  int64_t panels = (columns + product->panel - 1) / product->panel;
  return run_tasks(context, one_panel, &call, panels, product->rows * depth * columns);
}

static OrtStatus *create(const OrtCustomOp *op, const OrtApi *api, const OrtKernelInfo *info, void **kernel) {
  (void)op, (void)api;
  struct matmul *matmul = malloc(sizeof *matmul);
  if (!matmul) return failure(NAME "no memory");
  matmul->kernels = levels[0];
  OrtStatus *status = integer_attribute(info, "transposed", 0, 1, &matmul->transposed);
  if (status) free(matmul);
  *kernel = status ? NULL : matmul;
  return status;
}

static void destroy(void *kernel) { free(kernel); }
static const char *name(const OrtCustomOp *op) { return op ? "MatMul" : NULL; }
static size_t inputs(const OrtCustomOp *op) { return op ? 3 : 0; }
static size_t outputs(const OrtCustomOp *op) { return op ? 1 : 0; }
static int input_is(const OrtCustomOp *op, size_t index) { return op && index == 2 ? ORT_OPTIONAL : ORT_REQUIRED; }
static int output_is(const OrtCustomOp *op, size_t index) { return op && index ? ORT_OPTIONAL : ORT_REQUIRED; }

const OrtCustomOp matmul_operator = {
    OPERATOR_BASICS, .GetName = name, .GetInputType = is_float, .GetInputTypeCount = inputs, .GetOutputType = is_float,
    .GetOutputTypeCount = outputs, .GetInputCharacteristic = input_is, .GetOutputCharacteristic = output_is,
    .CreateKernelV2 = create, .KernelComputeV2 = compute, .KernelDestroy = destroy};
