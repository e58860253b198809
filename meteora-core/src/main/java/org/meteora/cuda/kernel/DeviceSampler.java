package org.meteora.cuda.kernel;

import static java.lang.foreign.ValueLayout.JAVA_FLOAT;
import static java.lang.foreign.ValueLayout.JAVA_INT;
import static java.lang.foreign.ValueLayout.JAVA_LONG;

import java.lang.foreign.MemorySegment;
import java.util.List;
import org.meteora.cuda.driver.CStruct;
import org.meteora.cuda.driver.CStruct.Count;
import org.meteora.cuda.driver.Kernel;
import org.meteora.cuda.driver.Shape;

/**
 * The next token of up to {@link #MAX_ROWS} rows from their logits, on the device: banned tokens
 * out, then the largest logit, or one token drawn after temperature, top-k and top-p. The
 * parameters are read from device memory, so that the launches can be replayed; the owner of this
 * copies {@link #BYTES} bytes there before each step.
 */
public final class DeviceSampler {
  /** Rows at most, and so sequences of a decode step. */
  public static final int MAX_ROWS = 256;

  /** Banned tokens of a row at most. */
  public static final int MAX_BANNED = 32;

  /** The token of a row whose largest logit is infinite, or which has one that is no number. */
  public static final int NOT_FINITE = -1;

  /** Floats, and as many ints, of scratch memory for each row. */
  public static final int BLOCKS = 64;

  /**
   * Mirrors the struct of this name in {@code sampling.cuh}: for each row
   *
   * @param uniform in units of 2^−64
   * @param topP in units of 2^−64; 0 keeps all
   * @param scale 2^25 · log2(e) / temperature; 0 takes the largest logit
   * @param topK 0 keeps all
   * @param bannedTokens (rows, {@link #MAX_BANNED})
   */
  record SamplingParameters(
      @Count(MAX_ROWS) long[] uniform,
      @Count(MAX_ROWS) long[] topP,
      @Count(MAX_ROWS) float[] scale,
      @Count(MAX_ROWS) int[] topK,
      @Count(MAX_ROWS) int[] bannedCount,
      @Count(MAX_ROWS * MAX_BANNED) int[] bannedTokens) {}

  /**
   * Mirrors the struct of this name in {@code sampling.cuh}.
   *
   * @param logits float32 (logitSlots, rows, vocab), to be summed over slots; afterwards the sum is
   *     the first, and banned tokens are −∞
   * @param best float32 (rows, {@link #BLOCKS}), scratch
   * @param bestAt int32, as {@code best}
   * @param tokens int32 (rows), receives the choice, or {@link #NOT_FINITE} where a row is there
   * @param lengths int32 (rows), negative for a row that is not there; raised by 1 where one is
   * @param sampling the parameters on the device
   * @param clear uint32 (clearCount), set to zero; or 0
   * @param blocks {@link #BLOCKS}
   */
  public record SampleTokens(
      long logits,
      long best,
      long bestAt,
      long tokens,
      long lengths,
      long sampling,
      long clear,
      int vocab,
      int logitSlots,
      int rows,
      int blocks,
      int clearCount) {}

  private static final CStruct PARAMETERS = CStruct.of(SamplingParameters.class);

  /** Bytes of the parameters, on the host and on the device. */
  public static final int BYTES = PARAMETERS.size();

  private static final int TOP_P = PARAMETERS.offset("topP");
  private static final int SCALE = PARAMETERS.offset("scale");
  private static final int TOP_K = PARAMETERS.offset("topK");
  private static final int COUNTS = PARAMETERS.offset("bannedCount");
  private static final int BANNED = PARAMETERS.offset("bannedTokens");

  private final MemorySegment host;

  /**
   * @param host {@link #BYTES} bytes, zeros, that the owner copies to the device before each step
   */
  public DeviceSampler(MemorySegment host) {
    this.host = host;
  }

  /** A row takes its largest logit, the lowest index of equals. */
  public void greedy(int row) {
    sampling(row, 0, 0, 0);
  }

  /**
   * A row draws from its distribution.
   *
   * @param scale 2^25 · log2(e) / temperature
   * @param topK tokens that are kept, ties of the last too; 0 keeps all
   * @param topP the probability that is kept, in units of 2^−64; 0 keeps all
   */
  public void sampling(int row, float scale, int topK, long topP) {
    host.set(JAVA_LONG, TOP_P + 8L * row, topP);
    host.set(JAVA_FLOAT, SCALE + 4L * row, scale);
    host.set(JAVA_INT, TOP_K + 4L * row, topK);
  }

  /**
   * What a row needs for the next step.
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
    MemorySegment.copy(banned, 0, host, JAVA_INT, BANNED + 4L * row * MAX_BANNED, banned.length);
  }

  /** The launches that choose the next tokens. */
  public static List<Kernel.Launch> launches(
      Kernels kernels, SampleTokens argument, boolean overlap) {
    return List.of(
        kernels.launch(
            KernelName.SAMPLE_BLOCK_MAXIMA,
            Shape.of(argument.blocks(), argument.rows(), 1, 256).withOverlap(overlap),
            argument),
        kernels.launch(
            KernelName.SAMPLE_TOKENS,
            Shape.of(argument.rows(), 1, 1, 1024).withOverlap(overlap),
            argument));
  }
}
