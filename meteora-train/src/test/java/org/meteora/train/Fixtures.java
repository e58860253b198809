package org.meteora.train;

import com.fasterxml.jackson.databind.JsonNode;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Optional;
import org.junit.jupiter.api.Assumptions;
import org.meteora.checkpoint.TrainableModel;
import org.meteora.io.Jsonl;
import org.meteora.lora.LoraAdapter;
import org.meteora.moe.Flags;
import org.meteora.parallel.Collective;
import org.meteora.safetensors.SafetensorsFolder;
import org.meteora.tensor.Devices;
import org.meteora.tensor.Ops;
import org.meteora.train.batch.TrainingSample;

/** The reference data that a fresh clone does not have. */
final class Fixtures {
  static final Path FOLDER =
      System.getProperty("meteora.fixtures") != null
          ? Path.of(System.getProperty("meteora.fixtures"))
          : Path.of(System.getProperty("meteora.root", ".."), "../shared/fixtures").normalize();
  static final Path TINY = FOLDER.resolve("tiny-llama");

  static {
    // tiny shapes: threads would only wait for each other
    org.meteora.tensor.LibTorch.load();
    ai.djl.pytorch.jni.JniUtils.setNumThreads(1);
  }

  private Fixtures() {}

  static void require() {
    Assumptions.assumeTrue(
        Files.isDirectory(TINY), "skipped: the reference data are not here (" + TINY + ")");
  }

  static TrainableModel.Spec spec(double dropout) {
    return new TrainableModel.Spec(
        TINY.resolve("base"), Optional.of("cpu"), Optional.of("f32"), 2, dropout, 42, Flags.AUTO);
  }

  /** The MeteoRA model whose training step the reference data describe. */
  static TrainableModel meteora() {
    return meteora(spec(0));
  }

  /** Its adapters, embedded, and everything that is trained as the checkpoint has it. */
  private static TrainableModel meteora(TrainableModel.Spec spec) {
    var folders = LoraAdapter.list(TINY.resolve("adapters"));
    var model = TrainableModel.meteora(spec, folders, Collective.single());
    try (var checkpoint = SafetensorsFolder.open(TINY.resolve("meteora"));
        var host = Devices.newHostManager()) {
      model
          .parameters(false)
          .forEach(
              (name, tensor) ->
                  Ops.copy(
                      tensor,
                      checkpoint.read(
                          host,
                          "base_model.model." + name + ".weight",
                          tensor.getShape().getShape())));
    }
    return model;
  }

  /** The same in the memory of a GPU. */
  static TrainableModel meteoraOnGpu(String dtype) {
    return meteoraOnGpu(dtype, 0);
  }

  static TrainableModel meteoraOnGpu(String dtype, double dropout) {
    return meteora(
        new TrainableModel.Spec(
            TINY.resolve("base"),
            Optional.of("cuda"),
            Optional.of(dtype),
            2,
            dropout,
            42,
            Flags.AUTO));
  }

  static JsonNode expected() {
    return Jsonl.readFile(TINY.resolve("expected.json")).get("train");
  }

  static List<TrainingSample> samples(JsonNode expected) {
    var result = new ArrayList<TrainingSample>();
    for (int row = 0; row < expected.get("input_ids").size(); row++) {
      var tokens = new ArrayList<Integer>();
      for (int t = 0; t < expected.get("input_ids").get(row).size(); t++) {
        if (expected.get("attention_mask").get(row).get(t).asInt() == 1) {
          tokens.add(expected.get("input_ids").get(row).get(t).asInt());
        }
      }
      result.add(
          new TrainingSample(
              "row:" + row,
              tokens.stream().mapToInt(i -> i).toArray(),
              1,
              expected.get("task_index").get(row).asInt()));
    }
    return result;
  }
}
