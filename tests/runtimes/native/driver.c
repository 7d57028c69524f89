// Runs one call of the attention kernel of one instruction set, from standard input to standard output: for processors
// that are emulated, where there is no ONNX Runtime. test_aarch64.py writes the input.
#include <stdio.h>
#include <stdlib.h>

#include "kernels.h"

static void *take(size_t bytes) {
  char *data = malloc(bytes + 1);
  if (!data || fread(data, 1, bytes, stdin) != bytes) exit(2);
  return data;
}

static int64_t number(void) {
  int64_t *value = take(8), result = *value;
  free(value);
  return result;
}

static const float *floats(int64_t count) { return take((size_t)count * 4); }

static struct strided heads_first(int64_t batch, int64_t heads, int64_t time, int64_t width) {
  return (struct strided){floats(batch * heads * time * width), heads * time * width, width, time * width};
}

// A state as it is before the call, and room for it after.
static size_t state(const void **past, void **present) {
  size_t before = (size_t)number(), after = (size_t)number();
  *past = take(before);
  *present = malloc(after + 1);
  return after;
}

static void memory(struct memory *memory, size_t sizes[4]) {
  memory->kind = (enum kind)number(), memory->log_count = number(), memory->element = (enum element)number();
  memory->slots = number(), memory->shown = number(), memory->rate = number(), memory->parameter_head = number();
  int tensors = (int)number();
  for (int i = 0; i < tensors; i++) {
    if (memory->element != INT8)
      sizes[i] = state(&memory->past[i], &memory->present[i]);
    else if (i % 2)
      sizes[i] = state((const void **)&memory->past_scale[i / 2], (void **)&memory->present_scale[i / 2]);
    else
      sizes[i] = state(&memory->past[i / 2], &memory->present[i / 2]);
  }
  size_t bytes = (size_t)number();
  if (bytes) memory->parameter = take(bytes);
}

int main(void) {
  struct attention call = {0};
  call.batch = number(), call.time = number(), call.kv_heads = number(), call.groups = number();
  call.width = call.value_width = number(), call.window = number();
  int64_t heads = call.kv_heads * call.groups, summaries = number();
  call.scale = *floats(1), call.softcap = *floats(1);
  call.q = heads_first(call.batch, heads, call.time, call.width);
  call.k = heads_first(call.batch, call.kv_heads, call.time, call.width);
  call.v = heads_first(call.batch, call.kv_heads, call.time, call.width);
  call.position = take((size_t)call.batch * 8);
  call.pairs = number(), call.rotary_start = number(), call.neighbours = number(), call.rotate = number();
  call.by_slot = number();
  if (call.pairs) call.phases = take((size_t)call.pairs * 8);
  if (number()) call.sink_logits = floats(heads);
  if (summaries) call.bias = floats(summaries * heads);
  call.memories = (int)number();
  size_t sizes[MEMORIES_MAX][4] = {{0}};
  for (int m = 0; m < call.memories; m++) memory(&call.memory[m], sizes[m]);
  size_t read = (size_t)(call.batch * call.time * heads * call.width);
  call.read = malloc(read * 4 + 1);
  for (int64_t task = 0; task < call.batch * call.kv_heads; task++) KERNELS.attend(&call, task);
  fwrite(call.read, 4, read, stdout);
  for (int m = 0; m < call.memories; m++)
    for (int i = 0; i < 4; i++) {
      bool scaled = call.memory[m].element == INT8;
      const void *scale = call.memory[m].present_scale[i / 2];
      const void *data = !scaled ? (i < 2 ? call.memory[m].present[i] : NULL) : i % 2 ? scale : call.memory[m].present[i / 2];
      if (sizes[m][i]) fwrite(data, 1, sizes[m][i], stdout);
    }
  return 0;
}
