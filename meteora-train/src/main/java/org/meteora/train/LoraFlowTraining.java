package org.meteora.train;

import java.nio.file.Path;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.function.BooleanSupplier;
import org.meteora.checkpoint.MeteoraCheckpoint;
import org.meteora.checkpoint.TrainableModel;
import org.meteora.io.CacheFolders;
import org.meteora.moe.Flags;
import org.meteora.parallel.Collective;
import org.meteora.router.LoraFlowFile;
import org.meteora.train.optim.FlatParameters;

/**
 * Trains the layers' gates of the router {@code lora-flow} (arXiv 2402.11455) on some samples of
 * one target task; adapters and base stay frozen.
 *
 * @param adapters their names in the order of their indices; empty: all of the folder, as MeteoRA's
 *     training orders them
 * @param data the target task's JSONL, by its name
 * @param samples training samples, drawn with the seed; 0: all
 * @param output gets checkpoints, metrics, curves, and at the end {@code lora-flow/}
 */
public record LoraFlowTraining(
    TrainConfig config,
    Path basePath,
    Path adapterDir,
    List<String> adapters,
    Map<String, Path> data,
    int samples,
    Path output,
    boolean resume,
    Flags flags) {

  /**
   * Trains and writes the gates, by processes as {@link MeteoraTraining#run} says.
   *
   * @return the folder with {@code lora_flow.safetensors}; empty when stopped early
   * @throws org.meteora.UserException when data, adapters or model are missing, or the loss
   *     diverges
   */
  public Optional<Path> run(Collective collective, Collective sharers, BooleanSupplier stop) {
    var start = resume ? Run.Start.RESUME : Run.Start.NEW;
    return Run.in(output, start, collective, from -> run(from, collective, sharers, stop));
  }

  private Optional<Path> run(
      Optional<Path> from, Collective collective, Collective sharers, BooleanSupplier stop) {
    var folders =
        MeteoraTraining.order(adapterDir, adapters).stream().map(adapterDir::resolve).toList();
    try (var model = TrainableModel.loraFlow(config.model(basePath, flags), folders, sharers);
        var parameters =
            new FlatParameters(model.llama().manager(), model.loraFlowParameters(), collective)) {
      var names = model.adapters().stream().map(MeteoraCheckpoint.Adapter::name).toList();
      var learnt =
          LoraTraining.samples(
              config, data, samples, model.tokenizer(), Run.tokenization(config, model));
      var target = String.join(",", data.keySet());
      var run = new Run(config, basePath, folders, List.of(target), output, from, collective, stop);
      var outcome =
          run.train(
              "lora-flow for " + target,
              model,
              parameters,
              new LlamaLearner(model.llama(), model.context(), config.recompute(), 0),
              learnt,
              folder -> LoraFlowFile.write(folder, parameters.values(name -> name), names));
      var result = output.resolve("lora-flow");
      if (outcome.isPresent() && collective.rank() == 0) {
        LoraFlowFile.write(result, parameters.values(name -> name), names);
        var inputs = new LinkedHashMap<String, Object>();
        inputs.put("base_model_path", CacheFolders.shown(basePath));
        inputs.put("adapter_dir", CacheFolders.shown(adapterDir));
        inputs.put("adapters", names);
        inputs.put("data", data.values().stream().map(CacheFolders::shown).toList());
        inputs.put("samples", samples == 0 ? null : samples);
        Run.record(result, config.describeWithoutAdapter(), model, inputs, outcome.get());
      }
      return outcome.map(it -> result);
    }
  }
}
