package org.meteora.backend.cpu;

import static java.lang.foreign.ValueLayout.JAVA_FLOAT;

import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import org.meteora.model.BlockTables;
import org.meteora.model.KvCache;
import org.meteora.tensor.Blas;
import org.meteora.tensor.Blas.Matrix;
import org.meteora.tensor.Workers;

/**
 * Attention of tokens over keys and values in blocks, in float32 on the tensors' memory: block by
 * block two products of the queries of some tokens of one sequence. What comes of a token depends
 * on nothing but its sequence, and, where several are taken together, on those by rounding.
 *
 * @param queries {@code (rows, heads, headDim)}, rotated
 * @param keys the tokens' own, {@code (rows, kvHeads, headDim)}, rotated
 * @param values as {@code keys}
 * @param out as {@code queries}
 * @param keyBlocks {@code (blocks, kvHeads, BLOCK, headDim)}
 * @param valueBlocks as {@code keyBlocks}
 * @param together tokens of a sequence that are taken together at most
 */
record BlockAttention(
    MemorySegment queries,
    MemorySegment keys,
    MemorySegment values,
    MemorySegment out,
    MemorySegment keyBlocks,
    MemorySegment valueBlocks,
    int heads,
    int kvHeads,
    int headDim,
    BlockTables tables,
    int together) {
  private static final int BLOCK = KvCache.BLOCK;

  /** Tokens of a sequence that are well taken together. */
  static final int TOGETHER = 16;

  /** Tokens of one sequence, one after another. */
  private record Span(int row, int count) {}

  /** Puts the tokens' keys and values into their blocks, and attends. */
  void run() {
    long bytes = bytes();
    int longest = 0;
    for (int row = 0; row < tables.lengths().length; row++) {
      int length = tables.lengths()[row];
      longest = Math.max(longest, length + 1);
      for (int head = 0; head < kvHeads; head++) {
        long from = ((long) row * kvHeads + head) * bytes;
        MemorySegment.copy(keys, from, keyBlocks, at(row, head, length), bytes);
        MemorySegment.copy(values, from, valueBlocks, at(row, head, length), bytes);
      }
    }
    var spans = spans();
    int pairs = spans.size() * kvHeads;
    int width = longest;
    int most = spans.stream().mapToInt(Span::count).max().orElseThrow();
    int workers = Math.min(Workers.count(), pairs);
    Workers.run(
        workers,
        i -> {
          try (var arena = Arena.ofConfined()) {
            var scratch = new Scratch(arena, most, heads / kvHeads, headDim, width);
            // those of one worker lie apart: the last of a prompt take longest
            for (int pair = i; pair < pairs; pair += workers) {
              attend(spans.get(pair / kvHeads), pair % kvHeads, scratch);
            }
          }
        });
  }

  private List<Span> spans() {
    var spans = new ArrayList<Span>();
    int rows = tables.lengths().length;
    int first = 0;
    for (int row = 1; row <= rows; row++) {
      boolean goesOn =
          row < rows
              && row - first < together
              && tables.blocks()[row] == tables.blocks()[first]
              && tables.lengths()[row] == tables.lengths()[row - 1] + 1;
      if (!goesOn) {
        spans.add(new Span(first, row - first));
        first = row;
      }
    }
    return spans;
  }

  private long bytes() {
    return (long) headDim * Float.BYTES;
  }

  private long at(int row, int head, int token) {
    long block = tables.blocks()[row][token / BLOCK];
    return ((block * kvHeads + head) * BLOCK + token % BLOCK) * bytes();
  }

  /** A worker's memory: queries and results of a span's heads, and their scores. */
  private static final class Scratch {
    final MemorySegment queries;
    final MemorySegment results;
    final MemorySegment scores;
    final float[] weights;
    final int[] bits;
    final float[] powers;
    final MemorySegment bitsMemory;
    final MemorySegment powersMemory;

    Scratch(Arena arena, int tokens, int group, int headDim, int width) {
      long rows = (long) tokens * group;
      queries = arena.allocate(rows * headDim * Float.BYTES, 64);
      results = arena.allocate(rows * headDim * Float.BYTES, 64);
      scores = arena.allocate(rows * width * Float.BYTES, 64);
      weights = new float[(int) rows * width];
      bits = new int[weights.length];
      powers = new float[weights.length];
      bitsMemory = MemorySegment.ofArray(bits);
      powersMemory = MemorySegment.ofArray(powers);
    }
  }

  private void attend(Span span, int head, Scratch scratch) {
    int group = heads / kvHeads;
    int rows = span.count() * group;
    int first = tables.lengths()[span.row()];
    int count = first + span.count(); // keys that the last token sees
    long its = group * bytes();
    var asked = new Matrix(scratch.queries, headDim);
    var results = new Matrix(scratch.results, headDim);
    for (int i = 0; i < span.count(); i++) {
      MemorySegment.copy(queries, own(span.row() + i, head), scratch.queries, i * its, its);
    }
    for (int from = 0; from < count; from += BLOCK) {
      int some = Math.min(BLOCK, count - from);
      var own = new Matrix(keyBlocks.asSlice(at(span.row(), head, from)), headDim);
      var scores = new Matrix(scratch.scores.asSlice((long) from * Float.BYTES), count);
      Blas.product(rows, some, headDim, asked, own.transpose(), 0, scores);
    }
    MemorySegment.copy(scratch.scores, JAVA_FLOAT, 0, scratch.weights, 0, rows * count);
    softmax(scratch, rows, count, first, group, (float) (1 / Math.sqrt(headDim)));
    MemorySegment.copy(scratch.weights, 0, scratch.scores, JAVA_FLOAT, 0, rows * count);
    for (int from = 0; from < count; from += BLOCK) {
      int some = Math.min(BLOCK, count - from);
      var weights = new Matrix(scratch.scores.asSlice((long) from * Float.BYTES), count);
      var own = new Matrix(valueBlocks.asSlice(at(span.row(), head, from)), headDim);
      Blas.product(rows, headDim, some, weights, own, from == 0 ? 0 : 1, results);
    }
    for (int i = 0; i < span.count(); i++) {
      MemorySegment.copy(scratch.results, i * its, out, own(span.row() + i, head), its);
    }
  }

  private long own(int row, int head) {
    return ((long) row * heads + (long) head * (heads / kvHeads)) * bytes();
  }

  /**
   * Weights of scores, a row for each query, of which it sees the first so many and one more for
   * each token after the first. In loops that the compiler turns into vectors.
   */
  private static void softmax(
      Scratch scratch, int rows, int count, int first, int group, float scale) {
    var x = scratch.weights;
    for (int i = 0; i < rows; i++) {
      int from = i * count;
      int seen = from + first + 1 + i / group;
      float most = Float.NEGATIVE_INFINITY;
      for (int j = from; j < seen; j++) {
        most = Math.max(most, x[j]);
      }
      float shift = -most * scale;
      for (int j = from; j < seen; j++) {
        x[j] = x[j] * scale + shift;
      }
      Arrays.fill(x, seen, from + count, 0);
    }
    exp(scratch, rows * count);
    for (int i = 0; i < rows; i++) {
      int from = i * count;
      int seen = from + first + 1 + i / group;
      double even = 0; // two sums: an addition need not wait for the one before
      double odd = 0;
      for (int j = from; j + 1 < seen; j += 2) {
        even += x[j];
        odd += x[j + 1];
      }
      if ((seen - from) % 2 == 1) {
        even += x[seen - 1];
      }
      float factor = (float) (1 / (even + odd));
      for (int j = from; j < seen; j++) {
        x[j] *= factor;
      }
      Arrays.fill(x, seen, from + count, 0);
    }
  }

  /** e^x of what is not above zero, within 2^−23 of it: a series around whole powers of two. */
  private static void exp(Scratch scratch, int count) {
    var x = scratch.weights;
    var bits = scratch.bits;
    var powers = scratch.powers;
    for (int i = 0; i < count; i++) {
      float at = Math.max(x[i], -87f);
      float whole = at * 1.442695041f + 12582912f - 12582912f; // rounded: 1.5 · 2^23
      bits[i] = (int) whole + 127 << 23;
      float rest = at - whole * 0.693359375f + whole * 2.12194440e-4f;
      float y = 1.9875691500e-4f;
      y = y * rest + 1.3981999507e-3f;
      y = y * rest + 8.3334519073e-3f;
      y = y * rest + 4.1665795894e-2f;
      y = y * rest + 1.6666665459e-1f;
      y = y * rest + 5.0000001201e-1f;
      x[i] = y * rest * rest + rest + 1;
    }
    MemorySegment.copy(scratch.bitsMemory, 0, scratch.powersMemory, 0, 4L * count);
    for (int i = 0; i < count; i++) {
      x[i] *= powers[i];
    }
  }
}
