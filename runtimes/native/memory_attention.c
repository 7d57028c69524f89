// Attention over a list of memories, compiled once for each instruction set. One task is one row (stream) and one
// key/value head: it writes the new entries and states, and answers the T * G queries of the head.
//
// The softmax is computed as it goes: each query keeps the largest score so far (top), the sum of the weights relative
// to it (total) and the weighted sum of values (its place in `read`). So scratch memory does not grow with the window.
#include <math.h>

#include "level.h"
#include "queries.h"
#include "rotary.h"
#include "summaries.h"
#include "compressed.h"
#include "exact.h"

// The T new entries of the window: keys rotated to their positions, and values.
static void write_entries(const struct head *head) {
  const struct attention *call = head->call;
  float turned[WIDTH_MAX];
  for (int64_t t = 0; t < call->time; t++) {
    int64_t slot = (head->row * call->kv_heads + head->index) * call->time + t;
    rotate_step(head->rotary, call, head->row, t, at(&call->k, head->row, t, head->index), 1.0f, turned);
    write_slot(&call->memory[0], 0, slot, turned, call->width);
    write_slot(&call->memory[0], 1, slot, at(&call->v, head->row, t, head->index), call->value_width);
  }
}

// The sinks after this call: those that were there, and the entries of this call whose positions are below n.
static void write_sinks(const struct head *head, const struct memory *sinks) {
  const struct attention *call = head->call;
  int64_t index = head->row * call->kv_heads + head->index;
  const int64_t widths[2] = {call->width, call->value_width};
  float turned[WIDTH_MAX];
  for (int part = 0; part < 2; part++) {
    int64_t bytes = sinks->slots * widths[part] * element_bytes(sinks->element);
    copy((char *)sinks->present[part] + index * bytes, (const char *)sinks->past[part] + index * bytes, bytes);
  }
  for (int64_t t = 0; t < call->time && head->start + t < sinks->slots; t++) {
    int64_t slot = index * sinks->slots + head->start + t;
    rotate_step(head->rotary, call, head->row, t, at(&call->k, head->row, t, head->index), 1.0f, turned);
    write_slot(sinks, 0, slot, turned, call->width);
    write_slot(sinks, 1, slot, at(&call->v, head->row, t, head->index), call->value_width);
  }
}

// `count` slots from the given one on (of all streams and heads), as they were before the call or as they are after it.
static struct segment slots_of(const struct memory *memory, bool after, int64_t slot, int64_t count,
                               const struct attention *call) {
  const void *k = after ? memory->present[0] : memory->past[0], *v = after ? memory->present[1] : memory->past[1];
  struct segment segment = {.k = element(k, memory->element, slot * call->width),
                            .v = element(v, memory->element, slot * call->value_width),
                            .element = memory->element, .count = count};
  if (memory->element == INT8) {
    segment.k_scale = (after ? memory->present_scale[0] : memory->past_scale[0]) + slot;
    segment.v_scale = (after ? memory->present_scale[1] : memory->past_scale[1]) + slot;
  }
  return segment;
}

// The ring from its oldest visible entry to its newest: entries follow one another up to the ring's end, then from 0.
static void read_ring(struct queries *queries, const struct head *head) {
  const struct memory *window = &head->call->memory[0];
  int64_t first = queries->position[0] - window->slots + 1, size = window->slots;
  if (first < 0) first = 0;
  int64_t ring = (head->row * head->call->kv_heads + head->index) * size;
  while (first < head->start) {
    int64_t slot = first % size, count = size - slot;
    if (count > head->start - first) count = head->start - first;
    struct segment segment = slots_of(window, false, ring + slot, count, head->call);
    segment.first = first, segment.reach = size, segment.q = queries->q;
    read_segment(queries, head->call, &segment);
    first += count;
  }
}

// The entries of this call, up to each query's own.
static void read_chunk(struct queries *queries, const struct head *head) {
  const struct memory *window = &head->call->memory[0];
  int64_t time = head->call->time, entry = (head->row * head->call->kv_heads + head->index) * time;
  struct segment segment = slots_of(window, true, entry, time, head->call);
  segment.first = head->start, segment.reach = window->slots, segment.q = queries->q;
  read_segment(queries, head->call, &segment);
}

// Sinks that have left the window, by queries that are never further from them than in training.
static void read_sinks(struct queries *queries, const struct head *head, const struct memory *sinks) {
  const struct attention *call = head->call;
  const struct rotary *rotary = head->rotary;
  int64_t entry = (head->row * call->kv_heads + head->index) * sinks->slots;
  if (queries->position[queries->count - 1] < call->window) return;
  struct segment segment = slots_of(sinks, true, entry, sinks->slots, call);
  segment.lag = call->window, segment.reach = INT64_MAX, segment.q = queries->q;
  int64_t furthest = sinks->slots + (call->window > 1 ? call->window : 1) - 1;
  if (rotary->pairs && call->by_slot && queries->position[queries->count - 1] > furthest) {
    for (int r = 0; r < queries->count; r++) {
      int64_t position = queries->position[r] < furthest ? queries->position[r] : furthest;
      float *q = queries->q + r * call->width, *near = queries->sink_q + r * call->width;
      if (rotary->from_phases)
        rotate(rotary, position, queries->source[r], call->scale, near);
      else
        rotate(rotary, position - queries->position[r], q, 1.0f, near);
    }
    segment.q = queries->sink_q;
  }
  read_segment(queries, call, &segment);
}

void LEVEL_NAME(attend)(const struct attention *call, int64_t task) {
  struct rotary rotary;
  prepare_rotary(&rotary, call);
  struct head head = {call, &rotary, task / call->kv_heads, task % call->kv_heads, 0};
  head.start = call->position[head.row];
  const bool has_window = call->memory[0].kind == WINDOW;
  for (int m = 0; m < call->memories; m++) switch (call->memory[m].kind) {
      case WINDOW: write_entries(&head); break;
      case SINKS: write_sinks(&head, &call->memory[m]); break;
      case EXACT: begin_exact(&head, &call->memory[m]); break;
      default: begin_summary(&head, &call->memory[m]);
    }
  struct queries queries;
  int64_t total = call->time * call->groups, most = queries_at_once(call->width);
  for (int64_t first = 0; first < total; first += most) {
    take_queries(&queries, &head, first, total - first < most ? total - first : most);
    read_summaries(&queries, &head, first);
    if (has_window) read_ring(&queries, &head);
    if (has_window) read_chunk(&queries, &head);
    for (int m = 0; m < call->memories; m++) {
      if (call->memory[m].kind == SINKS) read_sinks(&queries, &head, &call->memory[m]);
      if (call->memory[m].kind == COMPRESSED) read_compressed(&queries, &head, &call->memory[m], first);
      if (call->memory[m].kind == EXACT) read_exact(&queries, &head, &call->memory[m], first);
    }
    finish(&queries, call);
  }
}

const struct kernels LEVEL_NAME(kernels) = {TEXT(LEVEL), LANES, LEVEL_NAME(attend), LEVEL_NAME(swiglu),
                                            LEVEL_NAME(rms_norm), LEVEL_NAME(multiply), LEVEL_NAME(multiply_int4),
                                            LEVEL_NAME(convolve), LEVEL_NAME(select_state), LEVEL_NAME(correct),
                                            LEVEL_NAME(weigh), LEVEL_NAME(attend_linearly)};
