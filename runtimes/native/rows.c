// What happens to the state between two runs, for some rows of it.
#include <stdint.h>
#include <string.h>

#define PUBLIC __attribute__((visibility("default")))

// Rings of one shape. Offsets are from the start of the block; the order is that of Python's table.
struct group {
  int64_t rings;         // how many
  int64_t heads;         // H
  int64_t window;        // W
  int64_t entry;         // bytes of one entry of one head
  int64_t first_ring;    // offset
  int64_t ring_stride;   // bytes from one ring to the next
  int64_t first_entry;   // offset of the first ring's entries [B, H]
  int64_t entry_stride;  // bytes from one ring's entries to the next
};

// A call of memcpy for every entry would take longer than the copy.
static inline void copy(char *into, const char *from, int64_t bytes) {
  for (; bytes >= 64; bytes -= 64, into += 64, from += 64) memcpy(into, from, 64);
  for (; bytes >= 8; bytes -= 8, into += 8, from += 8) memcpy(into, from, 8);
  for (; bytes; bytes--) *into++ = *from++;
}

// The entries of a step go into a slot of every ring, for count rows. positions has an item for every row that there is:
// where it stands before the step. Those of the rows are then advanced by so many steps.
PUBLIC void edgemem_append_rows(char *block, const struct group *groups, int64_t group_count, const int64_t *rows,
                                int64_t count, int64_t *positions, int64_t steps) {
  for (const struct group *group = groups; group < groups + group_count; group++) {
    const int64_t entry = group->entry, heads = group->heads, window = group->window;
    for (int64_t ring = 0; ring < group->rings; ring++) {
      char *into = block + group->first_ring + ring * group->ring_stride;
      const char *from = block + group->first_entry + ring * group->entry_stride;
      for (int64_t k = 0; k < count; k++) {
        const int64_t slot = positions[rows[k]] % window;
        for (int64_t head = rows[k] * heads; head < (rows[k] + 1) * heads; head++)
          copy(into + (head * window + slot) * entry, from + head * entry, entry);
      }
    }
  }
  for (int64_t k = 0; k < count; k++) positions[rows[k]] += steps;
}

// A state that lies twice. Offsets are from the start of the block.
struct twin {
  int64_t to;    // offset of the copy that is written
  int64_t from;  // offset of the other
  int64_t row;   // bytes of a row
};

// Those rows of every state are copied from one of its two copies to the other.
PUBLIC void edgemem_copy_rows(char *block, const struct twin *twins, int64_t twin_count, const int64_t *rows,
                              int64_t count) {
  for (const struct twin *twin = twins; twin < twins + twin_count; twin++)
    for (int64_t k = 0; k < count; k++)
      memcpy(block + twin->to + rows[k] * twin->row, block + twin->from + rows[k] * twin->row, (size_t)twin->row);
}
