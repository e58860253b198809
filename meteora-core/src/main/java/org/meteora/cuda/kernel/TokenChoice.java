package org.meteora.cuda.kernel;

import static java.lang.foreign.ValueLayout.JAVA_FLOAT;
import static java.lang.foreign.ValueLayout.JAVA_INT;
import static java.lang.foreign.ValueLayout.JAVA_LONG;

import java.lang.foreign.MemorySegment;
import java.util.List;
import org.meteora.cuda.driver.Kernel;
import org.meteora.cuda.driver.Struct;

/**
 * The next token of up to 16 rows from their logits, on the device: banned tokens out, then the
 * largest logit, or one token drawn after temperature, top-k and top-p. What is wanted is read from
 * device memory, so that the launches can be replayed; the owner of this copies {@link #BYTES}
 * bytes there before each step.
 */
public final class TokenChoice {
  /** Banned tokens of a row at most. */
  public static final int MAX_BANNED = 32;

  /** Bytes of what is wanted, on the host and on the device. */
  public static final int BYTES = 208 + 4 * MatrixVector.MAX_ROWS * MAX_BANNED;

  /** Floats, and as many ints, of scratch memory for each row. */
  public static final int BLOCKS = 64;

  private static final int TOP_P = 128;
  private static final int SCALE = 136;
  private static final int TOP_K = 140;
  private static final int COUNTS = 144;
  private static final int BANS = 208;

  private final MemorySegment host;
  private final long device;

  /**
   * @param host {@link #BYTES} bytes that are copied to {@code device}, zeros
   */
  public TokenChoice(MemorySegment host, long device) {
    this.host = host;
    this.device = device;
  }

  /** Takes the largest logit, the lowest index of equals. */
  public void greedy() {
    sampling(0, 0, 0);
  }

  /**
   * Draws from the distribution.
   *
   * @param scale 2^25 · log2(e) / temperature
   * @param topK tokens that are kept, ties of the last too; 0 keeps all
   * @param topP the probability that is kept, in units of 2^−64; 0 keeps all
   */
  public void sampling(float scale, int topK, long topP) {
    host.set(JAVA_LONG, TOP_P, topP);
    host.set(JAVA_FLOAT, SCALE, scale);
    host.set(JAVA_INT, TOP_K, topK);
  }

  /**
   * What one row wants of the next step.
   *
   * @param uniform a random number in [0, 1) in units of 2^−64, for sampling
   * @param banned at most {@link #MAX_BANNED} tokens that must not be chosen
   */
  public void row(int row, long uniform, int[] banned) {
    if (banned.length > MAX_BANNED) {
      throw new IllegalArgumentException(banned.length + " banned tokens");
    }
    host.setAtIndex(JAVA_LONG, row, uniform);
    host.set(JAVA_INT, COUNTS + 4L * row, banned.length);
    MemorySegment.copy(banned, 0, host, JAVA_INT, BANS + 4L * row * MAX_BANNED, banned.length);
  }

  /**
   * The launches that choose. They add 1 to the lengths of rows that have a slot.
   *
   * @param logits float32 (logitSlots, rows, vocab), to be summed over slots; afterwards the sum is
   *     the first, and banned tokens are −∞
   * @param best float32 (rows, {@link #BLOCKS}), scratch
   * @param bestAt int32, as {@code best}
   * @param tokens int32 (rows), receives the choice
   * @param lengths int32 (rows), up to {@code maxLength}
   * @param slots int32 (rows), negative for a row that is not there
   */
  public List<Kernel.Launch> launches(
      Kernels kernels,
      long logits,
      int logitSlots,
      int rows,
      int vocab,
      long best,
      long bestAt,
      long tokens,
      long lengths,
      long slots,
      int maxLength,
      long clear,
      int clearCount,
      boolean overlap) {
    var argument =
        new Struct()
            .add(logits)
            .add(best)
            .add(bestAt)
            .add(tokens)
            .add(lengths)
            .add(slots)
            .add(device)
            .add(clear)
            .add(vocab)
            .add(logitSlots)
            .add(rows)
            .add(BLOCKS)
            .add(maxLength)
            .add(clearCount);
    return List.of(
        kernels.get("sample_block_maxima").launch(BLOCKS, rows, 1, 256, 0, overlap, argument),
        kernels.get("sample_tokens").launch(rows, 1, 1, 1024, 0, overlap, argument));
  }
}
