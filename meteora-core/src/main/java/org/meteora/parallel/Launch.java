package org.meteora.parallel;

import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.Optional;
import java.util.regex.Pattern;
import org.meteora.UserException;

/**
 * Which process this is among how many, as whoever started it says in the environment.
 *
 * @param rank this process's number, from 0
 * @param size how many processes there are
 * @param localRank its number among the processes of this machine, from 0: the GPU it takes
 * @param manager from whom an MPI library learns of the processes
 * @param address where the first process can be reached; empty when MPI tells it
 * @param port from which the first process looks for a free port; 0 when MPI tells it
 * @param job tells this job's processes from those of another
 */
public record Launch(
    int rank,
    int size,
    int localRank,
    Starter starter,
    Manager manager,
    Optional<String> address,
    int port,
    String job) {
  public enum Starter {
    /** Nobody: one process. */
    NONE,
    /** {@code torchrun}, or whatever sets its variables. */
    TORCHRUN,
    /** {@code mpirun} of Open MPI. */
    OPEN_MPI,
    /** {@code mpirun} of MPICH and its relatives. */
    MPICH,
    /** {@code srun}. */
    SLURM
  }

  /** The protocol by which an MPI library learns of the processes. */
  public enum Manager {
    /** None: to MPI every process is the only one. */
    NONE,
    /** PMI-1 or PMI-2, which MPICH speaks: its {@code mpirun}, {@code srun --mpi=pmi2}. */
    PMI,
    /** PMIx, which Open MPI speaks: its {@code mpirun}, {@code srun --mpi=pmix}. */
    PMIX
  }

  private static final Pattern NUMBER = Pattern.compile("\\d{1,9}");
  private static final int FIRST_PORT = 20_000;
  private static final int PORTS = 20_000;

  public static Launch single() {
    return new Launch(0, 1, 0, Starter.NONE, Manager.NONE, Optional.empty(), 0, "");
  }

  /**
   * Reads, in this order, {@code RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT}
   * (torchrun), {@code OMPI_COMM_WORLD_*} (Open MPI), {@code PMI_*} (MPICH) and {@code SLURM_*}
   * (srun; the first process is on the first node, its port follows from the job's number). {@code
   * srun --mpi=pmi2} sets {@code PMI_*} too, often by a site's default: on GPUs no MPI need be
   * there then, so that those of SLURM count.
   *
   * @throws UserException when a variable is missing, is no number, or does not fit the others
   */
  public static Launch of(Map<String, String> environment) {
    if (environment.containsKey("RANK") && environment.containsKey("WORLD_SIZE")) {
      return torchrun(environment);
    }
    if (environment.containsKey("OMPI_COMM_WORLD_RANK")) {
      var names = "OMPI_COMM_WORLD_";
      return mpi(environment, Starter.OPEN_MPI, Manager.PMIX, names, names + "LOCAL_RANK");
    }
    boolean slurm =
        environment.containsKey("SLURM_STEP_ID") && environment.containsKey("SLURM_PROCID");
    if (environment.containsKey("PMI_RANK") && !(slurm && srunSetsPmi(environment))) {
      return mpi(environment, Starter.MPICH, Manager.PMI, "PMI_", "MPI_LOCALRANKID");
    }
    return slurm ? slurm(environment) : single();
  }

  /** Not so where srun has started what MPICH's mpirun puts on each node. */
  private static boolean srunSetsPmi(Map<String, String> environment) {
    return Objects.equals(environment.get("PMI_SIZE"), environment.get(slurmSize(environment)))
        && Objects.equals(environment.get("PMI_RANK"), environment.get("SLURM_PROCID"));
  }

  private static String slurmSize(Map<String, String> environment) {
    return environment.containsKey("SLURM_STEP_NUM_TASKS")
        ? "SLURM_STEP_NUM_TASKS"
        : "SLURM_NTASKS";
  }

  /**
   * A line for those who are inside a SLURM allocation of several tasks and did not use {@code
   * srun}.
   */
  public static Optional<String> unusedSlurm(Map<String, String> environment) {
    var tasks = environment.getOrDefault("SLURM_NTASKS", "1");
    boolean several = NUMBER.matcher(tasks).matches() && Integer.parseInt(tasks) > 1;
    return environment.containsKey("SLURM_JOB_ID") && several && of(environment).size() == 1
        ? Optional.of(
            "this SLURM job has "
                + tasks
                + " tasks and this is one process for itself: start it with srun")
        : Optional.empty();
  }

  private static Launch torchrun(Map<String, String> environment) {
    int size = number(environment, "WORLD_SIZE", 1, Integer.MAX_VALUE);
    int rank = number(environment, "RANK", 0, size - 1);
    int local = optional(environment, "LOCAL_RANK", rank);
    if (size == 1) {
      return single();
    }
    if (!environment.containsKey("MASTER_ADDR")) {
      throw new UserException(
          "RANK and WORLD_SIZE are set, MASTER_ADDR is not: the address of the first process is"
              + " needed (torchrun sets it)");
    }
    return new Launch(
        rank,
        size,
        local,
        Starter.TORCHRUN,
        Manager.NONE,
        Optional.of(environment.get("MASTER_ADDR")),
        number(environment, "MASTER_PORT", 1, 65_535),
        environment.getOrDefault("TORCHELASTIC_RUN_ID", "")
            + "/"
            + environment.getOrDefault("TORCHELASTIC_RESTART_COUNT", "0"));
  }

  private static Launch mpi(
      Map<String, String> environment,
      Starter starter,
      Manager manager,
      String names,
      String localName) {
    int size = number(environment, names + "SIZE", 1, Integer.MAX_VALUE);
    int rank = number(environment, names + "RANK", 0, size - 1);
    // without a local number the GPUs of one machine are taken in turn
    int local = optional(environment, localName, rank);
    return size == 1
        ? single()
        : new Launch(rank, size, local, starter, manager, Optional.empty(), 0, "mpi");
  }

  private static Launch slurm(Map<String, String> environment) {
    int size = number(environment, slurmSize(environment), 1, Integer.MAX_VALUE);
    int rank = number(environment, "SLURM_PROCID", 0, size - 1);
    if (size == 1) {
      return single();
    }
    var ofJob = environment.getOrDefault("SLURM_JOB_NODELIST", "");
    var nodes = nodes(environment.getOrDefault("SLURM_STEP_NODELIST", ofJob));
    if (nodes.isEmpty()) {
      throw new UserException("srun started this process, but SLURM_STEP_NODELIST names no node");
    }
    var manager =
        environment.containsKey("PMI_RANK")
            ? Manager.PMI
            : environment.containsKey("PMIX_RANK") ? Manager.PMIX : Manager.NONE;
    int job = number(environment, "SLURM_JOB_ID", 0, 999_999_999);
    int step = optional(environment, "SLURM_STEP_ID", 0);
    return new Launch(
        rank,
        size,
        optional(environment, "SLURM_LOCALID", rank),
        Starter.SLURM,
        manager,
        Optional.of(nodes.getFirst()),
        FIRST_PORT + (int) ((job * 16L + step) % PORTS),
        job + "." + step);
  }

  /** The nodes of SLURM's short form, {@code node[01-03,7],login}, in their order. */
  static List<String> nodes(String list) {
    var result = new ArrayList<String>();
    for (var item : list.split(",(?![^\\[]*\\])")) { // commas outside of brackets
      expand(item, result);
    }
    return result;
  }

  private static void expand(String item, List<String> result) {
    int open = item.indexOf('[');
    int close = item.indexOf(']', open);
    if (open < 0 || close < 0) {
      if (!item.isBlank()) {
        result.add(item);
      }
      return;
    }
    for (var range : item.substring(open + 1, close).split(",")) {
      int dash = range.indexOf('-');
      var from = dash < 0 ? range : range.substring(0, dash);
      var to = dash < 0 ? range : range.substring(dash + 1);
      if (!NUMBER.matcher(from).matches() || !NUMBER.matcher(to).matches()) {
        throw new UserException("SLURM's list of nodes is not understood: " + item);
      }
      int last = Math.min(Integer.parseInt(to), Integer.parseInt(from) + 100_000);
      for (int i = Integer.parseInt(from); i <= last; i++) {
        var digits = String.valueOf(i);
        var padded = "0".repeat(Math.max(0, from.length() - digits.length())) + digits;
        expand(item.substring(0, open) + padded + item.substring(close + 1), result);
      }
    }
  }

  private static int optional(Map<String, String> environment, String name, int otherwise) {
    return environment.containsKey(name)
        ? number(environment, name, 0, Integer.MAX_VALUE)
        : otherwise;
  }

  private static int number(Map<String, String> environment, String name, int least, int greatest) {
    var text = environment.getOrDefault(name, "");
    if (NUMBER.matcher(text).matches()) {
      int value = Integer.parseInt(text);
      if (value >= least && value <= greatest) {
        return value;
      }
    }
    throw new UserException(
        "the environment variable %s is %s; a number "
                .formatted(name, text.isEmpty() ? "not set" : "'" + text + "'")
            + (greatest == Integer.MAX_VALUE
                ? "of at least " + least
                : "from " + least + " to " + greatest)
            + " is needed");
  }
}
