package org.meteora.fuzz;

import java.io.IOException;
import java.io.PrintStream;
import java.io.RandomAccessFile;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Comparator;
import java.util.HashMap;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.SplittableRandom;
import java.util.concurrent.TimeUnit;
import java.util.stream.Stream;
import org.meteora.UserException;

/**
 * Gives every reader of files inputs that are nearly right. Each must be read, or refused with a
 * {@link UserException} of one line, within {@link #SECONDS} of processor time; anything else is a
 * finding. The readers run in a process of their own, which is started again behind the input that
 * ended it.
 *
 * <p>An input follows from kind, seed and number: {@code --kind K --seed S --only N} makes it again
 * and shows what it does.
 */
public final class Fuzz {
  static final long SECONDS = 5;
  private static final long STUCK = 180;
  private static final int ENOUGH = 20;

  private Fuzz() {}

  /** What one kind of input has shown. */
  record Report(Kind kind, long inputs, long read, List<String> findings) {}

  public static void main(String[] arguments) throws Exception {
    var options = new HashMap<String, String>();
    for (int i = 0; i + 1 < arguments.length; i += 2) {
      options.put(arguments[i], arguments[i + 1]);
    }
    var root = Path.of(options.getOrDefault("--root", ".")).toAbsolutePath().normalize();
    long seed =
        Long.parseLong(
            options.getOrDefault("--seed", String.valueOf(System.nanoTime() & 0xffffff)));
    if (options.containsKey("--worker")) {
      work(
          root,
          Kind.valueOf(options.get("--worker")),
          seed,
          Long.parseLong(options.get("--from")),
          Long.parseLong(options.get("--to")),
          Path.of(options.get("--folder")));
      return;
    }
    var kinds =
        options.containsKey("--kind")
            ? List.of(
                Kind.valueOf(options.get("--kind").toUpperCase(Locale.ROOT).replace('-', '_')))
            : List.of(Kind.values());
    if (options.containsKey("--seeds")) {
      for (var kind : kinds) {
        try {
          requireGoodSeeds(root, kind);
        } catch (RuntimeException e) {
          System.out.println(kind + ": " + e);
        }
      }
      return;
    }
    if (options.containsKey("--only")) {
      show(root, kinds.getFirst(), seed, Long.parseLong(options.get("--only")));
      return;
    }
    long inputs = Long.parseLong(options.getOrDefault("--inputs", "1000000"));
    System.out.println("seed " + seed);
    boolean clean = true;
    long total = 0;
    for (var kind : kinds) {
      long count = kinds.size() == 1 ? inputs : inputs * kind.share() / shares();
      var report = run(root, kind, seed, count);
      total += report.inputs;
      clean &= report.findings.isEmpty();
      System.out.printf(
          "%-18s %,9d inputs, %,9d read, the others refused; %d findings%n",
          kind, report.inputs, report.read, report.findings.size());
      report.findings.forEach(finding -> System.out.println("  " + finding));
    }
    System.out.printf("%,d inputs%n", total);
    System.exit(clean ? 0 : 1);
  }

  private static long shares() {
    return Arrays.stream(Kind.values()).mapToLong(Kind::share).sum();
  }

  /** Runs inputs 0 … count − 1 of a kind. */
  static Report run(Path root, Kind kind, long seed, long count) throws Exception {
    var folder = Files.createTempDirectory("meteora-fuzz-");
    var findings = new ArrayList<String>();
    long read = 0;
    try {
      // the same again and again is one finding
      var shown = new HashMap<String, Integer>();
      for (long from = 0; from < count && shown.size() < ENOUGH; ) {
        clear(folder);
        var process = start(root, kind, seed, from, count, folder);
        var state = folder.resolve("state");
        long at = -1;
        long changed = System.nanoTime();
        var computed = Duration.ZERO;
        boolean hung = false;
        // time of the processor: the machine may have other work
        while (!process.waitFor(200, TimeUnit.MILLISECONDS)) {
          long now = number(state, at);
          var sofar = process.info().totalCpuDuration().orElse(Duration.ZERO);
          if (now != at) {
            at = now;
            changed = System.nanoTime();
            computed = sofar;
          } else if (at >= 0 && sofar.minus(computed).toSeconds() > SECONDS
              || System.nanoTime() - changed > TimeUnit.SECONDS.toNanos(STUCK)) {
            hung = true;
            process.destroyForcibly().waitFor();
          }
        }
        at = number(state, at);
        for (var line : lines(folder.resolve("findings"))) {
          add(findings, shown, kind, seed, line);
        }
        read += lines(state).isEmpty() ? 0 : Long.parseLong(lines(state).getFirst());
        if (process.exitValue() == 0) {
          break;
        }
        add(
            findings,
            shown,
            kind,
            seed,
            at
                + (hung
                    ? " took more than " + SECONDS + " seconds"
                    : " ended the process: exit code "
                        + process.exitValue()
                        + " "
                        + last(folder.resolve("log"))));
        from = at + 1;
      }
    } finally {
      delete(folder);
    }
    return new Report(kind, count, read, findings);
  }

  private static void add(
      List<String> findings, Map<String, Integer> shown, Kind kind, long seed, String what) {
    var sort = what.replaceFirst("^\\d+", "").replaceAll("[\"'`\u201c].*", "");
    if (shown.merge(sort, 1, Integer::sum) <= 2) {
      findings.add("--kind " + kind + " --seed " + seed + " --only " + what);
    }
  }

  private static Process start(Path root, Kind kind, long seed, long from, long to, Path folder)
      throws IOException {
    var builder =
        new ProcessBuilder(
            Path.of(System.getProperty("java.home"), "bin", "java").toString(),
            "-Xmx1g",
            "-XX:+UseSerialGC",
            "-XX:TieredStopAtLevel=1",
            "-XX:-CreateCoredumpOnCrash",
            "-XX:ErrorFile=" + folder.resolve("hs_err.log"),
            "--enable-native-access=ALL-UNNAMED",
            "--sun-misc-unsafe-memory-access=allow",
            "-cp",
            System.getProperty("java.class.path"),
            Fuzz.class.getName(),
            "--worker",
            kind.name(),
            "--root",
            root.toString(),
            "--seed",
            String.valueOf(seed),
            "--from",
            String.valueOf(from),
            "--to",
            String.valueOf(to),
            "--folder",
            folder.toString());
    builder.environment().put("DJL_OFFLINE", "true");
    builder.environment().put("OPT_OUT_TRACKING", "true");
    builder.environment().put("RUST_FLAVOR", "cpu");
    builder.environment().put("OMP_NUM_THREADS", "1");
    builder.environment().put("LC_ALL", "C.UTF-8");
    builder.redirectErrorStream(true);
    builder.redirectOutput(folder.resolve("log").toFile());
    return builder.start();
  }

  /** In the process of the readers. */
  private static void work(Path root, Kind kind, long seed, long from, long to, Path folder)
      throws IOException {
    var seeds = kind.seeds(root);
    var inputs = Files.createDirectories(folder.resolve("inputs"));
    kind.prepare(root, inputs);
    var state = new Kind.State();
    long read = 0;
    try (var at = new RandomAccessFile(folder.resolve("state").toFile(), "rw");
        var findings =
            new PrintStream(folder.resolve("findings").toFile(), StandardCharsets.UTF_8)) {
      for (long i = from; i < to; i++) {
        at.seek(0);
        at.write("%019d\n%019d\n".formatted(read, i).getBytes(StandardCharsets.US_ASCII));
        // a new file each time: the one before may still be mapped
        Files.deleteIfExists(kind.file(inputs));
        Files.write(kind.file(inputs), input(kind, seeds, seed, i));
        try {
          kind.read(root, inputs, state);
          read++;
        } catch (UserException e) {
          var message = String.valueOf(e.getMessage());
          if (message.isBlank() || message.contains("\n") || message.length() > 2000) {
            findings.println(i + " is refused in more than a line: " + cut(message));
          }
        } catch (Throwable e) {
          findings.println(i + " ends in " + cut(e.toString()) + at(e));
        }
      }
    }
    Files.writeString(folder.resolve("state"), read + "\n" + (to - 1) + "\n");
  }

  private static byte[] input(Kind kind, List<byte[]> seeds, long seed, long number) {
    var random = new SplittableRandom(seed * 1_000_003 + kind.ordinal()).split();
    var own = new SplittableRandom(random.nextLong() + number * 0x9E3779B97F4A7C15L);
    return kind.mutate(new Mutator(own.split(), seeds));
  }

  /** The good inputs themselves must be good. */
  static void requireGoodSeeds(Path root, Kind kind) throws IOException {
    for (var seed : kind.seeds(root)) {
      var folder = Files.createTempDirectory("meteora-fuzz-seed-");
      try {
        kind.prepare(root, folder);
        Files.write(kind.file(folder), seed);
        kind.read(root, folder, new Kind.State());
      } finally {
        delete(folder);
      }
    }
  }

  private static void show(Path root, Kind kind, long seed, long number) throws IOException {
    var folder = Files.createTempDirectory("meteora-fuzz-one-");
    kind.prepare(root, folder);
    Files.write(kind.file(folder), input(kind, kind.seeds(root), seed, number));
    System.out.println("the input is " + kind.file(folder));
    kind.read(root, folder, new Kind.State());
    System.out.println("it is read");
  }

  private static String at(Throwable e) {
    var own =
        Arrays.stream(e.getStackTrace())
            .filter(each -> each.getClassName().startsWith("org.meteora"))
            .findFirst();
    return own.map(each -> " at " + each).orElse("");
  }

  private static String cut(String text) {
    var line = text.replaceAll("\\s+", " ");
    return line.length() <= 300 ? line : line.substring(0, 300) + "…";
  }

  private static long number(Path file, long otherwise) {
    var all = lines(file);
    // the last line that was written whole
    return all.isEmpty() ? otherwise : Long.parseLong(all.getLast());
  }

  private static List<String> lines(Path file) {
    try {
      var text = Files.readString(file);
      int end = text.lastIndexOf('\n');
      return end < 0 ? List.of() : text.substring(0, end).lines().toList();
    } catch (IOException e) {
      return List.of();
    }
  }

  private static String last(Path log) {
    var all = lines(log);
    for (int i = 0; i < all.size(); i++) {
      if (all.get(i).contains("panicked")) {
        var place = all.get(i).replaceFirst(".*/(?=[^/]*/src/)", "");
        return place + " " + (i + 1 < all.size() ? cut(all.get(i + 1)) : "");
      }
    }
    return all.stream()
        .filter(line -> line.contains("Error") || line.contains("Exception"))
        .findFirst()
        .map(Fuzz::cut)
        .orElse(all.isEmpty() ? "" : cut(all.getLast()));
  }

  private static void clear(Path folder) throws IOException {
    delete(folder);
    Files.createDirectories(folder);
  }

  static void delete(Path folder) throws IOException {
    if (Files.exists(folder)) {
      try (Stream<Path> all = Files.walk(folder)) {
        for (var each : all.sorted(Comparator.reverseOrder()).toList()) {
          Files.delete(each);
        }
      }
    }
  }
}
