// The kernels of a training step as a library for a CPU, float32, with the matrix product that goes with them.
#include "on_cpu.h"

#define KERNEL(struct, name)                                              \
  if (!std::strcmp(kernel, #name)) {                                      \
    launch<struct>(threads, x, y, z, name, *(const struct*)argument);     \
    return 0;                                                             \
  }
extern "C" int run_kernel(const char* kernel, int x, int y, int z, int threads, const void* argument) {
  static unsigned char memory[4096];
  dynamicShared = memory;
  KERNEL(TrainingNorm, training_norm)
  KERNEL(TrainingNormBackward, training_norm_backward)
  KERNEL(TrainingAdd, training_add)
  KERNEL(TrainingDrop, training_drop)
  KERNEL(TrainingBias, training_bias)
  KERNEL(TrainingSilu, training_silu)
  KERNEL(TrainingSiluBackward, training_silu_backward)
  KERNEL(TrainingHeads, training_heads)
  KERNEL(TrainingRoute, training_route)
  KERNEL(TrainingRouteBackward, training_route_backward)
  KERNEL(TrainingLists, training_lists)
  KERNEL(TrainingChosenGradients, training_chosen_gradients)
  KERNEL(TrainingRows, training_rows)
  KERNEL(GroupTokens, group_tokens)
  KERNEL(GroupZ, group_z)
  KERNEL(GroupAdd, group_add_by_row)
  KERNEL(TrainingVocabularyLoss, training_vocabulary_loss)
  KERNEL(TrainingAddGradients, training_add_gradients)
  KERNEL(TrainingPublish, training_publish)
  KERNEL(TrainingAdamW, training_adam_w)
  KERNEL(TrainingSquares, training_squares)
  return 1;
}

// c (m, n) = or += op(a) · op(b), row-major.
extern "C" void multiply(int m, int n, int k, float* c, int ldc, const float* a, int lda, int ta, const float* b, int ldb, int tb,
                         int add) {
  for (int i = 0; i < m; i++)
    for (int j = 0; j < n; j++) {
      double sum = add ? c[(size_t)i * ldc + j] : 0;
      for (int l = 0; l < k; l++)
        sum += (double)(ta ? a[(size_t)l * lda + i] : a[(size_t)i * lda + l]) * (tb ? b[(size_t)j * ldb + l] : b[(size_t)l * ldb + j]);
      c[(size_t)i * ldc + j] = (float)sum;
    }
}
