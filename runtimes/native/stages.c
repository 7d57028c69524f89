#include "stages.h"

static void norm_of_row(void *data, size_t row) {
  const struct rms_norm *call = data;
  int64_t first = (int64_t)row * call->width;
  call->kernels->rms_norm(call->x + first, call->delta ? call->delta + first : NULL, call->weight, call->epsilon,
                          call->out + first, call->sum ? call->sum + first : NULL, call->width);
}

OrtStatus *run_rms_norm(const OrtKernelContext *context, struct rms_norm *call, int64_t rows) {
  return run_tasks(context, norm_of_row, call, rows, rows * call->width * 4);
}

static OrtStatus *read_integers(const char *owner, size_t index, const char *what, const struct tensor *w,
                                const struct tensor *scale, size_t scale_index, struct product *product) {
  const int64_t dims[2] = {product->depth, product->columns};
  int64_t blocks = scale->rank == 2 && scale->dims[0] > 0 ? scale->dims[0] : 1;
  const int64_t scales[2] = {blocks, product->columns};
  product->int4 = w->data, product->scale = scale->data;
  product->block = product->depth / blocks;
  TRY(expect(w, owner, index, what, ORT_INT4, dims, 2));
  TRY(expect(scale, owner, scale_index, "scale", ORT_FLOAT32, scales, 2));
  bool whole = product->depth % blocks == 0 && (product->block % 32 == 0 || product->block == 16);
  if (whole && product->columns % 2 == 0 && !product->transposed) return NULL;
  return failure("%sinput %zu (%s) has %lld rows in %lld blocks and %lld columns; a block has 16 rows or a multiple of "
                 "32, the columns are even, and the matrix lies as [rows, columns]",
                 owner, index, what, (long long)product->depth, (long long)blocks, (long long)product->columns);
}

OrtStatus *read_matrix(const OrtKernelContext *context, const char *owner, size_t index, const char *what, size_t scale,
                       struct product *product) {
  struct tensor w, scales;
  TRY(read_input(context, index, &w));
  TRY(read_if_given(context, scale, &scales));
  product->columns = w.rank == 2 ? w.dims[!product->transposed] : 0;
  if (scales.data) return read_integers(owner, index, what, &w, &scales, scale, product);
  const int64_t as_is[2] = {product->depth, product->columns}, turned[2] = {product->columns, product->depth};
  product->w = w.data;
  return expect(&w, owner, index, what, ORT_FLOAT32, product->transposed ? turned : as_is, 2);
}

OrtStatus *read_add(const OrtKernelContext *context, const char *owner, size_t index, const int64_t *dims, size_t rank,
                    struct product *product) {
  struct tensor add;
  TRY(read_if_given(context, index, &add));
  product->add = add.data;
  if (!add.data) return NULL;
  bool one_row = add.rank == 1;
  product->add_row = one_row ? 0 : product->columns;
  return expect(&add, owner, index, "add", ORT_FLOAT32, one_row ? dims + rank - 1 : dims, one_row ? 1 : rank);
}

struct panels {
  const struct product *product;
  const struct kernels *kernels;
};

static void one_panel(void *data, size_t index) {
  const struct panels *panels = data;
  if (panels->product->int4)
    panels->kernels->multiply_int4(panels->product, (int64_t)index);
  else
    panels->kernels->multiply(panels->product, (int64_t)index);
}

struct engine engine_of_session(void) {
  return (struct engine){levels[0], threads_of_session(), is_session_exact()};
}

// Of few rows a thread has one panel: the longer the pieces in which a matrix is read, the faster memory gives them. Of
// many rows a panel stays in the cache.
static int64_t panel_of(const struct product *product, int64_t threads) {
  if (product->rows > FEW_ROWS) return product->columns <= 512 ? 256 : 512;
  int64_t share = (product->columns + threads - 1) / threads;
  return share > 64 ? (share + 63) / 64 * 64 : 64;
}

OrtStatus *run_product(const OrtKernelContext *context, const struct engine *engine, struct product *product) {
  product->panel = panel_of(product, engine->threads), product->exact = engine->exact;
  struct panels panels = {product, engine->kernels};
  int64_t count = (product->columns + product->panel - 1) / product->panel;
  return run_tasks(context, one_panel, &panels, count, product->rows * product->depth * product->columns);
}
