package org.meteora.data.config;

import java.io.FileDescriptor;
import java.io.FileOutputStream;
import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
import java.util.List;
import java.util.concurrent.atomic.AtomicBoolean;
import java.util.concurrent.locks.LockSupport;
import org.meteora.UserException;
import org.meteora.io.Printable;
import org.meteora.parallel.Collective;
import org.meteora.parallel.Control;
import org.meteora.parallel.Launch;
import org.meteora.parallel.Launcher;
import org.meteora.parallel.Processes;
import org.meteora.tensor.Devices;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;
import picocli.CommandLine.Option;

/**
 * For commands whose work several processes share: joins those that torchrun, mpirun or srun have
 * started, or starts them.
 *
 * <p>Only the first process prints. A process that fails tells all others before it ends, and the
 * first one says it; a process that is lost ends all.
 */
public final class ProcessOptions {
  private static final Logger LOG = LoggerFactory.getLogger(ProcessOptions.class);

  @Option(
      names = "--processes",
      paramLabel = "N",
      description =
          "N processes on this machine share the work, one a GPU, or by MPI on the CPU. torchrun,"
              + " mpirun and srun start them as well, without this option (default: 1).")
  private Integer processes;

  private static final long OWN_FAILURE_NANOS = 1_000_000_000;

  /** Whether somebody has said why this run ends. */
  private final AtomicBoolean ending = new AtomicBoolean();

  /** Whether another process has failed, or is lost, and that is about to end this one. */
  private volatile boolean othersFailed;

  /** A command's work in one of the processes. */
  @FunctionalInterface
  public interface Work {
    /**
     * Does it.
     *
     * @return the exit code
     */
    int run(Collective all, String device);
  }

  /**
   * Does a command's work together with the other processes, if there are any.
   *
   * @param device what {@code --device} says
   * @param settings what must be the same in all processes, one a line
   * @throws UserException when they cannot be started or do not come together
   */
  public int run(String device, List<String> settings, Work work) {
    var launch = Launch.of(System.getenv());
    Launch.unusedSlurm(System.getenv()).ifPresent(LOG::warn);
    Limits.atLeast(1, "--processes", processes);
    if (processes != null && launch.size() > 1) {
      throw new UserException(
          "--processes starts processes itself, and this is one of %s already: leave it out",
          launch.size());
    }
    if (processes != null && processes > 1) {
      if (device.startsWith("cuda")) {
        Devices.parse(device); // says what is missing
      }
      return Launcher.run(processes, device.equals("cpu") ? 0 : Devices.gpus());
    }
    return launch.size() == 1
        ? work.run(Collective.single(), device)
        : together(launch, Processes.device(launch, device), settings, work);
  }

  private int together(Launch launch, String device, List<String> settings, Work work) {
    var all =
        Processes.join(
            launch,
            Devices.parse(device),
            device.equals("cpu") ? "" : Processes.nccl(),
            settings,
            lost -> lost(launch.rank(), lost));
    int code;
    try {
      code = work.run(all, device);
      if (othersFailed) {
        awaitEnd();
      }
    } catch (Throwable e) {
      if (!ending.compareAndSet(false, true)) {
        awaitEnd();
      }
      all.messages().fail(e instanceof UserException ? e.getMessage() : String.valueOf(e));
      if (launch.rank() > 0) {
        if (System.getenv("METEORA_DEBUG") != null) {
          e.printStackTrace(error());
        }
        Runtime.getRuntime().halt(e instanceof UserException ? 2 : 1);
      }
      throw e;
    }
    all.close();
    return code;
  }

  /** Another process has failed or is lost: whatever this one does cannot end well. */
  private void lost(int rank, Control.Lost lost) {
    othersFailed = true;
    if (lost.rank() < 0) {
      // what another one fails at this one may find itself, and then ends with the code for it
      LockSupport.parkNanos(OWN_FAILURE_NANOS);
    }
    if (ending.compareAndSet(false, true)) {
      // one that the others have given up comes late: they have said so
      if (lost.rank() != rank && (rank == 0 || lost.rank() == 0 && rank == 1)) {
        error().println(Printable.line(lost.message()));
      }
      // without the hooks: they would wait for work that waits for the lost process
      Runtime.getRuntime().halt(1);
    }
  }

  /** Standard error as it was: that of all but the first process is shut. */
  private static PrintStream error() {
    return new PrintStream(new FileOutputStream(FileDescriptor.err), true, StandardCharsets.UTF_8);
  }

  /** Another thread has said why this process ends, and ends it. */
  private static void awaitEnd() {
    try {
      Thread.sleep(Long.MAX_VALUE);
    } catch (InterruptedException e) {
      Thread.currentThread().interrupt();
    }
  }
}
