package org.meteora.train.batch;

import java.nio.ByteBuffer;
import java.util.ArrayList;
import java.util.Collections;
import java.util.Comparator;
import java.util.List;
import java.util.Random;
import java.util.zip.CRC32C;

/**
 * An endless stream of batches, each epoch in another order. Batch {@code position} depends on the
 * samples, the batch size, the seed and nothing else, so a training resumes by its position alone.
 *
 * <p>An epoch shuffles the samples, sorts them by length within pools of {@value #POOL} batches,
 * cuts the pools into batches and shuffles these: rows of a batch are of like length (little
 * padding), and their order stays random.
 */
public final class Batches {
  private static final int POOL = 128;

  private final List<TrainingSample> samples;
  private final int batchSize;
  private final boolean responseOnly;
  private final long seed;
  private long epoch = -1;
  private List<Batch> order = List.of();

  public Batches(List<TrainingSample> samples, int batchSize, boolean responseOnly, long seed) {
    if (samples.isEmpty()) {
      throw new IllegalArgumentException("no samples");
    }
    this.samples = List.copyOf(samples);
    this.batchSize = Math.min(batchSize, samples.size());
    this.responseOnly = responseOnly;
    this.seed = seed;
  }

  /** Batches of one pass over the samples. */
  public long perEpoch() {
    return (samples.size() + batchSize - 1L) / batchSize;
  }

  /** The batch at a position of the endless stream. */
  public Batch get(long position) {
    long wanted = position / perEpoch();
    if (wanted != epoch) {
      order = shuffled(wanted);
      epoch = wanted;
    }
    return order.get((int) (position % perEpoch()));
  }

  /**
   * Tokens of the largest batch, padding not counted.
   *
   * @param count so many batches from the first on are looked at, those of one pass at most
   */
  public long mostTokens(long count) {
    long most = 0;
    for (long position = 0; position < Math.min(count, perEpoch()); position++) {
      most = Math.max(most, get(position).tokens());
    }
    return most;
  }

  private List<Batch> shuffled(long number) {
    var random = new Random(mix(seed, number));
    var all = new ArrayList<>(samples);
    Collections.shuffle(all, random);
    var batches = new ArrayList<Batch>();
    int pool = (int) Math.min(all.size(), (long) POOL * batchSize);
    for (int start = 0; start < all.size(); start += pool) {
      var part = all.subList(start, Math.min(all.size(), start + pool));
      part.sort(Comparator.comparingInt(TrainingSample::length));
      for (int i = 0; i < part.size(); i += batchSize) {
        batches.add(new Batch(part.subList(i, Math.min(part.size(), i + batchSize)), responseOnly));
      }
    }
    Collections.shuffle(batches, random);
    return batches;
  }

  /** A checksum of all samples, to notice on resume that the data are others. */
  public static long fingerprint(List<TrainingSample> samples) {
    var crc = new CRC32C();
    for (var sample : samples) {
      var bytes = ByteBuffer.allocate(Integer.BYTES * (3 + sample.length()));
      bytes.putInt(sample.task()).putInt(sample.promptTokens()).putInt(sample.length());
      bytes.asIntBuffer().put(sample.tokens());
      crc.update(bytes.array());
    }
    return crc.getValue();
  }

  /** A well-mixed seed from several numbers (the finaliser of SplitMix64). */
  public static long mix(long... numbers) {
    long z = 0x9E3779B97F4A7C15L;
    for (long number : numbers) {
      z += number * 0x9E3779B97F4A7C15L + 0x632BE59BD9B4E019L;
      z = (z ^ (z >>> 30)) * 0xBF58476D1CE4E5B9L;
      z = (z ^ (z >>> 27)) * 0x94D049BB133111EBL;
      z ^= z >>> 31;
    }
    return z;
  }
}
