package org.meteora.data.hub;

import static org.meteora.data.hub.Repository.Type.DATASET;
import static org.meteora.data.hub.Repository.Type.MODEL;

import java.util.List;
import java.util.Optional;

/**
 * What the paper uses, by short names.
 *
 * @param includes the files that are of use; empty for all
 * @param folder where they go unless the user says otherwise
 * @param baseModel the short name of the base model that these checkpoints were trained on; empty
 *     for anything else
 */
public record KnownRepository(
    String name,
    Repository.Type type,
    String id,
    List<String> includes,
    String folder,
    String baseModel) {

  private static final List<String> MODEL_FILES =
      List.of("*.json", "*.safetensors", "tokenizer.model", "LICENSE*", "USE_POLICY*");

  public static final List<KnownRepository> ALL =
      List.of(
          checkpoints("meteora-llama2-13b", "ParagonLight/MeteoRA-llama2-13b", "llama2-13b"),
          checkpoints("meteora-llama3-8b", "ParagonLight/MeteoRA-llama3-8b", "llama3-8b"),
          base("llama2-13b", "meta-llama/Llama-2-13b-hf"),
          base("llama3-8b", "meta-llama/Meta-Llama-3-8B"),
          data("meteora-dataset", "NJUDeepEngine/meteora_dataset"),
          data("bigbench", "tasksource/bigbench"),
          data("gsm8k", "openai/gsm8k", "main/*"),
          data("cnn_dailymail", "abisee/cnn_dailymail", "3.0.0/*"),
          data("news_commentary", "Helsinki-NLP/news_commentary", "de-en/*", "en-es/*", "en-it/*"),
          data("alpaca", "tatsu-lab/alpaca", "*.parquet"));

  /** The entry of a short name. */
  public static Optional<KnownRepository> find(String name) {
    return ALL.stream().filter(known -> known.name.equals(name)).findFirst();
  }

  /** The entry of a repository, if it is a known one. */
  public static Optional<KnownRepository> ofId(Repository.Type type, String id) {
    return ALL.stream()
        .filter(known -> known.type == type && known.id.equalsIgnoreCase(id))
        .findFirst();
  }

  private static KnownRepository checkpoints(String name, String id, String base) {
    return new KnownRepository(name, MODEL, id, List.of(), "ckpt/" + bare(id), base);
  }

  private static KnownRepository base(String name, String id) {
    return new KnownRepository(name, MODEL, id, MODEL_FILES, "models/" + bare(id), "");
  }

  /** The name without its owner. */
  private static String bare(String id) {
    return id.substring(id.indexOf('/') + 1);
  }

  private static KnownRepository data(String name, String id, String... includes) {
    return new KnownRepository(name, DATASET, id, List.of(includes), "sources/" + name, "");
  }
}
