package org.meteora.train.command;

import static org.meteora.train.command.TrainingOptions.put;

import java.nio.file.Path;
import java.util.List;
import java.util.Map;
import java.util.concurrent.Callable;
import java.util.function.Supplier;
import org.meteora.UserException;
import org.meteora.data.config.ConfigOptions;
import org.meteora.data.config.Limits;
import org.meteora.data.config.ProcessOptions;
import org.meteora.data.config.RoutingTopKOption;
import org.meteora.io.FolderNames;
import org.meteora.router.LoraFlow;
import org.meteora.router.Routers;
import org.meteora.train.LoraFlowTraining;
import org.meteora.train.MeteoraTraining;
import org.meteora.train.TrainConfig;
import picocli.CommandLine.Command;
import picocli.CommandLine.Mixin;
import picocli.CommandLine.Option;

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
      "  meteora train --router lora-flow --task strategyqa --output-dir runs/flow",
      "  meteora train --config config.yaml --processes 4",
      "  torchrun --no-python --nproc-per-node 4 meteora train --config config.yaml"
    })
public final class TrainCommand implements Callable<Integer> {
  private static final int DEFAULT_SAMPLES = 200;

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
          "peak rate of the adapters (default: 2e-3 in the second part of --train auto, 1e-4 with"
              + " --train all; paper: as the gates)")
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
      description =
          "gates: the gates alone; all: gates and adapters; auto: the gates, and where the answers'"
              + " loss then is more than 10%% above that of the tasks' own adapters, as many"
              + " steps of both on the answers (default: auto; paper: all)")
  private String train;

  @Option(
      names = "--gate-loss-weight",
      paramLabel = "X",
      description = "factor of the gates' loss (default: 10; paper: 50)")
  private Double gateLossWeight;

  @Option(
      names = "--router",
      paramLabel = "NAME",
      defaultValue = "gate",
      description =
          "gate: MeteoRA's gates; lora-flow: weights for each layer, learnt on --task alone, for"
              + " eval --router lora-flow (default: gate)")
  private String router;

  @Option(
      names = "--task",
      paramLabel = "NAME",
      description = "with --router lora-flow: the task of target_dir that it is for")
  private String task;

  @Option(
      names = "--samples",
      paramLabel = "N",
      description = "with --router lora-flow: training samples of the task (default: 200)")
  private Integer samples;

  @Option(
      names = "--with-base",
      description = "write the base weights too, as published checkpoints have them")
  private boolean withBase;

  private void checkRouter(boolean flow) {
    if (!flow && !router.equals(Routers.GATE)) {
      throw new UserException(
          "train --router trains gate or lora-flow, not "
              + router
              + "; \"meteora train-lora --phatgoose\" trains phatgoose's vectors");
    }
    if (!flow && (task != null || samples != null)) {
      throw new UserException(
          "--task and --samples go with --router lora-flow; gates are trained over --tasks");
    }
    if (flow) {
      if (task == null) {
        throw new UserException("--router lora-flow needs --task NAME: the task that it is for");
      }
      if (withBase) {
        throw new UserException(
            "--router lora-flow writes no model that --with-base could complete: leave it out");
      }
      Limits.atLeast(1, "--samples", samples);
      if (task.contains(",")) {
        throw new UserException(
            "--router lora-flow learns one task, and --task names several: " + task);
      }
      FolderNames.require("the task", task);
    }
  }

  @Override
  public Integer call() {
    var loaded = config.load();
    topK.value(); // is checked
    var options = training.given(TrainConfig.METEORA_KEYS);
    boolean flow = router.equals(LoraFlow.NAME);
    checkRouter(flow);
    if (flow) {
      options.remove("tasks");
    }
    Supplier<TrainConfig> read = // once more, when the process knows its device
        () ->
            flow
                ? TrainConfig.loraFlow(loaded.train(), options)
                : TrainConfig.meteora(loaded.train(), options);
    var settings = read.get();
    var adapterDir =
        loaded
            .adapterDir()
            .orElseThrow(
                () ->
                    new UserException(
                        "no folder of adapters: set adapter_dir in config.yaml (meteora init writes"
                            + " one), or --adapter-dir; meteora train-lora makes adapters"));
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
            var made =
                flow
                    ? new LoraFlowTraining(
                            read.get(),
                            base,
                            adapterDir,
                            tasks == null ? List.of() : List.of(tasks.split(",")),
                            Map.of(task, loaded.targetDir().resolve(task).resolve("train.jsonl")),
                            samples == null ? DEFAULT_SAMPLES : samples,
                            outputDir,
                            training.resume,
                            training.flags.over(loaded))
                        .run(all, sharers, stop)
                    : new MeteoraTraining(
                            read.get(),
                            base,
                            adapterDir,
                            loaded.targetDir(),
                            outputDir,
                            withBase,
                            training.resume,
                            training.flags.over(loaded))
                        .run(all, sharers, stop);
            made.ifPresent(System.out::println);
            return stop.exitCode();
          });
    }
  }
}
