package org.meteora.io;

import java.time.Duration;
import me.tongfei.progressbar.ConsoleProgressBarConsumer;
import me.tongfei.progressbar.ProgressBar;
import me.tongfei.progressbar.ProgressBarBuilder;
import me.tongfei.progressbar.ProgressBarStyle;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/**
 * Shows how far a long work has come, on stderr: a bar with rate and time left on a terminal; a
 * plain line every ten seconds elsewhere; nothing when the environment says {@code CI=true}.
 */
public final class Progress implements AutoCloseable {
  private static final Logger LOG = LoggerFactory.getLogger(Progress.class);
  private static final Duration PLAIN_INTERVAL = Duration.ofSeconds(10);

  private final String task;
  private final String unit;
  private final long total;
  private final ProgressBar bar;
  private final boolean plain;
  private long done;
  private String extra = "";
  private long lastLine = System.nanoTime();
  private final long start = lastLine;
  private long before;

  /**
   * @param total how many units there are; −1 when unknown
   * @param unit what is counted, with a leading space: {@code " samples"}
   * @param unitSize that counts are divided by when they are shown: bytes as MiB
   */
  public Progress(String task, long total, String unit, long unitSize) {
    this.task = task;
    this.unit = unit;
    this.total = total;
    boolean quiet = "true".equals(System.getenv("CI"));
    boolean terminal = System.console() != null && System.console().isTerminal();
    plain = !quiet && !terminal;
    bar =
        quiet || plain
            ? null
            : new ProgressBarBuilder()
                .setTaskName(task)
                .setInitialMax(total)
                .setUnit(unit, unitSize)
                .setStyle(ProgressBarStyle.ASCII)
                .setUpdateIntervalMillis(200)
                .setConsumer(new ConsoleProgressBarConsumer(System.err))
                .showSpeed()
                .build();
  }

  /** Counts units that were there before the start, such as steps before a checkpoint. */
  public void begin(long units) {
    before = units;
    done = units;
    if (bar != null) {
      bar.stepTo(units);
    }
  }

  /** So many units more are done. */
  public void step(long units) {
    done += units;
    if (bar != null) {
      bar.stepTo(done);
    }
    line();
  }

  private void line() {
    if (plain && System.nanoTime() - lastLine > PLAIN_INTERVAL.toNanos()) {
      lastLine = System.nanoTime();
      double seconds = (lastLine - start) / 1e9;
      var left =
          total > 0 && done > before
              ? ", " + duration(seconds / (done - before) * (total - done)) + " left"
              : "";
      var more = extra.isEmpty() ? "" : "; " + extra;
      LOG.info("{}: {}{}{}{}{}", task, done, total > 0 ? "/" + total : "", unit, left, more);
    }
  }

  private static String duration(double seconds) {
    long s = Math.round(seconds);
    return s >= 3600
        ? "%d h %02d min".formatted(s / 3600, s / 60 % 60)
        : s >= 60 ? "%d min %02d s".formatted(s / 60, s % 60) : s + " s";
  }

  /** A short text behind the bar: a loss, a file's name. A plain line may follow. */
  public void note(String text) {
    extra = text;
    line();
    if (bar != null) {
      bar.setExtraMessage(" " + text);
    }
  }

  @Override
  public void close() {
    if (bar != null) {
      bar.close();
    }
  }
}
