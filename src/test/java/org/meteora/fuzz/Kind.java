package org.meteora.fuzz;

import static java.nio.charset.StandardCharsets.US_ASCII;

import ai.djl.ndarray.NDManager;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardCopyOption;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.stream.Stream;
import org.meteora.checkpoint.MeteoraCheckpoint;
import org.meteora.data.Sample;
import org.meteora.data.config.HubCache;
import org.meteora.data.config.MeteoraConfig;
import org.meteora.data.hub.HubSettings;
import org.meteora.data.source.SourceLocator;
import org.meteora.data.tasks.MetricsFile;
import org.meteora.data.tasks.Tasks;
import org.meteora.eval.EvalTask;
import org.meteora.eval.compare.Comparer;
import org.meteora.eval.metric.Metric;
import org.meteora.eval.report.SavedAnswers;
import org.meteora.eval.report.SavedResult;
import org.meteora.generate.GenerationConfig;
import org.meteora.generate.Tokenizer;
import org.meteora.lora.LoraAdapter;
import org.meteora.lora.LoraConfig;
import org.meteora.model.Architecture;
import org.meteora.model.llama.LlamaConfig;
import org.meteora.moe.Flags;
import org.meteora.parallel.Launch;
import org.meteora.parallel.MeetingDoor;
import org.meteora.safetensors.SafetensorsFolder;
import org.meteora.tensor.Devices;
import org.meteora.train.Checkpoints;
import org.meteora.train.RunIdentity;
import org.meteora.train.TrainConfig;
import org.meteora.train.TrainDoor;
import org.meteora.train.optim.AdamW;
import org.meteora.train.optim.FlatParameters;

/** The files that are read: what they are made of, and what reads them. */
enum Kind {
  ADAPTER_CONFIG,
  ADAPTER,
  SAFETENSORS,
  INDEX,
  CONFIG,
  GENERATION_CONFIG,
  TOKENIZER,
  YAML,
  JSONL,
  JSON_ARRAY,
  TASK_JSON,
  PARQUET,
  CHECKPOINT,
  TRAINER,
  SAVED_RESULT,
  SAVED_ANSWERS,
  HTTP,
  JOURNAL,
  HUB_CACHE,
  ENVIRONMENT,
  TASK_FOLDER,
  TRAINING_JSON,
  TRAINING_METRICS,
  BEST_MODEL,
  PARTIAL_ANSWERS,
  PROCESSES;

  private static final String Q = "model.layers.0.self_attn.q_proj";

  /** How many of a million inputs are of this kind; what is slow or ends processes has fewer. */
  int share() {
    return switch (this) {
      case TOKENIZER -> 60_000;
      case PARQUET -> 40_000;
      case TRAINER -> 30_000;
      case HTTP -> 60_000;
      case JOURNAL,
          HUB_CACHE,
          ENVIRONMENT,
          TASK_FOLDER,
          TRAINING_JSON,
          TRAINING_METRICS,
          BEST_MODEL,
          PARTIAL_ANSWERS,
          PROCESSES ->
          20_000;
      case TASK_JSON, SAVED_RESULT, SAVED_ANSWERS, CHECKPOINT -> 50_000;
      default -> 75_000;
    };
  }

  List<byte[]> seeds(Path root) throws IOException {
    var tiny = root.resolve("configs/tiny");
    var sources = root.resolve("meteora-data/src/test/resources/org/meteora/data/source");
    return switch (this) {
      case ADAPTER_CONFIG ->
          List.of(
              Files.readAllBytes(tiny.resolve("adapters/sort_letters/adapter_config.json")),
              Seeds.FULL_ADAPTER_CONFIG);
      case ADAPTER ->
          List.of(
              Files.readAllBytes(tiny.resolve("adapters/sort_letters/adapter_model.safetensors")));
      case SAFETENSORS -> List.of(Seeds.SAFETENSORS);
      case INDEX -> List.of(Seeds.INDEX);
      case CONFIG -> List.of(Files.readAllBytes(tiny.resolve("base/config.json")), Seeds.CONFIG);
      case GENERATION_CONFIG ->
          List.of(
              Files.readAllBytes(tiny.resolve("base/generation_config.json")),
              Seeds.GENERATION_CONFIG);
      case TOKENIZER -> Seeds.tokenizers(tiny.resolve("base/tokenizer.json"));
      case YAML -> List.of(Files.readAllBytes(tiny.resolve("config.yaml")), Seeds.YAML);
      case JSONL ->
          List.of(Seeds.head(tiny.resolve("datasets/sort_letters/test.jsonl")), Seeds.SAMPLES);
      case JSON_ARRAY -> List.of(Seeds.ALPACA);
      case TASK_JSON -> List.of(Files.readAllBytes(sources.resolve("bigbench/flat/task.json")));
      case PARQUET -> {
        var result = new ArrayList<byte[]>();
        try (Stream<Path> files = Files.list(sources)) {
          for (var file : files.filter(f -> f.toString().endsWith(".parquet")).sorted().toList()) {
            result.add(Files.readAllBytes(file));
          }
        }
        yield result;
      }
      case CHECKPOINT -> List.of(Seeds.checkpoint(tiny.resolve("meteora/model.safetensors")));
      case TRAINER -> List.of(Seeds.trainer());
      case SAVED_RESULT -> List.of(Seeds.RESULT);
      case SAVED_ANSWERS -> List.of(Seeds.ANSWERS);
      case HTTP -> HttpScript.SEEDS;
      case JOURNAL -> List.of(HttpScript.journal());
      case HUB_CACHE -> List.of("0123456789abcdef0123456789abcdef01234567\n".getBytes(US_ASCII));
      case ENVIRONMENT -> Seeds.ENVIRONMENTS;
      case TASK_FOLDER -> List.of(Seeds.TASK_FOLDER);
      case TRAINING_JSON -> List.of(Seeds.TRAINING);
      case TRAINING_METRICS -> List.of(Seeds.TRAINING_METRICS);
      case BEST_MODEL -> List.of(Seeds.best());
      case PARTIAL_ANSWERS -> List.of(Seeds.ANSWERS);
      case PROCESSES -> List.of(MeetingDoor.message());
    };
  }

  byte[] mutate(Mutator mutator) {
    return switch (this) {
      case SAFETENSORS, ADAPTER, CHECKPOINT, TRAINER, BEST_MODEL -> mutator.safetensors();
      case PARQUET, YAML, JOURNAL, HUB_CACHE, ENVIRONMENT, PROCESSES -> mutator.bytes();
      case HTTP -> mutator.http();
      case JSONL, SAVED_ANSWERS, PARTIAL_ANSWERS, TRAINING_METRICS -> mutator.jsonl();
      default -> mutator.json();
    };
  }

  /** Where the input is written, in a folder of the worker's own. */
  Path file(Path folder) {
    return folder.resolve(
        switch (this) {
          case ADAPTER_CONFIG -> "adapter_config.json";
          case ADAPTER -> "adapter_model.safetensors";
          case SAFETENSORS, CHECKPOINT -> "model.safetensors";
          case INDEX -> "model.safetensors.index.json";
          case CONFIG -> "config.json";
          case GENERATION_CONFIG -> "generation_config.json";
          case TOKENIZER -> "tokenizer.json";
          case YAML -> "config.yaml";
          case JSONL -> "test.jsonl";
          case JSON_ARRAY -> "alpaca/train.json";
          case TASK_JSON -> "winowhy/task.json";
          case PARQUET -> "winowhy/train.parquet";
          case TRAINER -> "checkpoint-00000001/trainer.safetensors";
          case SAVED_RESULT -> "meteora/x.json";
          case SAVED_ANSWERS -> "meteora/x.answers.jsonl";
          case HTTP -> "replies";
          case JOURNAL -> "journal";
          case HUB_CACHE -> "models--o--n/refs/main";
          case ENVIRONMENT -> "environment";
          case TASK_FOLDER -> "mine/composite.json";
          case TRAINING_JSON -> "training.json";
          case TRAINING_METRICS -> "metrics.jsonl";
          case BEST_MODEL -> "best.safetensors";
          case PARTIAL_ANSWERS -> "meteora/winowhy.partial.answers.jsonl";
          case PROCESSES -> "message";
        });
  }

  /** Files beside it that stay as they are. */
  void prepare(Path root, Path folder) throws IOException {
    Files.createDirectories(file(folder).getParent());
    var tiny = root.resolve("configs/tiny");
    switch (this) {
      case ADAPTER ->
          Files.copy(
              tiny.resolve("adapters/sort_letters/adapter_config.json"),
              folder.resolve("adapter_config.json"));
      case HUB_CACHE -> {
        var snapshot = folder.resolve("models--o--n/snapshots/" + HttpScript.COMMIT);
        Files.writeString(Files.createDirectories(snapshot).resolve("config.json"), "{}");
      }
      case INDEX ->
          Files.write(folder.resolve("model-00001-of-00002.safetensors"), Seeds.SAFETENSORS);
      case SAVED_RESULT, SAVED_ANSWERS -> {
        for (var name : List.of("meteora", "good")) {
          Files.createDirectories(folder.resolve(name));
          Files.write(folder.resolve(name).resolve("x.answers.jsonl"), Seeds.ANSWERS);
          Files.write(folder.resolve(name).resolve("x.json"), Seeds.RESULT);
        }
      }
      default -> {}
    }
  }

  /** Reads the input as the toolkit does, and uses what it says. */
  void read(Path root, Path folder, State state) throws IOException {
    var file = file(folder);
    switch (this) {
      case ADAPTER_CONFIG -> {
        var config = LoraConfig.read(folder);
        config.adapts(Q);
        config.rankOf(Q);
        config.scaleOf(Q, config.rank());
      }
      case ADAPTER -> {
        try (var adapter = LoraAdapter.open(folder);
            var manager = Devices.newManager(ai.djl.Device.cpu())) {
          adapter.requireFits(Q, 64, 64);
          if (adapter.rankOn(Q).isPresent()) {
            adapter.readA(manager, Q);
            adapter.readB(manager, Q);
          }
        }
      }
      case SAFETENSORS -> readAll(file);
      case INDEX -> readAll(folder);
      case CONFIG -> GenerationConfig.read(folder, LlamaConfig.read(folder));
      case GENERATION_CONFIG -> GenerationConfig.read(folder, state.config(root));
      case TOKENIZER -> {
        try (var tokenizer = Tokenizer.load(folder, Integer.MAX_VALUE)) {
          var ids =
              tokenizer.encode(
                  "Größe 😀 <s>[INST] a  b\n\t</s> 日本語 x1234 " + "ax".repeat(40) + "x".repeat(80),
                  true);
          tokenizer.decode(ids, true);
          tokenizer.decode(new int[] {0, 1, 5, 300, 1 << 20}, false);
        }
      }
      case YAML -> {
        var section = MeteoraConfig.read(file).train();
        TrainConfig.meteora(section, Map.of());
        TrainConfig.lora(section, Map.of());
      }
      case JSONL -> Sample.read(file);
      case JSON_ARRAY, TASK_JSON, PARQUET ->
          new SourceLocator(folder)
              .find(Tasks.get(this == JSON_ARRAY ? "alpaca" : "winowhy"))
              .ifPresent(
                  source -> {
                    source.train().forEach((node, where) -> {});
                    source.test().ifPresent(records -> records.forEach((node, where) -> {}));
                  });
      case CHECKPOINT ->
          MeteoraCheckpoint.open(folder, Optional.empty(), state.config(root)).close();
      case TRAINER ->
          Checkpoints.restore(
              file.getParent(),
              new RunIdentity(Map.of(), Map.of()),
              state.parameters(),
              state.optimizer());
      case HTTP -> HttpScript.download(Files.readAllBytes(file), folder);
      case JOURNAL -> HttpScript.goOn(file, folder);
      case HUB_CACHE ->
          HubCache.resolve(Path.of("o/n"), Map.of("HF_HUB_CACHE", folder.toString()), folder);
      case ENVIRONMENT -> {
        var variables = Seeds.variables(file);
        HubSettings.fromEnvironment(variables, folder);
        HubCache.resolve(Path.of("base"), variables, folder);
        Launch.of(variables);
        Launch.unusedSlurm(variables);
        Flags.fromEnvironment(variables);
      }
      case TASK_FOLDER -> {
        Files.copy(file, file.resolveSibling("metrics.json"), StandardCopyOption.REPLACE_EXISTING);
        var task = EvalTask.of("mine", folder);
        task.score(List.of("1. a"), List.of("a@@@@\nb"));
        MetricsFile.read(file.getParent()).ifPresent(keys -> keys.forEach(Metric::of));
      }
      case TRAINING_JSON -> TrainDoor.said(folder);
      case TRAINING_METRICS -> new org.meteora.train.listener.MetricsFile(file).onStart(3, 10);
      case BEST_MODEL -> TrainDoor.best(folder, state.parameters());
      case PARTIAL_ANSWERS -> {
        Files.writeString(
            file.resolveSibling("winowhy.partial.settings.json"), "{\"settings\":{},\"model\":{}}");
        try (var saved = new SavedResult(folder, "meteora", "winowhy")) {
          saved.begin(Map.of(), Map.of(), SavedResult.Existing.RESUME);
        }
      }
      case PROCESSES -> MeetingDoor.hear(Files.readAllBytes(file));
      case SAVED_RESULT, SAVED_ANSWERS -> {
        var answers = folder.resolve("meteora/x.answers.jsonl");
        SavedAnswers.read(this == SAVED_ANSWERS ? answers : file);
        SavedAnswers.task(file, "winowhy");
        Comparer.compare(
            List.of(folder.resolve("meteora/x.json").toString(), folder + "/good/x.json"),
            10,
            1,
            false);
      }
    }
  }

  private static void readAll(Path path) {
    try (var files = SafetensorsFolder.open(path);
        var manager = Devices.newManager(ai.djl.Device.cpu())) {
      for (var name : files.names()) {
        var info = files.info(name).orElseThrow();
        files.read(manager, name, info.shape().stream().mapToLong(Long::longValue).toArray());
      }
      files.metadata();
    }
  }

  /** What readers need and what is made once. */
  static final class State {
    private Architecture config;
    private NDManager manager;
    private FlatParameters parameters;
    private AdamW optimizer;

    Architecture config(Path root) {
      if (config == null) {
        config = LlamaConfig.read(root.resolve("configs/tiny/base"));
      }
      return config;
    }

    FlatParameters parameters() {
      if (parameters == null) {
        manager = Devices.newManager(ai.djl.Device.cpu());
        parameters = Seeds.parameters(manager);
        optimizer = new AdamW(parameters, 0);
      }
      return parameters;
    }

    AdamW optimizer() {
      parameters();
      return optimizer;
    }
  }
}
