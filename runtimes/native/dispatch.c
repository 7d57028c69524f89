// Chooses the instruction set, once, as the library is first asked.
#include <stdlib.h>
#include <string.h>

#include "kernels.h"

#define PUBLIC __attribute__((visibility("default")))

#if defined(__x86_64__)
static bool processor_has(const struct kernels *level) {
  __builtin_cpu_init();
  if (level == &kernels_avx512)
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma");
  if (level == &kernels_avx2)
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");  // those that have both have F16C
  return true;
}
static const struct kernels *const known[] = {&kernels_avx512, &kernels_avx2, &kernels_sse2, NULL};
#else
static bool processor_has(const struct kernels *level) { return level != NULL; }
static const struct kernels *const known[] = {&kernels_neon, NULL};
#endif

const struct kernels *const *available_kernels(void) {
  const char *forced = getenv("EDGEMEM_NATIVE_LEVEL");
  for (const struct kernels *const *level = known; *level; level++) {
    if (forced && *forced && strcmp(forced, (*level)->name) != 0) continue;
    if (processor_has(*level)) return level;
    if (forced && *forced) return NULL;
  }
  return NULL;
}

const struct kernels *kernels_for(const struct kernels *const *levels, int64_t width, int64_t other_width) {
  while (levels[1] && (width % levels[0]->lanes || other_width % levels[0]->lanes)) levels++;
  return levels[0];
}

// For the library's Python side: the level that is used, or an empty text.
PUBLIC const char *edgemem_native_level(void) {
  const struct kernels *const *levels = available_kernels();
  return levels ? (*levels)->name : "";
}

// The version of what the operators take and give; edgemem refuses a library of another.
PUBLIC int edgemem_native_version(void) { return 6; }
