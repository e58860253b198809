import com.fasterxml.jackson.databind.ObjectMapper;
import com.sun.net.httpserver.HttpServer;
import java.io.IOException;
import java.net.InetAddress;
import java.net.InetSocketAddress;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.charset.StandardCharsets;
import java.nio.file.FileVisitResult;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.SimpleFileVisitor;
import java.nio.file.attribute.BasicFileAttributes;
import java.security.MessageDigest;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashSet;
import java.util.HexFormat;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Random;
import java.util.Set;
import java.util.TreeMap;
import java.util.concurrent.Executors;
import java.util.concurrent.TimeUnit;

/**
 * Kills meteora's commands at random moments (SIGKILL) and looks at what they leave: nothing half
 * written, nothing lost that was there, and, run to the end at last, what an undisturbed run gives.
 *
 * <p>{@code scripts/kill-test [KILLS=200] [SEED=now] [COMMAND…]}: on the checkpoint in configs/tiny.
 * Ends with exit code 1 at the first fault, whose folder is kept.
 */
final class KillTest {
  private static final ObjectMapper JSON = new ObjectMapper();
  private static final byte[] PNG_END = HexFormat.of().parseHex("49454e44ae426082");

  private final Path root;
  private final Path work;
  private final Random random;

  private KillTest(Path root, Path work, long seed) {
    this.root = root;
    this.work = work;
    random = new Random(seed);
  }

  /**
   * A command that writes into a folder.
   *
   * @param first its arguments; {@code OUT} stands for the folder
   * @param again those after a kill
   * @param compared ends of the paths whose bytes must be those of an undisturbed run
   */
  private record Command(
      String name, List<String> first, List<String> again, List<String> compared) {}

  public static void main(String[] arguments) throws Exception {
    var root = Path.of(System.getProperty("meteora.root", ".")).toAbsolutePath().normalize();
    int kills = arguments.length > 0 ? Integer.parseInt(arguments[0]) : 200;
    long seed = arguments.length > 1 ? Long.parseLong(arguments[1]) : System.nanoTime();
    var only = Arrays.asList(arguments).subList(Math.min(2, arguments.length), arguments.length);
    var work = Files.createTempDirectory("kill-test");
    System.out.println("seed " + seed + ", in " + work);
    var test = new KillTest(root, work, seed);
    try (var executor = Executors.newVirtualThreadPerTaskExecutor()) {
      var hub = test.hub(executor);
      try {
        test.all(kills, only, "http://localhost:" + hub.getAddress().getPort());
      } finally {
        hub.stop(0);
      }
    }
    remove(work);
  }

  private void all(int kills, List<String> only, String endpoint) throws Exception {
    var commands = new ArrayList<>(commands());
    commands.removeIf(command -> !only.isEmpty() && !only.contains(command.name));
    int done = 0;
    for (int i = 0; i < commands.size(); i++) {
      int share = (kills - done) / (commands.size() - i);
      done += disturb(commands.get(i), share, endpoint);
    }
    System.out.println(done + " kills, no fault");
  }

  private List<Command> commands() throws IOException, InterruptedException {
    var tiny = root.resolve("configs/tiny");
    var data = work.resolve("datasets");
    Files.createDirectories(work.resolve("sources"));
    var lines = new StringBuilder();
    for (int i = 0; i < 20_000; i++) {
      lines
          .append("{\"inputs\": \"How many are ").append(i).append(" and one?\", \"targets\": [\"")
          .append(i + 1).append("\"], \"multiple_choice_targets\": [], \"multiple_choice_scores\": [],")
          .append(" \"idx\": ").append(i).append("}\n");
    }
    var source = Files.createDirectories(work.resolve("sources/object_counting"));
    Files.writeString(source.resolve("train.jsonl"), lines);
    Files.writeString(source.resolve("validation.jsonl"), lines);
    var config =
        Files.writeString(
            work.resolve("config.yaml"),
            """
            base_model_path: %1$s/base
            adapter_dir: %1$s/adapters
            meteora_ckpt_path: %1$s/meteora
            target_dir: %1$s/datasets
            bigbench_dataset_dir: %2$s/sources
            train:
              batch_size: 1
              gradient_accumulation_steps: 1
              max_steps: 8
              save_steps: 1
              save_total_limit: 2
              max_seq_len: 48
              lora:
                batch_size: 1
                max_steps: 8
                save_steps: 1
            """
                .formatted(tiny, work));
    var with = "--config=" + config;
    var train = List.of("train", with, "--output-dir=OUT");
    var lora =
        List.of("train-lora", with, "--output-dir=OUT", "--task=reverse_word");
    var eval =
        List.of(
            "eval", with, "--task=reverse_word", "--save", "--eval-result-save-dir=OUT",
            "--batch-size=2", "--max-length=120");
    var composite =
        List.of(
            "create-composite", with, "--tasks=reverse_word,count_vowels", "--nums=200",
            "--target-dir=OUT");
    var dataset =
        List.of(
            "create-dataset", with, "--task=object_counting", "--target-dir=OUT", "--offline");
    var download = List.of("download", "org/name", "--to=OUT");
    var result =
        new ArrayList<>(
            List.of(
                new Command(
                    "train", train, and(train, "--resume"),
                    List.of("meteora/model.safetensors")),
                new Command(
                    "train-lora", lora, and(lora, "--resume"),
                    List.of("reverse_word/adapter_model.safetensors")),
                new Command("eval", eval, and(eval, "--resume"), List.of(".answers.jsonl")),
                new Command("create-dataset", dataset, dataset, List.of(".jsonl")),
                new Command("create-composite", composite, composite, List.of(".jsonl", ".json")),
                new Command("download", download, download, List.of(".bin", ".txt"))));
    if (run(List.of("merge", "--help"), "", work.resolve("help.txt")).waitFor() == 0) {
      var merge =
          List.of(
              "merge", with, "--method=cat", "--tasks=reverse_word,count_vowels",
              "--output-dir=OUT");
      result.add(new Command("merge", merge, merge, List.of(".safetensors", ".json")));
    }
    Files.createDirectories(data);
    return result;
  }

  private static List<String> and(List<String> arguments, String more) {
    var all = new ArrayList<>(arguments);
    all.add(more);
    return all;
  }

  /** Kills a command so many times; returns how often that came before its end. */
  private int disturb(Command command, int kills, String endpoint) throws Exception {
    var whole = prepare(command, work.resolve(command.name + "-whole"));
    long start = System.nanoTime();
    end(command, command.first, whole, endpoint);
    long time = System.nanoTime() - start;
    var expected = compared(command, whole);
    if (expected.isEmpty()) {
      throw new IllegalStateException(command.name + " wrote nothing to compare");
    }
    int killed = 0;
    int ended = 0;
    for (int round = 0; killed < kills; round++) {
      var out = prepare(command, work.resolve(command.name + "-" + round));
      var there = new TreeMap<String, String>();
      boolean again = false;
      for (int attempt = 0; attempt < 12 && killed < kills; attempt++) {
        var log = work.resolve(command.name + "-" + round + ".log");
        var process = run(goOn(command, out, again), endpoint, out, log);
        // the first half of a run is mostly the start of the machine
        double share = random.nextInt(4) == 0 ? random.nextDouble() : 0.4 + 0.7 * random.nextDouble();
        if (process.waitFor((long) (time * share), TimeUnit.NANOSECONDS)) {
          require(process.exitValue() == 0, command, out, "exit code " + process.exitValue() + ": " + Files.readString(log));
          again = false;
          break;
        }
        process.destroyForcibly().waitFor();
        killed++;
        again = true;
        check(command, out, there, expected);
      }
      // a run killed while it did a finished one again has left its temporary files
      if (again || !finished(command, out, expected)) {
        end(command, goOn(command, out, true), out, endpoint);
      }
      check(command, out, there, expected);
      var compared = compared(command, out);
      require(compared.equals(expected), command, out, "the end differs: " + difference(expected, compared));
      requireTidy(command, out);
      ended++;
      remove(out);
    }
    System.out.printf(
        "%-16s %3d kills, %d runs brought to the end they would have had%n",
        command.name, killed, ended);
    return killed;
  }

  /** What a command reads from the folder it writes into. */
  private Path prepare(Command command, Path out) throws IOException {
    if (command.name.equals("create-composite")) {
      for (var task : List.of("reverse_word", "count_vowels")) {
        var folder = Files.createDirectories(out.resolve(task));
        for (var name : List.of("train.jsonl", "test.jsonl")) {
          Files.copy(
              root.resolve("configs/tiny/datasets").resolve(task).resolve(name),
              folder.resolve(name));
        }
      }
    }
    return out;
  }

  /** Resuming needs something to resume; a training that has none begins. */
  private List<String> goOn(Command command, Path out, boolean again) throws IOException {
    if (command.name.equals("merge")) {
      remove(out); // it wants a new folder, and says so
    }
    boolean checkpoint = command.name.equals("train") && names(out, "checkpoint-").isEmpty();
    return again && !checkpoint ? command.again : command.first;
  }

  private boolean finished(Command command, Path out, Map<String, String> expected)
      throws IOException {
    return !command.name.startsWith("train") && compared(command, out).equals(expected) && partial(out).isEmpty();
  }

  private void end(Command command, List<String> arguments, Path out, String endpoint)
      throws Exception {
    var log = work.resolve(command.name + "-end.log");
    var process = run(arguments, endpoint, out, log);
    require(process.waitFor(30, TimeUnit.MINUTES), command, out, "it does not end");
    require(process.exitValue() == 0, command, out, "exit code " + process.exitValue() + ": " + Files.readString(log));
  }

  private Process run(List<String> arguments, String endpoint, Path out, Path log)
      throws IOException {
    return run(arguments.stream().map(each -> each.replace("OUT", out.toString())).toList(), endpoint, log);
  }

  private Process run(List<String> arguments, String endpoint, Path log) throws IOException {
    var all = new ArrayList<String>();
    all.add(ProcessHandle.current().info().command().orElse("java"));
    all.addAll(
        List.of(
            "-Xmx512m", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC",
            "--enable-native-access=ALL-UNNAMED", "--sun-misc-unsafe-memory-access=allow",
            "-Djava.awt.headless=true", "-cp", System.getProperty("java.class.path"),
            "org.meteora.cli.Main"));
    all.addAll(arguments);
    var builder = new ProcessBuilder(all).redirectErrorStream(true).redirectOutput(log.toFile());
    builder.directory(work.toFile());
    builder.environment().put("DJL_OFFLINE", "true");
    builder.environment().put("OPT_OUT_TRACKING", "true");
    builder.environment().put("OMP_NUM_THREADS", "1");
    if (!endpoint.isEmpty()) {
      builder.environment().put("HF_ENDPOINT", endpoint);
      builder.environment().put("no_proxy", "*");
    }
    return builder.start();
  }

  /** Files are whole, and what an earlier look saw is still there. */
  private void check(
      Command command, Path out, Map<String, String> there, Map<String, String> expected)
      throws IOException {
    if (!Files.exists(out)) {
      return;
    }
    var now = new TreeMap<String, String>();
    try (var all = Files.walk(out)) {
      for (var file : all.filter(Files::isRegularFile).toList()) {
        var name = out.relativize(file).toString();
        if (name.matches("(.*/)?\\..*") || name.contains("/.") || name.matches(".*\\.part(\\.journal)?")) {
          continue; // hidden: unfinished, and known to be
        }
        var fault = fault(file);
        require(fault.isEmpty(), command, out, name + ": " + fault);
        now.put(name, hash(file));
      }
    }
    // a partial file only grows, unless the whole took its place
    var answers = partial(out);
    int before = Integer.parseInt(there.getOrDefault("answers", "0"));
    boolean result = names(out.resolve("meteora"), "").stream().anyMatch(n -> n.equals("reverse_word.json"));
    require(result || answers.size() >= before, command, out, "answers went: " + before + " then " + answers.size());
    there.put("answers", String.valueOf(answers.size()));
    // the last checkpoint never goes back
    for (var folder : List.of("", "reverse_word/training")) {
      var last = names(out.resolve(folder), "checkpoint-").stream().max(String::compareTo).orElse("");
      var seen = there.getOrDefault("last" + folder, "");
      require(last.compareTo(seen) >= 0, command, out, "checkpoints went back from " + seen + " to " + last);
      there.put("last" + folder, last);
    }
    // what has a final name has its final content
    if (!command.name.startsWith("train")) {
      for (var entry : compared(command, out).entrySet()) {
        if (!entry.getKey().contains(".partial.")) {
          require(entry.getValue().equals(expected.get(entry.getKey())), command, out, entry.getKey() + " is not what it should be");
        }
      }
    }
  }

  private static Set<String> partial(Path out) throws IOException {
    var result = new HashSet<String>();
    var file = out.resolve("meteora/reverse_word.partial.answers.jsonl");
    if (Files.exists(file)) {
      for (var line : Files.readString(file).split("(?<=\n)")) {
        if (line.endsWith("\n")) {
          result.add(String.valueOf(JSON.readTree(line).path("index")));
        }
      }
    }
    return result;
  }

  private static List<String> names(Path folder, String prefix) {
    var all = folder.toFile().list();
    return all == null ? List.of() : Arrays.stream(all).filter(name -> name.startsWith(prefix)).toList();
  }

  /** What is wrong with a file that has its final name; empty for nothing. */
  private static String fault(Path file) throws IOException {
    var name = file.getFileName().toString();
    var bytes = Files.readAllBytes(file);
    try {
      if (name.endsWith(".json")) {
        JSON.readTree(bytes);
        return bytes.length == 0 ? "empty" : "";
      }
      if (name.endsWith(".jsonl")) {
        boolean grows = name.equals("metrics.jsonl") || name.endsWith(".partial.answers.jsonl");
        var lines = new String(bytes, StandardCharsets.UTF_8).split("(?<=\n)");
        for (int i = 0; i < lines.length && bytes.length > 0; i++) {
          boolean last = i == lines.length - 1;
          if (!lines[i].endsWith("\n") && !(last && grows)) {
            return "cut off";
          }
          if (lines[i].endsWith("\n")) {
            JSON.readTree(lines[i]);
          }
        }
        return "";
      }
    } catch (IOException e) {
      return e.getMessage();
    }
    if (name.endsWith(".safetensors")) {
      long header = ByteBuffer.wrap(bytes).order(ByteOrder.LITTLE_ENDIAN).getLong();
      long end = 0;
      for (var tensor : JSON.readTree(bytes, 8, (int) header)) {
        end = Math.max(end, tensor.path("data_offsets").path(1).asLong());
      }
      return bytes.length == 8 + header + end ? "" : "of another length than its header says";
    }
    if (name.endsWith(".png")) {
      return Arrays.equals(bytes, bytes.length - 8, bytes.length, PNG_END, 0, 8) ? "" : "cut off";
    }
    return "";
  }

  /** Hashes of what is compared at the end. */
  private static Map<String, String> compared(Command command, Path out) throws IOException {
    var result = new LinkedHashMap<String, String>();
    if (Files.exists(out)) {
      try (var all = Files.walk(out)) {
        for (var file : all.filter(Files::isRegularFile).sorted().toList()) {
          var name = out.relativize(file).toString();
          if (command.compared.stream().anyMatch(name::endsWith)
              && !name.contains("/.") && !name.startsWith(".") && !name.contains(".partial.")) {
            result.put(name, hash(file));
          }
        }
      }
    }
    return result;
  }

  private static String difference(Map<String, String> expected, Map<String, String> found) {
    var names = new HashSet<>(expected.keySet());
    names.addAll(found.keySet());
    names.removeIf(name -> String.valueOf(expected.get(name)).equals(found.get(name)));
    return names.toString();
  }

  /** What was left behind is gone. */
  private void requireTidy(Command command, Path out) throws IOException {
    try (var all = Files.walk(out)) {
      var left =
          all.map(path -> out.relativize(path).toString())
              .filter(name -> name.matches(".*(\\.tmp|\\.old|\\.part|\\.journal)|.*\\.partial\\..*"))
              .toList();
      require(left.isEmpty(), command, out, "left behind: " + left);
    }
  }

  private void require(boolean right, Command command, Path out, String fault) {
    if (!right) {
      System.out.println("FAULT " + command.name + " in " + out + ": " + fault);
      System.exit(1);
    }
  }

  private static String hash(Path file) throws IOException {
    return hash("SHA-256", Files.readAllBytes(file));
  }

  private static String hash(String algorithm, byte[]... parts) {
    try {
      var digest = MessageDigest.getInstance(algorithm);
      Arrays.stream(parts).forEach(digest::update);
      return HexFormat.of().formatHex(digest.digest());
    } catch (java.security.NoSuchAlgorithmException e) {
      throw new IllegalStateException(e);
    }
  }

  /** A Hub with one repository of a big and some small files, sent slowly. */
  private HttpServer hub(java.util.concurrent.Executor executor) throws IOException {
    var files = new LinkedHashMap<String, byte[]>();
    var big = new byte[24 << 20];
    random.nextBytes(big);
    files.put("big.bin", big);
    for (int i = 0; i < 12; i++) {
      files.put("small" + i + ".txt", ("small " + i).repeat(1000).getBytes(StandardCharsets.UTF_8));
    }
    var server = HttpServer.create(new InetSocketAddress(InetAddress.getLoopbackAddress(), 0), 50);
    server.setExecutor(executor);
    server.createContext(
        "/",
        exchange -> {
          var path = exchange.getRequestURI().getPath();
          byte[] reply;
          int status = 200;
          if (path.contains("/revision/")) {
            reply = ("{\"sha\":\"" + "0123456789".repeat(4) + "\"}").getBytes(StandardCharsets.UTF_8);
          } else if (path.contains("/tree/")) {
            var list = JSON.createArrayNode();
            files.forEach(
                (name, content) -> {
                  var entry = list.addObject().put("type", "file").put("path", name).put("size", content.length);
                  var head = ("blob " + content.length + "\0").getBytes(StandardCharsets.UTF_8);
                  entry.put("oid", hash("SHA-1", head, content));
                  if (name.endsWith(".bin")) {
                    entry.putObject("lfs").put("oid", hash("SHA-256", content)).put("size", content.length);
                  }
                });
            reply = JSON.writeValueAsBytes(list);
          } else {
            var content = files.get(path.substring(path.lastIndexOf('/') + 1));
            var range = exchange.getRequestHeaders().getFirst("Range").substring(6).split("-");
            int from = Integer.parseInt(range[0]);
            int to = Math.min(content.length - 1, Integer.parseInt(range[1]));
            exchange.getResponseHeaders().set("Content-Range", "bytes " + from + "-" + to + "/" + content.length);
            reply = Arrays.copyOfRange(content, from, to + 1);
            status = 206;
          }
          exchange.sendResponseHeaders(status, reply.length);
          try (var body = exchange.getResponseBody()) {
            for (int at = 0; at < reply.length; at += 1 << 18) {
              body.write(reply, at, Math.min(1 << 18, reply.length - at));
              Thread.sleep(at > 0 ? 8 : 0);
            }
          } catch (IOException | InterruptedException e) {
            // the client was killed
          }
        });
    server.start();
    return server;
  }

  private static void remove(Path path) throws IOException {
    if (!Files.exists(path)) {
      return;
    }
    Files.walkFileTree(
        path,
        new SimpleFileVisitor<>() {
          @Override
          public FileVisitResult visitFile(Path file, BasicFileAttributes attributes)
              throws IOException {
            Files.delete(file);
            return FileVisitResult.CONTINUE;
          }

          @Override
          public FileVisitResult postVisitDirectory(Path folder, IOException failure)
              throws IOException {
            Files.delete(folder);
            return FileVisitResult.CONTINUE;
          }
        });
  }
}
