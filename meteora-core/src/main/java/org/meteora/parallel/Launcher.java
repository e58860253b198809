package org.meteora.parallel;

import java.io.File;
import java.io.IOException;
import java.net.ServerSocket;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Optional;
import java.util.UUID;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.TimeoutException;
import org.meteora.UserException;

/**
 * Starts the command of this process several times on this machine and watches the processes: with
 * torchrun's variables on GPUs, by {@code mpirun} on the CPU.
 */
public final class Launcher {
  private static final String OPTION = "--processes";

  /** As long as the others need to notice that one is lost, and some more. */
  private static final long GRACE_SECONDS = 40;

  /** As long as a training may need for its checkpoint. */
  private static final long STOP_SECONDS = 600;

  private final List<Process> started = new ArrayList<>();

  private Launcher() {}

  /**
   * Runs until all processes have ended.
   *
   * @param processes how many, at least 2
   * @param gpus how many this machine has; 0: compute on the CPU
   * @return 0, or the exit code of the first that failed
   * @throws UserException when there are fewer GPUs, or no {@code mpirun}
   */
  public static int run(int processes, int gpus) {
    if (gpus > 0) {
      Processes.requireGpus(processes, gpus);
    }
    var command = withoutOption(commandLine());
    var launcher = new Launcher();
    var stopping = new Thread(launcher::stop, "stop-processes");
    Runtime.getRuntime().addShutdownHook(stopping);
    try {
      if (gpus > 0) {
        launcher.startOnGpus(command, processes);
      } else {
        launcher.start(builder(mpirun(processes, command), processes));
      }
      return launcher.watch();
    } finally {
      launcher.stop();
      try {
        Runtime.getRuntime().removeShutdownHook(stopping);
      } catch (IllegalStateException e) {
        // it runs already
      }
    }
  }

  private void startOnGpus(List<String> command, int processes) {
    int port = freePort();
    var id = UUID.randomUUID().toString();
    for (int rank = 0; rank < processes; rank++) {
      var builder = builder(command, processes);
      var environment = builder.environment();
      environment.put("RANK", String.valueOf(rank));
      environment.put("LOCAL_RANK", String.valueOf(rank));
      environment.put("WORLD_SIZE", String.valueOf(processes));
      environment.put("MASTER_ADDR", "127.0.0.1");
      environment.put("MASTER_PORT", String.valueOf(port));
      environment.put("TORCHELASTIC_RUN_ID", id);
      start(builder);
    }
  }

  private static ProcessBuilder builder(List<String> command, int processes) {
    var builder = new ProcessBuilder(command).inheritIO();
    int threads = Math.max(1, Runtime.getRuntime().availableProcessors() / processes);
    builder.environment().putIfAbsent("OMP_NUM_THREADS", String.valueOf(threads));
    return builder;
  }

  private synchronized void start(ProcessBuilder builder) {
    try {
      started.add(builder.start());
    } catch (IOException e) {
      throw new UserException(
          "cannot start " + builder.command().getFirst() + ": " + e.getMessage(), e);
    }
  }

  /** When one has failed the others notice it; those that do not are ended. */
  private int watch() {
    var failed = new CompletableFuture<Integer>();
    var ends =
        started.stream()
            .map(process -> process.onExit().thenAccept(ended -> report(ended, failed)))
            .toArray(CompletableFuture[]::new);
    var all = CompletableFuture.allOf(ends);
    CompletableFuture.anyOf(all, failed).join();
    if (!failed.isDone()) {
      return 0;
    }
    try {
      all.get(GRACE_SECONDS, TimeUnit.SECONDS);
    } catch (InterruptedException e) {
      Thread.currentThread().interrupt();
    } catch (ExecutionException | TimeoutException e) {
      started.forEach(Process::destroyForcibly);
    }
    return failed.join();
  }

  private static void report(Process ended, CompletableFuture<Integer> failed) {
    if (ended.exitValue() != 0) {
      failed.complete(ended.exitValue());
    }
  }

  /** SIGTERM to all that still run; their checkpoint is awaited. */
  private void stop() {
    List<Process> all;
    synchronized (this) {
      all = List.copyOf(started);
    }
    all.forEach(Launcher::terminate);
    try {
      for (var process : all) {
        if (!process.waitFor(STOP_SECONDS, TimeUnit.SECONDS)) {
          process.destroyForcibly();
        }
      }
    } catch (InterruptedException e) {
      Thread.currentThread().interrupt();
    }
  }

  /** Those that mpirun has started, if it is one. */
  private static void terminate(Process process) {
    var java = ProcessHandle.current().info().command();
    var ours =
        process
            .descendants()
            .filter(each -> java.isPresent() && each.info().command().equals(java))
            .toList();
    if (ours.isEmpty()) {
      process.destroy();
    }
    ours.forEach(ProcessHandle::destroy);
  }

  private static int freePort() {
    try (var socket = new ServerSocket(0)) {
      return socket.getLocalPort();
    } catch (IOException e) {
      throw new UserException("no port is free: " + e.getMessage(), e);
    }
  }

  private static List<String> mpirun(int processes, List<String> own) {
    var program =
        find("mpirun")
            .orElseThrow(
                () ->
                    new UserException(
                        "several processes on the CPU are started by mpirun, and there is none:"
                            + " install Open MPI or MPICH (Debian: apt-get install openmpi-bin)"));
    var command = new ArrayList<String>();
    // away from the terminal's Ctrl-C, after which mpirun leaves a second for the checkpoint
    find("setsid").map(Path::toString).ifPresent(command::add);
    command.add(program.toString());
    if (version(program).contains("Open MPI")) {
      command.addAll(List.of("--oversubscribe", "--bind-to", "none"));
      if ("root".equals(System.getProperty("user.name"))) {
        command.add("--allow-run-as-root");
      }
    }
    command.addAll(List.of("-n", String.valueOf(processes)));
    command.addAll(own);
    return command;
  }

  private static Optional<Path> find(String program) {
    return Arrays.stream(System.getenv().getOrDefault("PATH", "").split(File.pathSeparator))
        .map(folder -> Path.of(folder, program))
        .filter(Files::isExecutable)
        .findFirst();
  }

  private static String version(Path mpirun) {
    try {
      var process =
          new ProcessBuilder(mpirun.toString(), "--version").redirectErrorStream(true).start();
      return new String(process.getInputStream().readAllBytes(), StandardCharsets.UTF_8);
    } catch (IOException e) {
      return "";
    }
  }

  /** This process's command line, the options of Java with it. */
  private static List<String> commandLine() {
    try {
      var text = Files.readString(Path.of("/proc/self/cmdline"));
      return List.of(text.substring(0, text.length() - 1).split("\0", -1));
    } catch (IOException e) {
      throw new UserException(
          OPTION + " cannot find out how this process was started; use torchrun or mpirun", e);
    }
  }

  /** All but {@code --processes N}: the processes are told by the environment. */
  static List<String> withoutOption(List<String> command) {
    var result = new ArrayList<String>();
    for (int i = 0; i < command.size(); i++) {
      if (command.get(i).equals(OPTION)) {
        i++;
      } else if (!command.get(i).startsWith(OPTION + "=")) {
        result.add(command.get(i));
      }
    }
    return result;
  }
}
