package org.meteora.data.source;

import java.io.IOException;
import java.io.OutputStream;
import java.nio.file.Path;
import java.security.DigestOutputStream;
import java.security.MessageDigest;
import java.util.ArrayList;
import java.util.Collections;
import java.util.HexFormat;
import java.util.List;
import java.util.Random;
import java.util.Set;
import org.meteora.UserException;
import org.meteora.data.tasks.MetricsFile;
import org.meteora.data.tasks.Task;
import org.meteora.data.tasks.Tasks;
import org.meteora.io.AtomicFiles;
import org.meteora.io.Digests;
import org.meteora.io.FolderLock;

/**
 * Turns a task's source into {@code <target>/<task>/{train,test}.jsonl}. The same source and seed
 * always give the same bytes.
 */
public record DatasetMaker(Path targetDir, long seed) {
  static final int MOST_TRAIN = 100_000;
  static final int MOST_TEST = 50_000;

  /**
   * What was written.
   *
   * @param sha256 of train.jsonl followed by test.jsonl
   */
  public record Written(int train, int test, String sha256) {}

  /**
   * Writes both files, or neither when a record of either is wrong; of a task that is not one of
   * the 28 also what its metrics are.
   *
   * @throws UserException when a record lacks what the task needs (naming file and line), a file
   *     cannot be written, or another run is writing them
   */
  public Written make(Task task, SourceLocator.Source source) {
    var folder = targetDir.resolve(task.name());
    try (var lock = FolderLock.takeOutput(folder)) {
      var written = write(task, source);
      if (Tasks.find(task.name()).isEmpty()) {
        MetricsFile.write(folder, task.metrics());
      }
      return written;
    } catch (OutOfMemoryError e) {
      throw new UserException(
          "out of memory in the source of %s: it needs a larger heap (java -Xmx)", task.name(), e);
    }
  }

  private Written write(Task task, SourceLocator.Source source) {
    var folder = targetDir.resolve(task.name());
    var digest = Digests.sha256();
    var parts =
        source
            .test()
            .map(test -> List.of(source.train(), test))
            .orElseGet(() -> split(source.train()));
    int[] counts = new int[2];
    // train.jsonl takes its place after test.jsonl has: a broken record of either leaves both as
    // they were
    AtomicFiles.writeStream(
        folder.resolve("train.jsonl"),
        out -> {
          counts[0] = write(out, task, "train", parts.getFirst(), MOST_TRAIN, digest);
          AtomicFiles.writeStream(
              folder.resolve("test.jsonl"),
              testOut ->
                  counts[1] = write(testOut, task, "test", parts.getLast(), MOST_TEST, digest));
        });
    return new Written(counts[0], counts[1], HexFormat.of().formatHex(digest.digest()));
  }

  /** Train and test of a source without a test split: a fifth of it, drawn with the seed. */
  private List<Records> split(Records all) {
    var order = new ArrayList<Integer>();
    all.forEach((node, where) -> order.add(order.size()));
    Collections.shuffle(order, new Random(seed));
    var chosen = Set.copyOf(order.subList(0, order.size() / 5));
    return List.of(filtered(all, chosen, false), filtered(all, chosen, true));
  }

  private static Records filtered(Records records, Set<Integer> chosen, boolean wanted) {
    return each -> {
      int[] index = new int[1];
      records.forEach(
          (node, where) -> {
            if (chosen.contains(index[0]++) == wanted) {
              each.accept(node, where);
            }
          });
    };
  }

  private static int write(
      OutputStream out,
      Task task,
      String split,
      Records records,
      int maximum,
      MessageDigest digest) {
    int[] count = new int[1];
    var hashed = new DigestOutputStream(out, digest);
    records.forEach(
        (node, where) -> {
          if (count[0] == maximum) {
            return;
          }
          count[0]++;
          try {
            hashed.write(task.prompt().of(node, where).line());
          } catch (IOException e) {
            // not as it is: the reader of the source would take it for its own
            throw new UserException(
                "cannot write %s/%s.jsonl: %s", task.name(), split, AtomicFiles.reason(e), e);
          }
        });
    if (count[0] == 0) {
      throw new UserException("the source of " + task.name() + " has no record for " + split);
    }
    return count[0];
  }
}
