// edgemem::SwiGLU: silu(gate) * up. Inputs: gate and up [..., M], or both side by side [..., 2M]. Output [..., M].

#include "operator.h"

struct swiglu {
  const struct kernels *kernels;
  const float *gate, *up;
  int64_t stride, width;  // from one row of a gate to the next, and its length
  float *out;
};

static void one_row(void *data, size_t row) {
  const struct swiglu *call = data;
  int64_t first = (int64_t)row * call->stride;
  call->kernels->swiglu(call->gate + first, call->up + first, call->out + (int64_t)row * call->width, call->width);
}

static OrtStatus *compute(void *kernel, OrtKernelContext *context) {
  struct tensor gate, up;
  size_t inputs = 0;
  TRY(ort->KernelContext_GetInputCount(context, &inputs));
  TRY(read_input(context, 0, &gate));
  if (inputs > 1)
    TRY(read_input(context, 1, &up));
  else
    up.data = NULL;
  if (gate.rank < 1) return failure("edgemem::SwiGLU: the gate is a scalar, and must have an axis");
  int64_t stride = gate.dims[gate.rank - 1], width = up.data ? stride : stride / 2;
  if (up.data)
    TRY(expect(&up, "edgemem::SwiGLU: ", 1, "up", ORT_FLOAT32, gate.dims, gate.rank));
  else if (stride % 2)
    return failure("edgemem::SwiGLU: the last axis has %lld numbers, and must hold gate and up side by side",
                   (long long)stride);
  int64_t rows = rows_of(&gate);
  gate.dims[gate.rank - 1] = width;
  struct swiglu call = {kernel, gate.data, up.data ? up.data : (const float *)gate.data + width, stride, width, NULL};
  TRY(make_output(context, 0, gate.dims, gate.rank, (void **)&call.out));
  return run_tasks(context, one_row, &call, rows, rows * width * 16);
}

static OrtStatus *create(const OrtCustomOp *op, const OrtApi *api, const OrtKernelInfo *info, void **kernel) {
  (void)op, (void)api, (void)info;
  *kernel = (void *)levels[0];
  return NULL;
}

static const char *name(const OrtCustomOp *op) { return op ? "SwiGLU" : NULL; }
static size_t inputs(const OrtCustomOp *op) { return op ? 2 : 0; }
static size_t outputs(const OrtCustomOp *op) { return op ? 1 : 0; }
static int input_is(const OrtCustomOp *op, size_t index) { return op && index == 1 ? ORT_OPTIONAL : ORT_REQUIRED; }
static int output_is(const OrtCustomOp *op, size_t index) { return op && index ? ORT_OPTIONAL : ORT_REQUIRED; }

const OrtCustomOp swiglu_operator = {
    OPERATOR_BASICS, .GetName = name, .GetInputType = is_float, .GetInputTypeCount = inputs, .GetOutputType = is_float,
    .GetOutputTypeCount = outputs, .GetInputCharacteristic = input_is, .GetOutputCharacteristic = output_is,
    .CreateKernelV2 = create, .KernelComputeV2 = compute, .KernelDestroy = keep_kernel};
