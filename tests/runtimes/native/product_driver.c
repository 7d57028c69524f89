// Runs one product with a matrix of 4-bit integers by the kernels of one instruction set, from standard input to standard
// output: for processors that are emulated, where there is no ONNX Runtime. test_aarch64.py writes the input.
#include <stdio.h>
#include <stdlib.h>

#include "kernels.h"

static void *take(int64_t bytes) {
  char *data = malloc((size_t)bytes + 1);
  if (!data || fread(data, 1, (size_t)bytes, stdin) != (size_t)bytes) exit(2);
  return data;
}

int main(void) {
  const int64_t *sizes = take(5 * 8);
  struct product call = {
      .rows = sizes[0], .depth = sizes[1], .columns = sizes[2], .block = sizes[3], .panel = sizes[4]};
  call.x = take(call.rows * call.depth * 4);
  call.int4 = take(call.depth * call.columns / 2);
  call.scale = take(call.depth / call.block * call.columns * 4);
  call.out = malloc((size_t)(call.rows * call.columns) * 4 + 1);
  for (int64_t task = 0; task * call.panel < call.columns; task++) KERNELS.multiply_int4(&call, task);
  fwrite(call.out, 4, (size_t)(call.rows * call.columns), stdout);
  return 0;
}
