// Exact memory: the n pairs of which the layer's delta rule wrote most, the most first. Of equal ones the earlier stays.
// A slot whose measure is negative holds no pair. The list changes from step to step, so each query reads it alone.
#ifndef EDGEMEM_EXACT_H
#define EDGEMEM_EXACT_H

#include "slots.h"

// Where the slots of one head's keys and of its values lie in [B, 2H, n, D].
INLINE void exact_places(const struct head *head, const struct memory *memory, int64_t places[2]) {
  places[0] = key_place(head) * memory->slots, places[1] = value_place(head) * memory->slots;
}

INLINE void change_places(float *a, float *b, int64_t count) {
  for (int64_t i = 0; i < count; i++) {
    float kept = a[i];
    a[i] = b[i], b[i] = kept;
  }
}

// The list as it was before the call. Every call leaves it sorted; what a user made may not be.
static void begin_exact(const struct head *head, const struct memory *memory) {
  const int64_t bytes = memory->slots * (int64_t)sizeof(float), measures = head_place(head) * memory->slots;
  int64_t places[2];
  exact_places(head, memory, places);
  for (int part = 0; part < 2; part++)
    copy((float *)memory->present[0] + places[part], (const float *)memory->past[0] + places[part],
         bytes * head->call->width);
  copy((float *)memory->present[1] + measures, (const float *)memory->past[1] + measures, bytes);
  float *measure = (float *)memory->present[1] + measures, *pairs = memory->present[0];
  const int64_t width = head->call->width;
  for (int64_t i = 1; i < memory->slots; i++)
    for (int64_t j = i; j > 0 && measure[j - 1] < measure[j]; j--) {
      change_places(measure + j - 1, measure + j, 1);
      for (int part = 0; part < 2; part++)
        change_places(pairs + places[part] + (j - 1) * width, pairs + places[part] + j * width, width);
    }
}

// How much the delta rule wrote at step t: the length of what it wrote, [B, T, H D].
INLINE float written_at(const struct head *head, const struct memory *memory, int64_t t) {
  const struct attention *call = head->call;
  const float *written =
      memory->parameter + ((head->row * call->time + t) * call->kv_heads + head->index) * call->width;
  return sqrtf(dot(written, written, call->width));
}

// Takes in the pair of step t, if it belongs to the n.
static void insert_pair(const struct head *head, const struct memory *memory, int64_t t) {
  const struct attention *call = head->call;
  const int64_t slots = memory->slots, width = call->width;
  float *measures = (float *)memory->present[1] + head_place(head) * slots, scratch[WIDTH_MAX];
  float measure = written_at(head, memory, t);
  int64_t place = 0, places[2];
  while (place < slots && measures[place] >= measure) place++;
  if (place == slots) return;
  memmove(measures + place + 1, measures + place, (size_t)(slots - 1 - place) * sizeof(float));
  measures[place] = measure;
  exact_places(head, memory, places);
  for (int part = 0; part < 2; part++) {
    const float *x = part ? at(&call->v, head->row, t, head->index) : plain_key(head, t, scratch);
    float *slot = (float *)memory->present[0] + places[part] + place * width;
    memmove(slot + width, slot, (size_t)((slots - 1 - place) * width) * sizeof(float));
    memcpy(slot, x, (size_t)width * sizeof(float));
  }
}

static void read_exact(struct queries *queries, const struct head *head, const struct memory *memory, int64_t first) {
  const struct attention *call = head->call;
  const float *measures = (const float *)memory->present[1] + head_place(head) * memory->slots;
  const float *data = memory->present[0];
  int64_t places[2];
  exact_places(head, memory, places);
  struct segment segment = {.k = data + places[0], .v = data + places[1], .element = FLOAT32,
                            .first = -memory->slots, .reach = INT64_MAX, .q = queries->sink_q};
  for (int r = 0; r < queries->count; r++) {
    if ((first + r) % call->groups == 0) insert_pair(head, memory, (first + r) / call->groups);
    take_plain(queries, r, head);
    for (segment.count = 0; segment.count < memory->slots && measures[segment.count] >= 0.0f;) segment.count++;
    read_alone(queries, r, call, &segment);
  }
}

#endif
