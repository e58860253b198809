package org.meteora.cli;

import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDManager;
import java.util.Collections;
import java.util.List;
import java.util.concurrent.Callable;
import org.meteora.data.config.DeviceOptions;
import org.meteora.data.config.Limits;
import org.meteora.data.config.ProcessOptions;
import org.meteora.parallel.Collective;
import org.meteora.tensor.Devices;
import org.meteora.tensor.Dtype;
import org.meteora.tensor.Ops;
import picocli.CommandLine.Command;
import picocli.CommandLine.Mixin;
import picocli.CommandLine.Option;

/** {@code meteora bench collective}: how fast tensors pass between processes. */
@Command(
    name = "collective",
    description =
        "Sums, reduce-scatters and gathers of float32 between processes. GB/s are those over every"
            + " process's link: 2 (n − 1) / n of the bytes for a sum, (n − 1) / n for the others.",
    footer = {
      "",
      "Examples:",
      "  meteora bench collective --processes 2 --mib 1 --mib 64 --mib 1024",
      "  srun meteora bench collective --device cuda"
    })
final class BenchCollectiveCommand implements Callable<Integer> {
  @Mixin private ProcessOptions processes;
  @Mixin private DeviceOptions where;

  @Option(
      names = "--mib",
      defaultValue = "64",
      paramLabel = "N",
      description = "MiB of the buffer; several times for several (default: ${DEFAULT-VALUE}).")
  private List<Integer> mebibytes;

  @Mixin private RepeatOption repeat;

  @Override
  public Integer call() {
    Limits.atLeast(1, "--mib", Collections.min(mebibytes));
    return processes.run(
        where.device().orElse("auto"),
        List.of("--mib " + mebibytes, "--repeat " + repeat.value()),
        (all, device) -> {
          try (var manager = Devices.newManager(Devices.parse(device))) {
            mebibytes.forEach(size -> measure(all, manager, size));
          }
          return 0;
        });
  }

  private void measure(Collective all, NDManager manager, int mebibytes) {
    int n = all.size();
    long part = ((long) mebibytes << 18) / n;
    try (var scope = manager.newSubManager()) {
      var whole = Ops.zeros(scope, Dtype.F32, part * n);
      var own = Ops.narrow(whole, 0, part * all.rank(), part);
      double bytes = (double) part * n * Float.BYTES;
      double share = (n - 1.0) / n;
      report(mebibytes, "sum", whole, () -> all.sum(whole), 2 * share * bytes);
      Runnable reduceScatter = () -> all.reduceScatter(whole, own);
      report(mebibytes, "reduce-scatter", whole, reduceScatter, share * bytes);
      report(mebibytes, "all-gather", whole, () -> all.allGather(own, whole), share * bytes);
    }
  }

  private void report(int mebibytes, String what, NDArray buffer, Runnable run, double bytes) {
    double ms = BenchModel.medianOfAll(repeat.value(), buffer, run);
    System.out.printf(
        "%6d MiB  %-16s %10.3f ms   %8.2f GB/s%n", mebibytes, what, ms, bytes / ms / 1e6);
  }
}
