// edgemem::GatedMlp: x + SwiGLU(RMSNorm(x) * W1) * W2, the second half of a decoder's layer as one node.
// Inputs: x [..., C], norm [C], gate_up W1 [C, 2M], down W2 [M, C]; a matrix lies transposed where the attribute
// gate_up_transposed or down_transposed is 1. Then their scales, [C / block, 2M] and [M / block, C] (optional: a
// matrix with scales has integers of 4 bits).
// Outputs: [..., C]; then [..., 2M] and [..., M], which every node must name: what lies between the stages.
#include <stdlib.h>

#include "stages.h"

#define NAME "edgemem::GatedMlp: "

struct gated_mlp {
  struct engine engine;
  int64_t gate_up_transposed, down_transposed;
  float epsilon;
};

struct gate {
  const struct kernels *kernels;
  const float *gate_up;
  float *out;
  int64_t width;
};

static void gate_of_row(void *data, size_t row) {
  const struct gate *call = data;
  const float *gate = call->gate_up + (int64_t)row * 2 * call->width;
  call->kernels->swiglu(gate, gate + call->width, call->out + (int64_t)row * call->width, call->width);
}

static OrtStatus *read_inputs(const OrtKernelContext *context, struct tensor *x, struct rms_norm *norm,
                              struct product *up, struct product *down) {
  struct tensor weight;
  TRY(read_input(context, 0, x));
  TRY(read_input(context, 1, &weight));
  if (x->rank < 1) return failure(NAME "x is a scalar, and must have an axis");
  norm->width = up->depth = x->dims[x->rank - 1];
  TRY(expect(&weight, NAME, 1, "norm", ORT_FLOAT32, &norm->width, 1));
  TRY(read_matrix(context, NAME, 2, "gate_up", 4, up));
  if (up->columns % 2)
    return failure(NAME "input 2 (gate_up) has %lld columns, and must hold gate and up side by side",
                   (long long)up->columns);
  down->depth = up->columns / 2;
  TRY(read_matrix(context, NAME, 3, "down", 5, down));
  if (down->columns != norm->width)
    return failure(NAME "input 3 (down) has %lld columns, and must have %lld, as x", (long long)down->columns,
                   (long long)norm->width);
  norm->x = down->add = x->data, norm->weight = weight.data, down->add_row = norm->width;
  up->rows = down->rows = rows_of(x);
  return NULL;
}

// The norm's rows lie in the output until the last product, which does not read them, writes it.
static OrtStatus *make_outputs(OrtKernelContext *context, struct tensor *x, struct rms_norm *norm, struct product *up,
                               struct product *down, struct gate *gate) {
  TRY(make_output(context, 0, x->dims, x->rank, (void **)&down->out));
  x->dims[x->rank - 1] = up->columns;
  TRY(make_output(context, 1, x->dims, x->rank, (void **)&up->out));
  x->dims[x->rank - 1] = down->depth;
  TRY(make_output(context, 2, x->dims, x->rank, (void **)&gate->out));
  if (!down->out || !up->out || !gate->out) return failure(NAME "an output is not connected");
  norm->out = down->out, up->x = norm->out, gate->gate_up = up->out, down->x = gate->out;
  return NULL;
}

static OrtStatus *compute(void *kernel, OrtKernelContext *context) {
  const struct gated_mlp *self = kernel;
  struct tensor x;
  struct product up = {.transposed = self->gate_up_transposed}, down = {.transposed = self->down_transposed};
  struct rms_norm norm = {.kernels = self->engine.kernels, .epsilon = self->epsilon};
  TRY(read_inputs(context, &x, &norm, &up, &down));
  struct gate gate = {.kernels = self->engine.kernels, .width = down.depth};
  TRY(make_outputs(context, &x, &norm, &up, &down, &gate));
  TRY(run_rms_norm(context, &norm, up.rows));
  TRY(run_product(context, &self->engine, &up));
  TRY(run_tasks(context, gate_of_row, &gate, up.rows, up.rows * gate.width * 16));
  return run_product(context, &self->engine, &down);
}

static OrtStatus *create(const OrtCustomOp *op, const OrtApi *api, const OrtKernelInfo *info, void **kernel) {
  (void)op, (void)api;
  struct gated_mlp *self = malloc(sizeof *self);
  if (!self) return failure(NAME "no memory");
  self->engine = engine_of_session();
  OrtStatus *status = float_attribute(info, "eps", &self->epsilon);
  if (!status) status = integer_attribute(info, "gate_up_transposed", 0, 1, &self->gate_up_transposed);
  if (!status) status = integer_attribute(info, "down_transposed", 0, 1, &self->down_transposed);
  if (status) free(self);
  *kernel = status ? NULL : self;
  return status;
}

static int input_type(const OrtCustomOp *op, size_t index) {
  return op && (index == 2 || index == 3) ? ORT_ANY : ORT_FLOAT32;
}
static const char *name(const OrtCustomOp *op) { return op ? "GatedMlp" : NULL; }
static size_t inputs(const OrtCustomOp *op) { return op ? 6 : 0; }
static size_t outputs(const OrtCustomOp *op) { return op ? 3 : 0; }
static int input_is(const OrtCustomOp *op, size_t index) { return op && index > 3 ? ORT_OPTIONAL : ORT_REQUIRED; }
static int output_is(const OrtCustomOp *op, size_t index) { return op && index > 2 ? ORT_OPTIONAL : ORT_REQUIRED; }

const OrtCustomOp gated_mlp_operator = {
    OPERATOR_BASICS, .GetName = name, .GetInputType = input_type, .GetInputTypeCount = inputs, .GetOutputType = is_float,
    .GetOutputTypeCount = outputs, .GetInputCharacteristic = input_is, .GetOutputCharacteristic = output_is,
    .CreateKernelV2 = create, .KernelComputeV2 = compute, .KernelDestroy = free_kernel};
