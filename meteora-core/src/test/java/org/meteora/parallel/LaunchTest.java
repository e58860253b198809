package org.meteora.parallel;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import org.junit.jupiter.api.Test;
import org.meteora.UserException;

class LaunchTest {
  @Test
  void nobodyStartedSeveral() {
    assertThat(Launch.of(Map.of("PATH", "/bin"))).isEqualTo(Launch.single());
  }

  @Test
  void torchrunComesFirst() {
    var launch =
        Launch.of(
            Map.of(
                "RANK", "5",
                "WORLD_SIZE", "8",
                "LOCAL_RANK", "1",
                "MASTER_ADDR", "10.0.0.1",
                "MASTER_PORT", "29500",
                "TORCHELASTIC_RUN_ID", "run",
                "OMPI_COMM_WORLD_RANK", "0",
                "OMPI_COMM_WORLD_SIZE", "2"));
    assertThat(launch)
        .isEqualTo(
            new Launch(
                5,
                8,
                1,
                Launch.Starter.TORCHRUN,
                Launch.Manager.NONE,
                Optional.of("10.0.0.1"),
                29500,
                "run/0"));
  }

  @Test
  void mpirunOfBothKinds() {
    assertThat(
            Launch.of(
                Map.of(
                    "OMPI_COMM_WORLD_RANK", "1",
                    "OMPI_COMM_WORLD_SIZE", "4",
                    "OMPI_COMM_WORLD_LOCAL_RANK", "0",
                    "SLURM_PROCID", "1",
                    "SLURM_STEP_ID", "3")))
        .isEqualTo(
            new Launch(
                1, 4, 0, Launch.Starter.OPEN_MPI, Launch.Manager.PMIX, Optional.empty(), 0, "mpi"));
    assertThat(Launch.of(Map.of("PMI_RANK", "3", "PMI_SIZE", "4")))
        .isEqualTo(
            new Launch(
                3, 4, 3, Launch.Starter.MPICH, Launch.Manager.PMI, Optional.empty(), 0, "mpi"));
  }

  @Test
  void srunGivesTheFirstNodeAndAPortOfTheJob() {
    var environment =
        Map.of(
            "SLURM_JOB_ID", "4711",
            "SLURM_STEP_ID", "2",
            "SLURM_PROCID", "9",
            "SLURM_NTASKS", "16",
            "SLURM_LOCALID", "1",
            "SLURM_STEP_NODELIST", "gpu[007-008,12],login");
    var launch = Launch.of(environment);
    assertThat(launch.rank()).isEqualTo(9);
    assertThat(launch.size()).isEqualTo(16);
    assertThat(launch.localRank()).isEqualTo(1);
    assertThat(launch.address()).contains("gpu007");
    assertThat(launch.port()).isBetween(20_000, 39_999).isEqualTo(Launch.of(environment).port());
    assertThat(Launch.unusedSlurm(environment)).isEmpty();
    assertThat(Launch.unusedSlurm(Map.of("SLURM_JOB_ID", "1", "SLURM_NTASKS", "4")))
        .hasValueSatisfying(line -> assertThat(line).contains("4 tasks").contains("srun"));
  }

  /** What srun 22.05 was seen to set; with MPICH's mpirun in a job its own variables count. */
  @Test
  void srunSaysWhetherMpiKnowsTheProcesses() {
    var plain =
        Map.of(
            "SLURM_JOB_ID", "3",
            "SLURM_STEP_ID", "0",
            "SLURM_PROCID", "3",
            "SLURM_NTASKS", "4",
            "SLURM_LOCALID", "1",
            "SLURM_STEP_NODELIST", "n[1-2]");
    assertThat(Launch.of(plain).manager()).isEqualTo(Launch.Manager.NONE);
    assertThatThrownBy(() -> Mpi.start(Launch.of(plain)))
        .isInstanceOf(UserException.class)
        .hasMessageContaining("srun --mpi=pmi2");

    var pmi2 = new HashMap<>(plain);
    pmi2.putAll(Map.of("PMI_RANK", "3", "PMI_SIZE", "4"));
    var launch = Launch.of(pmi2);
    assertThat(launch.starter()).isEqualTo(Launch.Starter.SLURM);
    assertThat(launch.manager()).isEqualTo(Launch.Manager.PMI);
    assertThat(launch.localRank()).isEqualTo(1); // the GPU on its node
    assertThat(launch.address()).contains("n1"); // so that GPUs need no MPI

    var pmix = new HashMap<>(plain);
    pmix.put("PMIX_RANK", "3");
    assertThat(Launch.of(pmix).manager()).isEqualTo(Launch.Manager.PMIX);

    var mpirun = new HashMap<>(plain);
    mpirun.putAll(
        Map.of(
            "SLURM_PROCID", "1",
            "SLURM_STEP_NUM_TASKS", "2",
            "PMI_RANK", "3",
            "PMI_SIZE", "4",
            "MPI_LOCALRANKID", "1"));
    assertThat(Launch.of(mpirun))
        .isEqualTo(
            new Launch(
                3, 4, 1, Launch.Starter.MPICH, Launch.Manager.PMI, Optional.empty(), 0, "mpi"));
  }

  @Test
  void torchrunsProcessesOnTheCpuAreToldWhatToType() {
    var launch =
        Launch.of(
            Map.of(
                "RANK", "0",
                "WORLD_SIZE", "2",
                "LOCAL_RANK", "0",
                "MASTER_ADDR", "127.0.0.1",
                "MASTER_PORT", "29500"));
    assertThatThrownBy(() -> Mpi.start(launch))
        .isInstanceOf(UserException.class)
        .hasMessageContaining("mpirun -n 2 meteora")
        .hasMessageContaining("--processes 2");
  }

  @Test
  void slurmsShortForms() {
    assertThat(Launch.nodes("a[01-03,7],b,c[1-2]-ib"))
        .isEqualTo(List.of("a01", "a02", "a03", "a7", "b", "c1-ib", "c2-ib"));
    assertThat(Launch.nodes("single")).containsExactly("single");
    assertThat(Launch.nodes("r[1-2]n[08-09]")).containsExactly("r1n08", "r1n09", "r2n08", "r2n09");
  }

  @Test
  void oneProcessIsNoGroup() {
    assertThat(Launch.of(Map.of("RANK", "0", "WORLD_SIZE", "1"))).isEqualTo(Launch.single());
    assertThat(Launch.of(Map.of("OMPI_COMM_WORLD_RANK", "0", "OMPI_COMM_WORLD_SIZE", "1")))
        .isEqualTo(Launch.single());
  }

  @Test
  void wrongNumbersAreNamed() {
    assertThatThrownBy(() -> Launch.of(Map.of("RANK", "4", "WORLD_SIZE", "4")))
        .isInstanceOf(UserException.class)
        .hasMessage("the environment variable RANK is '4'; a number from 0 to 3 is needed");
    assertThatThrownBy(() -> Launch.of(Map.of("RANK", "x", "WORLD_SIZE", "4")))
        .isInstanceOf(UserException.class)
        .hasMessageContaining("RANK is 'x'");
    assertThatThrownBy(() -> Launch.of(Map.of("RANK", "0", "WORLD_SIZE", "4")))
        .isInstanceOf(UserException.class)
        .hasMessageContaining("MASTER_ADDR");
    assertThatThrownBy(() -> Launch.of(Map.of("PMI_RANK", "0")))
        .isInstanceOf(UserException.class)
        .hasMessageContaining("PMI_SIZE is not set");
  }
}
