// edgemem::RMSNorm: adds a residual and normalises. Inputs: x [..., C], weight [C], delta [..., C] (optional).
// Outputs: (x + delta) / sqrt(mean((x + delta)^2) + eps) * weight, and x + delta (optional).
#include <stdlib.h>

#include "stages.h"

struct norm {
  const struct kernels *kernels;
  float epsilon;
};

static OrtStatus *compute(void *kernel, OrtKernelContext *context) {
  const struct norm *norm = kernel;
  struct tensor x, weight, delta = {0};
  size_t inputs = 0, outputs = 0;
  TRY(ort->KernelContext_GetInputCount(context, &inputs));
  TRY(ort->KernelContext_GetOutputCount(context, &outputs));
  TRY(read_input(context, 0, &x));
  TRY(read_input(context, 1, &weight));
  if (inputs > 2) TRY(read_input(context, 2, &delta));
  if (x.rank < 1) return failure("edgemem::RMSNorm: x is a scalar, and must have an axis");
  int64_t width = x.dims[x.rank - 1];
  TRY(expect(&weight, "edgemem::RMSNorm: ", 1, "weight", ORT_FLOAT32, &width, 1));
  if (delta.data) TRY(expect(&delta, "edgemem::RMSNorm: ", 2, "delta", ORT_FLOAT32, x.dims, x.rank));
  struct rms_norm call = {norm->kernels, x.data, delta.data, weight.data, norm->epsilon,
                          NULL, NULL, width};
  TRY(make_output(context, 0, x.dims, x.rank, (void **)&call.out));
  if (outputs > 1) TRY(make_output(context, 1, x.dims, x.rank, (void **)&call.sum));
  return run_rms_norm(context, &call, rows_of(&x));
}

static OrtStatus *create(const OrtCustomOp *op, const OrtApi *api, const OrtKernelInfo *info, void **kernel) {
  (void)op, (void)api;
  struct norm *norm = malloc(sizeof *norm);
  if (!norm) return failure("edgemem::RMSNorm: no memory");
  norm->kernels = levels[0];
  OrtStatus *status = float_attribute(info, "eps", &norm->epsilon);
  if (status) free(norm);
  *kernel = status ? NULL : norm;
  return status;
}

static const char *name(const OrtCustomOp *op) { return op ? "RMSNorm" : NULL; }
static size_t inputs(const OrtCustomOp *op) { return op ? 3 : 0; }
static size_t outputs(const OrtCustomOp *op) { return op ? 2 : 0; }
static int input_is(const OrtCustomOp *op, size_t index) { return op && index == 2 ? ORT_OPTIONAL : ORT_REQUIRED; }
static int output_is(const OrtCustomOp *op, size_t index) { return op && index == 1 ? ORT_OPTIONAL : ORT_REQUIRED; }

const OrtCustomOp rms_norm_operator = {
    OPERATOR_BASICS, .GetName = name, .GetInputType = is_float, .GetInputTypeCount = inputs, .GetOutputType = is_float,
    .GetOutputTypeCount = outputs, .GetInputCharacteristic = input_is, .GetOutputCharacteristic = output_is,
    .CreateKernelV2 = create, .KernelComputeV2 = compute, .KernelDestroy = free_kernel};
