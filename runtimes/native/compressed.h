// Compressed memory: pairs are averaged, `rate` at a time, into a queue that holds block b in slot b mod R. A query sees
// the newest `shown` blocks that have left the window. R leaves room for those that have not.
#ifndef EDGEMEM_COMPRESSED_H
#define EDGEMEM_COMPRESSED_H

#include "slots.h"

// Takes in the pair of step t, and puts the block into the queue when it is full.
static void add_to_block(const struct head *head, const struct memory *memory, int64_t t) {
  const struct attention *call = head->call;
  int64_t next = head->start + t + 1, slot = (next / memory->rate - 1) % memory->slots;
  const int64_t places[2] = {key_place(head), value_place(head)};
  float scratch[WIDTH_MAX];
  for (int part = 0; part < 2; part++) {
    const float *x = part ? at(&call->v, head->row, t, head->index) : plain_key(head, t, scratch);
    float *partial = (float *)memory->present[1] + places[part];
    for (int64_t d = 0; d < call->width; d++) partial[d] += x[d];
    if (next % memory->rate) continue;
    float *mean = (float *)memory->present[0] + places[part] * memory->slots + slot * call->width;
    for (int64_t d = 0; d < call->width; d++) mean[d] = partial[d] / (float)memory->rate, partial[d] = 0.0f;
  }
}

// Blocks from..to - 1 for query r alone: the queue changes from step to step.
static void read_blocks(struct queries *queries, int r, const struct head *head, const struct memory *memory,
                        int64_t from, int64_t to) {
  const struct attention *call = head->call;
  while (from < to) {
    int64_t slot = from % memory->slots, count = memory->slots - slot;
    if (count > to - from) count = to - from;
    const float *data = memory->present[0];
    struct segment segment = {.k = data + key_place(head) * memory->slots + slot * call->width,
                              .v = data + value_place(head) * memory->slots + slot * call->width,
                              .element = FLOAT32, .count = count, .reach = INT64_MAX, .q = queries->sink_q};
    read_alone(queries, r, call, &segment);
    from += count;
  }
}

static void read_compressed(struct queries *queries, const struct head *head, const struct memory *memory,
                            int64_t first) {
  const struct attention *call = head->call;
  for (int r = 0; r < queries->count; r++) {
    if ((first + r) % call->groups == 0) add_to_block(head, memory, (first + r) / call->groups);
    int64_t outside = queries->position[r] - call->window + 1, to = outside > 0 ? outside / memory->rate : 0;
    int64_t from = to > memory->shown ? to - memory->shown : 0;
    take_plain(queries, r, head);
    read_blocks(queries, r, head, memory, from, to);
  }
}

#endif
