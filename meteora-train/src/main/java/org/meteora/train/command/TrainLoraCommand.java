package org.meteora.train.command;

import static org.meteora.train.command.TrainingOptions.put;

import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.concurrent.Callable;
import java.util.function.BiFunction;
import java.util.function.Function;
import org.meteora.UserException;
import org.meteora.data.Sample;
import org.meteora.data.config.ConfigOptions;
import org.meteora.data.config.ProcessOptions;
import org.meteora.io.FolderNames;
import org.meteora.io.Folders;
import org.meteora.parallel.Collective;
import org.meteora.tensor.Devices;
import org.meteora.train.LoraTraining;
import org.meteora.train.PhatgooseTraining;
import org.meteora.train.TrainConfig;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;
import picocli.CommandLine.Command;
import picocli.CommandLine.Mixin;
import picocli.CommandLine.Option;

@Command(
    name = "train-lora",
    customSynopsis = "(--task NAME,… | --data FILE)",
    mixinStandardHelpOptions = true,
    description = "Trains LoRA adapters and writes each as a folder that PEFT loads.",
    footerHeading = "%nExamples:%n",
    footer = {
      "  meteora train-lora --task strategyqa --adapter-dir adapters",
      "  meteora train-lora --task gsm8k,disfl_qa --r 16 --alpha 32 --epochs 2",
      "  meteora train-lora --task all --processes 8",
      "  meteora train-lora --task all --mixed --balanced 1000 --name lora_b",
      "  meteora train-lora --task all --phatgoose",
      "  meteora train-lora --data my.jsonl --name mine --target-modules q_proj,v_proj"
    })
public final class TrainLoraCommand implements Callable<Integer> {
  private static final Logger LOG = LoggerFactory.getLogger(TrainLoraCommand.class);

  @Mixin private ConfigOptions config;
  @Mixin private TrainingOptions training;
  @Mixin private ProcessOptions processes;

  @Option(
      names = {"--task", "--tasks"},
      split = ",",
      paramLabel = "all|A,B,…",
      description = "tasks of target_dir, each trained on its train.jsonl")
  private List<String> tasks;

  @Option(
      names = "--data",
      paramLabel = "FILE",
      description = "JSONL to train on, instead of tasks")
  private Path data;

  @Option(
      names = "--name",
      paramLabel = "NAME",
      description =
          "the adapter's name, with --data (default: the file's) or --mixed (default: lora_f;"
              + " with --balanced: lora_b)")
  private String name;

  @Option(
      names = "--mixed",
      description =
          "one adapter over all the tasks together, the paper's LoRA-F, instead of one each")
  private boolean mixed;

  @Option(
      names = "--balanced",
      paramLabel = "N",
      description = "with --mixed: N samples of each task, the paper's LoRA-B")
  private Integer balanced;

  @Option(
      names = "--output-dir",
      paramLabel = "DIR",
      description = "gets a folder for each adapter (default: adapter_dir, else adapters)")
  private Path outputDir;

  @Option(names = "--r", paramLabel = "N", description = "rank (default: 8)")
  private Integer rank;

  @Option(names = "--alpha", paramLabel = "X", description = "scale is alpha / r (default: 16)")
  private Double alpha;

  @Option(
      names = "--target-modules",
      paramLabel = "A,B,…",
      description = "projections that get an adapter (default: all seven)")
  private String targetModules;

  @Option(
      names = "--layers-to-transform",
      paramLabel = "I,J,…",
      description = "decoder layers that get an adapter, counted from 0 (default: all)")
  private String layersToTransform;

  @Option(
      names = "--use-rslora",
      arity = "0..1",
      fallbackValue = "true",
      negatable = true,
      description = "scale by alpha / sqrt(r) (default: false)")
  private Boolean useRslora;

  @Option(
      names = "--phatgoose",
      arity = "0..1",
      fallbackValue = "100",
      paramLabel = "STEPS",
      description =
          "train the adapters' vectors for --router phatgoose too, in so many steps (default:"
              + " 100); adapters that are there already stay as they are")
  private Long phatgoose;

  @Option(
      names = "--together",
      arity = "0..1",
      fallbackValue = "true",
      negatable = true,
      description =
          "train the adapters of several tasks at the same time, each sample through its own, as"
              + " many at once as memory allows; with one process (default: on a GPU; on a CPU it"
              + " is no faster)")
  private Boolean together;

  @Override
  public Integer call() {
    var loaded = config.load();
    var options = training.given(TrainConfig.LORA_KEYS);
    var settings = TrainConfig.lora(loaded.train(), options);
    var base = loaded.requireBaseModelPath();
    var target = outputDir != null ? outputDir : loaded.adapterDir().orElse(Path.of("adapters"));
    var files = files(loaded.targetDir());
    if (phatgoose != null) {
      TrainConfig.phatgoose(loaded.train(), options, phatgoose); // mistakes are said now
    }
    var lines = training.lines(settings);
    lines.add("--phatgoose " + phatgoose);
    lines.add("adapters " + String.join(",", files.keySet()));
    try (var stop = new StopSignal()) {
      return processes.run(
          settings.device().orElse("auto"),
          lines,
          (all, device) -> {
            put(options, "device", device);
            var own = TrainConfig.lora(loaded.train(), options);
            Function<String, LoraTraining> trainings =
                adapter ->
                    new LoraTraining(
                        own,
                        base,
                        adapter,
                        files.get(adapter),
                        balanced == null ? 0 : balanced,
                        target.resolve(adapter),
                        training.resume,
                        training.flags.over(loaded));
            var sharers = training.shardBase.sharers(all);
            stop.listen();
            var missing =
                files.keySet().stream()
                    .filter(name -> phatgoose == null || !isAdapter(target.resolve(name)))
                    .toList();
            all.barrier(); // nobody writes an adapter before all have looked
            boolean atOnce = together != null ? together : Devices.isGpu(device);
            if (missing.size() > 1 && all.size() == 1 && atOnce) {
              LoraTraining.together(missing.stream().map(trainings).toList(), stop)
                  .forEach(System.out::println);
            } else {
              train(
                  all,
                  sharers.size() == 1,
                  missing,
                  (adapter, collective) -> trainings.apply(adapter).run(collective, sharers, stop));
            }
            boolean stopped = all.sum(new double[] {stop.getAsBoolean() ? 1 : 0})[0] > 0;
            if (phatgoose != null && !stopped) {
              Function<String, PhatgooseTraining> vectors =
                  adapter ->
                      new PhatgooseTraining(
                          TrainConfig.phatgoose(loaded.train(), options, phatgoose),
                          base,
                          target.resolve(adapter),
                          files.get(adapter),
                          balanced == null ? 0 : balanced,
                          training.resume,
                          training.flags.over(loaded));
              train(
                  all,
                  sharers.size() == 1,
                  List.copyOf(files.keySet()),
                  (adapter, collective) -> vectors.apply(adapter).run(collective, sharers, stop));
            }
            return stop.exitCode();
          });
    }
  }

  /**
   * One adapter is trained by all processes together; of several each process takes whole ones, so
   * that nothing passes between them, unless they share the base model.
   *
   * @param apart whether processes can train by themselves
   */
  private static void train(
      Collective all,
      boolean apart,
      List<String> names,
      BiFunction<String, Collective, Optional<Path>> training) {
    boolean dealt = apart && all.size() > 1 && names.size() > 1;
    if (dealt) {
      LOG.info(
          "{} adapters are dealt to {} processes; what follows is of the first",
          names.size(),
          all.size());
    }
    var written = new ArrayList<String>();
    int step = dealt ? all.size() : 1;
    for (int i = dealt ? all.rank() : 0; i < names.size(); i += step) {
      var result = training.apply(names.get(i), dealt ? Collective.single() : all);
      if (result.isEmpty()) {
        break;
      }
      written.add(result.get().toString());
      if (!dealt) {
        System.out.println(result.get());
      }
    }
    if (dealt) {
      all.gather(String.join("\n", written).getBytes(StandardCharsets.UTF_8)).stream()
          .flatMap(bytes -> new String(bytes, StandardCharsets.UTF_8).lines())
          .filter(line -> !line.isEmpty())
          .sorted()
          .forEach(System.out::println);
    }
  }

  private static boolean isAdapter(Path folder) {
    return Files.isRegularFile(folder.resolve("adapter_config.json"))
        && Files.isRegularFile(folder.resolve("adapter_model.safetensors"));
  }

  /**
   * Adapter names and what each is trained on, by task; all files are looked for before the first
   * training.
   */
  private Map<String, Map<String, Path>> files(Path datasets) {
    if ((data == null) == (tasks == null)) {
      throw new UserException("train-lora needs --task NAME or --data FILE, and not both");
    }
    if (mixed && data != null) {
      throw new UserException("--mixed goes with --task: --data is one file already");
    }
    if (balanced != null && (!mixed || balanced < 1)) {
      throw new UserException("--balanced N goes with --mixed, and N must be at least 1");
    }
    var result = new LinkedHashMap<String, Map<String, Path>>();
    if (data != null) {
      var file = data.getFileName().toString();
      int dot = file.lastIndexOf('.');
      var adapter = name != null ? name : dot > 0 ? file.substring(0, dot) : file;
      result.put(adapter, Map.of(adapter, data));
    } else {
      if (name != null && !mixed) {
        throw new UserException(
            "--name goes with --data or --mixed; adapters of --task have the task's name");
      }
      var byTask = new LinkedHashMap<String, Path>();
      for (var task : tasks.equals(List.of("all")) ? allTasks(datasets) : tasks) {
        FolderNames.require("the task", task);
        byTask.put(task, datasets.resolve(task).resolve("train.jsonl"));
      }
      if (mixed) {
        result.put(name != null ? name : balanced == null ? "lora_f" : "lora_b", byTask);
      } else {
        byTask.forEach((task, file) -> result.put(task, Map.of(task, file)));
      }
    }
    result.forEach(
        (adapter, files) -> {
          FolderNames.require("the adapter", adapter);
          for (var file : files.values()) {
            if (!Files.isRegularFile(file)) {
              throw new UserException(
                  "no data to train %s on: no such file %s%s",
                  adapter, file, data == null ? "; \"meteora create-dataset\" makes it" : "");
            }
            Sample.read(file); // a mistake in the last file is not to be found after hours
          }
        });
    return result;
  }

  /** Every folder with data to train on, by name. */
  private static List<String> allTasks(Path datasets) {
    var found = Folders.having(datasets, "train.jsonl");
    if (found.isEmpty()) {
      throw new UserException(
          "no tasks to train on in "
              + datasets
              + ": \"meteora create-dataset\" makes their folders, with a train.jsonl each");
    }
    return found.stream().map(folder -> folder.getFileName().toString()).toList();
  }
}
