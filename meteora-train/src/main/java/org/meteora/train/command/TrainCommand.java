package org.meteora.train.command;

import static org.meteora.train.command.TrainingOptions.put;

import java.nio.file.Path;
import java.util.concurrent.Callable;
import org.meteora.UserException;
import org.meteora.data.config.ConfigOptions;
import org.meteora.data.config.ProcessOptions;
import org.meteora.data.config.RoutingTopKOption;
import org.meteora.train.MeteoraTraining;
import org.meteora.train.TrainConfig;
import picocli.CommandLine.Command;
import picocli.CommandLine.Mixin;
import picocli.CommandLine.Option;

/** {@code meteora train}. */
@Command(
    name = "train",
    mixinStandardHelpOptions = true,
    description =
        "Embeds the adapters of adapter_dir into the base model and trains the gates that choose"
            + " among them, on the tasks of the same names in target_dir.",
    footerHeading = "%nExamples:%n",
    footer = {
      "  meteora train --config config.yaml --output-dir runs/28-tasks",
      "  meteora train --tasks alpaca,gsm8k --train gates --max-steps 2000",
      "  meteora train --config config.yaml --output-dir runs/28-tasks --resume",
      "  meteora train --config config.yaml --processes 4",
      "  torchrun --no-python --nproc-per-node 4 meteora train --config config.yaml"
    })
public final class TrainCommand implements Callable<Integer> {
  @Mixin private ConfigOptions config;
  @Mixin private TrainingOptions training;
  @Mixin private RoutingTopKOption topK;
  @Mixin private ProcessOptions processes;

  @Option(
      names = "--output-dir",
      paramLabel = "DIR",
      defaultValue = "runs/meteora",
      description = "gets checkpoints, metrics, curves and meteora/ (default: ${DEFAULT-VALUE})")
  private Path outputDir;

  @Option(
      names = "--tasks",
      paramLabel = "A,B,…",
      description = "adapters in the order of their indices (default: all, sorted, alpaca last)")
  private String tasks;

  @Option(
      names = "--recipe",
      paramLabel = "NAME",
      description =
          "default: keeps what the adapters know; paper: the original's settings. Single options"
              + " override it (default: default)")
  private String recipe;

  @Option(
      names = "--adapter-learning-rate",
      paramLabel = "X",
      description =
          "peak rate of the adapters (with --train all; default: 1e-4; paper: as the gates)")
  private Double adapterLearningRate;

  @Option(
      names = "--adapter-max-grad-norm",
      paramLabel = "X",
      description =
          "clip the adapters' gradient by its own norm; 0: never (default: 1; paper: one norm over"
              + " gates and adapters)")
  private Double adapterMaxGradNorm;

  @Option(
      names = "--keep",
      paramLabel = "WHICH",
      description =
          "the result: best, the evaluation with the lowest answer loss, or last (default: best;"
              + " paper: last)")
  private String keep;

  @Option(
      names = "--train",
      paramLabel = "WHAT",
      description = "gates: the gates alone; all: gates and adapters (default: gates; paper: all)")
  private String train;

  @Option(
      names = "--gate-loss-weight",
      paramLabel = "X",
      description = "factor of the gates' loss (default: 10; paper: 50)")
  private Double gateLossWeight;

  @Option(
      names = "--with-base",
      description = "write the base weights too, as published checkpoints have them")
  private boolean withBase;

  @Override
  public Integer call() {
    var loaded = config.load();
    var options = training.given();
    put(options, "tasks", tasks);
    put(options, "recipe", recipe);
    put(options, "train", train);
    put(options, "adapter_learning_rate", adapterLearningRate);
    put(options, "adapter_max_grad_norm", adapterMaxGradNorm);
    put(options, "keep", keep);
    put(options, "gate_loss_weight", gateLossWeight);
    put(options, "routing_top_k", topK.value().orElse(null));
    var settings = TrainConfig.meteora(loaded.train(), options);
    var adapterDir =
        loaded
            .adapterDir()
            .orElseThrow(
                () ->
                    new UserException(
                        "no folder of adapters: set adapter_dir in config.yaml, or --adapter-dir"));
    var base = loaded.requireBaseModelPath();
    // open until the processes have parted: one that ends before leaves the others waiting
    try (var stop = new StopSignal()) {
      return processes.run(
          settings.device().orElse("auto"),
          training.lines(settings),
          (all, device) -> {
            put(options, "device", device);
            var sharers = training.shardBase.sharers(all);
            stop.listen();
            new MeteoraTraining(
                    TrainConfig.meteora(loaded.train(), options),
                    base,
                    adapterDir,
                    loaded.targetDir(),
                    outputDir,
                    withBase,
                    training.resume,
                    training.flags.over(loaded))
                .run(all, sharers, stop)
                .ifPresent(System.out::println);
            return 0;
          });
    }
  }
}
