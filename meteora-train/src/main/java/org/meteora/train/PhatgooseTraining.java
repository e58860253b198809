package org.meteora.train;

import ai.djl.ndarray.NDArray;
import java.nio.file.Path;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.function.BooleanSupplier;
import org.meteora.checkpoint.TrainableModel;
import org.meteora.io.CacheFolders;
import org.meteora.moe.Flags;
import org.meteora.parallel.Collective;
import org.meteora.router.PhatgooseFile;
import org.meteora.train.optim.FlatParameters;

/**
 * Trains an adapter's vectors for the router {@code phatgoose}, with that adapter alone and
 * everything but the vectors frozen, and writes them beside it (arXiv 2402.05859, section 3).
 *
 * @param adapter its PEFT folder; checkpoints, metrics and curves go into its {@code
 *     training/phatgoose/}
 * @param data JSONL of prompts and responses, by task: what the adapter was trained on
 * @param samplesPerTask at most so many training samples of each task; 0: all
 * @param resume go on from the last checkpoint, if there is one
 */
public record PhatgooseTraining(
    TrainConfig config,
    Path basePath,
    Path adapter,
    Map<String, Path> data,
    int samplesPerTask,
    boolean resume,
    Flags flags) {

  /**
   * Trains and writes the vectors, by processes as {@link MeteoraTraining#run} says.
   *
   * @return the file written; empty when stopped early
   * @throws org.meteora.UserException when data, adapter or model are missing, or the loss diverges
   */
  public Optional<Path> run(Collective collective, Collective sharers, BooleanSupplier stop) {
    var folder = adapter.resolve("training").resolve("phatgoose");
    var start = resume ? Run.Start.RESUME_OR_NEW : Run.Start.NEW;
    return Run.in(folder, start, collective, from -> run(folder, from, collective, sharers, stop));
  }

  private Optional<Path> run(
      Path folder,
      Optional<Path> from,
      Collective collective,
      Collective sharers,
      BooleanSupplier stop) {
    try (var model = TrainableModel.phatgoose(config.model(basePath, flags), adapter, sharers);
        var parameters =
            new FlatParameters(model.llama().manager(), model.parameters(true), collective)) {
      var name = adapter.getFileName().toString();
      var samples =
          LoraTraining.samples(
              config, data, samplesPerTask, model.tokenizer(), Run.tokenization(config, model));
      var run =
          new Run(
              config, basePath, List.of(adapter), List.of(name), folder, from, collective, stop);
      var outcome =
          run.train(
              name + ", phatgoose",
              model,
              parameters,
              new LlamaLearner(model.llama(), model.context(), config.recompute(), 0),
              samples,
              target -> PhatgooseFile.write(target, adapter, vectors(parameters)));
      var result = adapter.resolve(PhatgooseFile.NAME);
      if (outcome.isPresent() && collective.rank() == 0) {
        PhatgooseFile.write(adapter, adapter, vectors(parameters));
        var inputs = new LinkedHashMap<String, Object>();
        inputs.put("adapter", CacheFolders.shown(adapter));
        inputs.put("base_model_path", CacheFolders.shown(basePath));
        inputs.put("data", data.values().stream().map(CacheFolders::shown).toList());
        inputs.put("samples_per_task", samplesPerTask == 0 ? null : samplesPerTask);
        Run.record(folder, config.describeWithoutAdapter(), model, inputs, outcome.get());
      }
      return outcome.map(it -> result);
    }
  }

  /** By module. */
  private static Map<String, NDArray> vectors(FlatParameters parameters) {
    return parameters.values(name -> name.substring(0, name.lastIndexOf('.')));
  }
}
