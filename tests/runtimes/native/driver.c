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

static void states(struct attention *call, struct memory *memory, int64_t sizes[2], int64_t heads[2]) {
  static const int64_t bytes[] = {[FLOAT32] = 4, [FLOAT16] = 2, [INT8] = 1};
  int64_t slots = memory->kind == WINDOW || memory->kind == SINKS ? memory->slots : 1;
  int64_t made = memory->kind == WINDOW ? call->time : slots;
  for (int part = 0; part < 2; part++) {
    int64_t rows = call->batch * heads[part];
    sizes[part] = rows * made * bytes[memory->element] * (part ? call->value_width : call->width);
    if (memory->kind == GEOMETRIC && part) sizes[part] = rows * 4;
    int64_t before = made ? sizes[part] / made * slots : 0;
    memory->past[part] = take((size_t)before);
    memory->present[part] = malloc((size_t)sizes[part] + 1);
    if (memory->element == INT8) {
      memory->past_scale[part] = floats(rows * slots);
      memory->present_scale[part] = malloc((size_t)(rows * made * 4));
    }
  }
  if (memory->kind == GEOMETRIC) memory->decay = floats(call->kv_heads);
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
  if (number()) call.phases = take((size_t)(call.width / 2) * 8);
  if (number()) call.sink_logits = floats(heads);
  if (summaries) call.bias = floats(summaries * heads);
  call.memories = (int)number();
  int64_t sizes[MEMORIES_MAX][2];
  for (int m = 0; m < call.memories; m++) {
    struct memory *memory = &call.memory[m];
    memory->kind = (enum kind)number(), memory->log_count = number(), memory->element = (enum element)number();
    memory->slots = number();
    bool summary = memory->kind == CUMULATIVE || memory->kind == GEOMETRIC;
    int64_t of[2] = {call.kv_heads << summary, call.kv_heads << (memory->kind == CUMULATIVE)};
    states(&call, memory, sizes[m], of);
  }
  size_t read = (size_t)(call.batch * call.time * heads * call.width);
  call.read = malloc(read * 4 + 1);
  for (int64_t task = 0; task < call.batch * call.kv_heads; task++) KERNELS.attend(&call, task);
  fwrite(call.read, 4, read, stdout);
  for (int m = 0; m < call.memories; m++)
    for (int part = 0; part < 2; part++) {
      const struct memory *memory = &call.memory[m];
      fwrite(memory->present[part], 1, (size_t)sizes[m][part], stdout);
      if (memory->element == INT8)
        fwrite(memory->present_scale[part], 4, (size_t)(call.batch * call.kv_heads * call.time), stdout);
    }
  return 0;
}
