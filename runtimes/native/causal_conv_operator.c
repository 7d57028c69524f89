// edgemem::CausalConv: a causal convolution of each channel, which carries the steps before the call.
// Inputs: x [B, T, C], state [B, C, S], weight [C, K] (K <= S + 1), bias [C] (optional). Attribute: silu.
// Outputs: y [B, T, C], and the new state.
#include <stdlib.h>

#include "operator.h"

#define NAME "edgemem::CausalConv: "

struct conv {
  const struct kernels *kernels;
  int64_t silu;
};

struct call {
  struct convolution convolution;
  const struct kernels *kernels;
};

static void one_task(void *data, size_t index) {
  const struct call *call = data;
  call->kernels->convolve(&call->convolution, (int64_t)index);
}

static OrtStatus *compute(void *kernel, OrtKernelContext *context) {
  const struct conv *conv = kernel;
  struct tensor x, past, weight, bias;
  TRY(read_input(context, 0, &x));
  TRY(read_input(context, 1, &past));
  TRY(read_input(context, 2, &weight));
  TRY(read_if_given(context, 3, &bias));
  if (x.rank != 3) return failure(NAME "x has %zu axes, and must be [B, T, C]", x.rank);
  const int64_t *dims = x.dims, channels = dims[2];
  int64_t slots = past.rank == 3 ? past.dims[2] : 1, taps = weight.rank == 2 ? weight.dims[1] : 1;
  TRY(expect(&x, NAME, 0, "x", ORT_FLOAT32, dims, 3));
  TRY(expect(&past, NAME, 1, "state", ORT_FLOAT32, (int64_t[]){dims[0], channels, slots}, 3));
  TRY(expect(&weight, NAME, 2, "weight", ORT_FLOAT32, (int64_t[]){channels, taps}, 2));
  if (bias.data) TRY(expect(&bias, NAME, 3, "bias", ORT_FLOAT32, &channels, 1));
  if (taps > slots + 1)
    return failure(NAME "the state holds %lld steps, and a kernel of %lld needs at least %lld", (long long)slots,
                   (long long)taps, (long long)(taps - 1));
  struct call call = {{dims[0], dims[1], channels, taps, slots, conv->silu, x.data, past.data, weight.data, bias.data,
                       NULL, NULL},
                      conv->kernels};
  TRY(make_output(context, 0, dims, 3, (void **)&call.convolution.y));
  TRY(make_output(context, 1, past.dims, 3, (void **)&call.convolution.present));
  return run_tasks(context, one_task, &call, dims[0] * ((channels + BLOCK - 1) / BLOCK),
                   dims[0] * dims[1] * channels * (taps + 8));
}

static OrtStatus *create(const OrtCustomOp *op, const OrtApi *api, const OrtKernelInfo *info, void **kernel) {
  (void)op, (void)api;
  struct conv *conv = malloc(sizeof *conv);
  if (!conv) return failure(NAME "no memory");
  conv->kernels = levels[0];
  OrtStatus *status = integer_attribute(info, "silu", 0, 1, &conv->silu);
  if (status) free(conv);
  *kernel = status ? NULL : conv;
  return status;
}

static const char *name(const OrtCustomOp *op) { return op ? "CausalConv" : NULL; }
static size_t inputs(const OrtCustomOp *op) { return op ? 4 : 0; }
static size_t outputs(const OrtCustomOp *op) { return op ? 2 : 0; }
static int input_is(const OrtCustomOp *op, size_t index) { return op && index == 3 ? ORT_OPTIONAL : ORT_REQUIRED; }
static int output_is(const OrtCustomOp *op, size_t index) { return op && index > 1 ? ORT_OPTIONAL : ORT_REQUIRED; }

const OrtCustomOp causal_conv_operator = {
    OPERATOR_BASICS, .GetName = name, .GetInputType = is_float, .GetInputTypeCount = inputs, .GetOutputType = is_float,
    .GetOutputTypeCount = outputs, .GetInputCharacteristic = input_is, .GetOutputCharacteristic = output_is,
    .CreateKernelV2 = create, .KernelComputeV2 = compute, .KernelDestroy = free_kernel};
