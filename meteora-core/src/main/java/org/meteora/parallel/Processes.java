package org.meteora.parallel;

import ai.djl.Device;
import java.io.IOException;
import java.net.Inet4Address;
import java.net.InetAddress;
import java.net.NetworkInterface;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.security.SecureRandom;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HexFormat;
import java.util.List;
import java.util.Optional;
import java.util.function.Consumer;
import java.util.stream.Stream;
import org.meteora.UserException;
import org.meteora.cuda.driver.Cuda;
import org.meteora.tensor.Devices;
import org.meteora.tensor.LibTorch;

/**
 * Brings the processes of a run together: by MPI on CPUs, by NCCL on GPUs, one process a GPU. Where
 * {@code mpirun} started them MPI tells the first one's address, otherwise the environment does.
 */
public final class Processes {
  private Processes() {}

  /**
   * Joins the others; returns when all have come.
   *
   * @param device where its tensors lie
   * @param nccl {@code libnccl.so.2}, a name or a path; used on GPUs alone
   * @param settings what must be the same in all processes, such as all options and the data's
   *     checksums, one a line
   * @param onLost told on another thread when a process was lost or has failed; this one cannot go
   *     on
   * @throws UserException when MPI or NCCL is missing, the others do not come, or they have other
   *     settings
   */
  public static Collective join(
      Launch launch,
      Device device,
      String nccl,
      List<String> settings,
      Consumer<Control.Lost> onLost) {
    if (launch.size() == 1) {
      return Collective.single();
    }
    boolean byMpi = launch.address().isEmpty();
    var mpi = byMpi || !device.isGpu() ? Optional.of(Mpi.start(launch)) : Optional.<Mpi>empty();
    var control = byMpi ? meet(launch, mpi.orElseThrow(), onLost) : meet(launch, onLost);
    try {
      requireSame(control, settings);
    } catch (UserException e) {
      control.close();
      throw e;
    }
    if (!device.isGpu()) {
      return new MpiCollective(mpi.orElseThrow(), control);
    }
    var cuda = Cuda.device(device.getDeviceId());
    cuda.makeCurrent();
    var library = new Nccl(nccl);
    library.join(
        control.broadcast(launch.rank() == 0 ? library.uniqueId() : new byte[0]),
        launch.rank(),
        launch.size());
    mpi.ifPresent(Mpi::finish); // it was needed to meet; NCCL moves the tensors
    return new NcclCollective(library, cuda, control);
  }

  /**
   * The device of one of several processes: a GPU each, or the CPU.
   *
   * @param name what {@code --device} says: {@code auto}, {@code cpu} or {@code cuda}
   * @throws UserException when there are too few GPUs, or {@code name} is one of them
   */
  public static String device(Launch launch, String name) {
    if (launch.size() == 1 || name.equals("cpu")) {
      return name;
    }
    if (!name.equals("auto") && !name.equals("cuda")) {
      throw new UserException(
          "--device " + name + " is one device; several processes take cuda, a GPU each, or cpu");
    }
    int gpus = Devices.gpus();
    if (gpus == 0 && name.equals("auto")) {
      return "cpu";
    }
    // SLURM may show every process its own GPU only
    int own = launch.starter() == Launch.Starter.SLURM && gpus == 1 ? 0 : launch.localRank();
    requireGpus(own + 1, gpus);
    return "cuda:" + own;
  }

  /** Says it when there are too few GPUs on this machine. */
  static void requireGpus(int processes, int gpus) {
    if (processes > gpus) {
      throw new UserException(
          "more processes than GPUs: this machine has %s %s, and every process takes one;"
              + " --device cpu computes on the CPU",
          gpus, gpus == 1 ? "GPU" : "GPUs");
    }
  }

  /** NCCL: that of the PyTorch in use, or whatever the system has. */
  public static String nccl() {
    return LibTorch.load().cudaFolders().stream()
        .map(folder -> folder.resolve("libnccl.so.2"))
        .filter(Files::exists)
        .findFirst()
        .map(Path::toString)
        .orElse("libnccl.so.2");
  }

  private static Control meet(Launch launch, Consumer<Control.Lost> onLost) {
    if (launch.rank() > 0) {
      return Rendezvous.connect(launch, onLost);
    }
    try (var meeting = Rendezvous.listen(launch.port())) {
      return meeting.await(launch, onLost);
    }
  }

  private static Control meet(Launch launch, Mpi mpi, Consumer<Control.Lost> onLost) {
    if (launch.rank() == 0) {
      try (var meeting = Rendezvous.listen(0)) {
        var token = new byte[8];
        new SecureRandom().nextBytes(token);
        var job = HexFormat.of().formatHex(token);
        mpi.broadcast(job + " " + meeting.port() + " " + String.join(" ", addresses()));
        return meeting.await(named(launch, job), onLost);
      }
    }
    var parts = mpi.broadcast("").split(" ");
    return Rendezvous.connect(
        named(launch, parts[0]),
        Arrays.asList(parts).subList(2, parts.length),
        Integer.parseInt(parts[1]),
        1,
        onLost);
  }

  private static Launch named(Launch launch, String job) {
    return new Launch(
        launch.rank(),
        launch.size(),
        launch.localRank(),
        launch.starter(),
        launch.manager(),
        launch.address(),
        launch.port(),
        job);
  }

  /** This host's addresses, those that other hosts may reach first; they fit into MPI's message. */
  private static List<String> addresses() {
    var result = new ArrayList<String>();
    try {
      for (var network : NetworkInterface.networkInterfaces().toList()) {
        if (network.isUp() && !network.isLoopback()) {
          network
              .inetAddresses()
              .filter(Inet4Address.class::isInstance)
              .map(InetAddress::getHostAddress)
              .limit(2)
              .forEach(result::add);
        }
      }
    } catch (IOException e) {
      // the loopback address is left
    }
    return Stream.concat(result.stream().limit(10), Stream.of("127.0.0.1")).toList();
  }

  /**
   * Compares what must be the same in all processes, line by line.
   *
   * @throws UserException in all of them, naming the first difference
   */
  public static void requireSame(Exchange all, List<String> lines) {
    var mine = String.join("\n", lines);
    var theirs = all.gather(mine.getBytes(StandardCharsets.UTF_8));
    var verdict = "";
    for (int rank = 1; rank < theirs.size() && verdict.isEmpty(); rank++) {
      var other = new String(theirs.get(rank), StandardCharsets.UTF_8);
      if (!other.equals(mine)) {
        verdict = "the processes were started differently: " + difference(mine, other, rank);
      }
    }
    var shared =
        new String(all.broadcast(verdict.getBytes(StandardCharsets.UTF_8)), StandardCharsets.UTF_8);
    if (!shared.isEmpty()) {
      throw new UserException(shared);
    }
  }

  private static String difference(String mine, String other, int rank) {
    var here = mine.split("\n", -1);
    var there = other.split("\n", -1);
    for (int i = 0; i < Math.max(here.length, there.length); i++) {
      var a = i < here.length ? here[i] : "nothing";
      var b = i < there.length ? there[i] : "nothing";
      if (!a.equals(b)) {
        return "rank 0 has " + a + ", rank " + rank + " has " + b;
      }
    }
    return "rank " + rank + " differs";
  }
}
