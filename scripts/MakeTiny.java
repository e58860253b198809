import ai.djl.ndarray.NDArray;

import org.meteora.tensor.Devices;
import org.meteora.nn.Projection;
import org.meteora.model.Architecture;
import ai.djl.ndarray.NDManager;
import ai.djl.ndarray.types.DataType;
import com.fasterxml.jackson.databind.node.ObjectNode;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Random;
import java.util.Set;
import java.util.TreeMap;
import java.util.function.Function;
import org.meteora.checkpoint.MeteoraCheckpoint;
import org.meteora.data.Sample;
import org.meteora.data.composite.CompositeMaker;
import org.meteora.io.AtomicFiles;
import org.meteora.io.Jsonl;
import org.meteora.llama.LlamaConfig;
import org.meteora.lora.LoraConfig;
import org.meteora.safetensors.SafetensorsWriter;
import org.meteora.torch.Dtype;
import org.meteora.torch.Ops;

/**
 * Makes the tiny checkpoint in configs/tiny: a 2-layer Llama with a byte-level tokenizer, four PEFT
 * adapters, a MeteoRA checkpoint over them, and composite prompts of four small text tasks. Its
 * weights are random numbers from a fixed seed: it shows that everything runs, not that it learns.
 *
 * <p>scripts/make-tiny runs it.
 */
public final class MakeTiny {
  private static final int VOCAB = 258; // the 256 bytes, <s>, </s>
  private static final Map<String, Object> CONFIG =
      new LinkedHashMap<>(
          Map.of(
              "architectures", List.of("LlamaForCausalLM"),
              "model_type", "llama",
              "vocab_size", VOCAB,
              "hidden_size", 64,
              "intermediate_size", 160,
              "num_hidden_layers", 2,
              "num_attention_heads", 4,
              "num_key_value_heads", 2,
              "max_position_embeddings", 2048));
  private static final Random RANDOM = new Random(20240521);

  private MakeTiny() {}

  public static void main(String[] arguments) throws Exception {
    var folder = Path.of(arguments[0]);
    CONFIG.put("rms_norm_eps", 1e-5);
    CONFIG.put("rope_theta", 10000.0);
    CONFIG.put("bos_token_id", 256);
    CONFIG.put("eos_token_id", 257);
    CONFIG.put("torch_dtype", "bfloat16");
    var json = (ObjectNode) Jsonl.JSON.valueToTree(new TreeMap<>(CONFIG));
    var config = LlamaConfig.parse(json, "config.json");
    var base = folder.resolve("base");
    AtomicFiles.writeString(base.resolve("config.json"), json.toPrettyString() + "\n");
    AtomicFiles.writeString(
        base.resolve("generation_config.json"),
        "{\n  \"bos_token_id\": 256,\n  \"do_sample\": false,\n  \"eos_token_id\": 257\n}\n");
    AtomicFiles.writeString(base.resolve("tokenizer.json"), tokenizer().toPrettyString() + "\n");
    try (var manager = Devices.newManager(ai.djl.Device.cpu())) {
      manager.getEngine().setRandomSeed(1);
      var weights = new TreeMap<String, NDArray>();
      weights.put("model.embed_tokens.weight", normal(manager, 0.5, VOCAB, 64));
      weights.put("lm_head.weight", normal(manager, 0.3, VOCAB, 64));
      weights.put("model.norm.weight", ones(manager));
      for (int layer = 0; layer < 2; layer++) {
        weights.put("model.layers." + layer + ".input_layernorm.weight", ones(manager));
        weights.put("model.layers." + layer + ".post_attention_layernorm.weight", ones(manager));
        for (var module : Projection.values()) {
          weights.put(
              module.path(layer) + ".weight",
              normal(manager, 0.12, config.shape(module)));
        }
      }
      SafetensorsWriter.write(base.resolve("model.safetensors"), weights, Map.of("format", "pt"));
      adapters(manager, config, folder);
    }
    datasets(folder.resolve("datasets"));
    AtomicFiles.writeString(
        folder.resolve("config.yaml"),
        "# relative to the folder in which meteora is started: the project's root\n"
            + "base_model_path: configs/tiny/base\n"
            + "meteora_ckpt_path: configs/tiny/meteora\n"
            + "adapter_dir: configs/tiny/adapters\n"
            + "target_dir: configs/tiny/datasets\n");
  }

  private static NDArray normal(NDManager manager, double deviation, long... shape) {
    return Ops.cast(
        manager.randomNormal(0, (float) deviation, Ops.shape(shape), DataType.FLOAT32), Dtype.BF16);
  }

  private static NDArray ones(NDManager manager) {
    return Ops.cast(manager.ones(Ops.shape(64)), Dtype.BF16);
  }

  private static void adapters(NDManager manager, Architecture config, Path folder) {
    var stacked = new TreeMap<String, NDArray>();
    var described = new ArrayList<MeteoraCheckpoint.Adapter>();
    var parts = new TreeMap<String, List<NDArray>>();
    for (var name : TASKS.keySet()) {
      var target = folder.resolve("adapters").resolve(name);
      LoraConfig.of(4, 8, 0.1, new java.util.HashSet<>(Projection.NAMES), false, Set.of())
          .write(target, "configs/tiny/base");
      var tensors = new TreeMap<String, NDArray>();
      var ranks = new TreeMap<String, Integer>();
      var scales = new TreeMap<String, Double>();
      for (int layer = 0; layer < 2; layer++) {
        for (var module : Projection.values()) {
          var path = module.path(layer);
          var shape = config.shape(module);
          var a = normal(manager, 0.12, 4, shape[1]);
          var b = normal(manager, 0.12, shape[0], 4);
          var key = "base_model.model." + path;
          tensors.put(key + ".lora_A.weight", a);
          tensors.put(key + ".lora_B.weight", b);
          parts
              .computeIfAbsent(key + ".lora_A.weight", k -> new ArrayList<>())
              .add(Ops.cast(a, Dtype.F32));
          parts
              .computeIfAbsent(key + ".lora_B.weight", k -> new ArrayList<>())
              .add(Ops.cast(b, Dtype.F32));
          ranks.put(path, 4);
          scales.put(path, 2.0);
          stacked.put(key + ".moe_gate.weight", normal(manager, 0.12, TASKS.size(), shape[1]));
        }
      }
      SafetensorsWriter.write(
          target.resolve("adapter_model.safetensors"), tensors, Map.of("format", "pt"));
      described.add(new MeteoraCheckpoint.Adapter(name, ranks, scales));
    }
    parts.forEach(
        (key, list) ->
            stacked.put(
                key,
                Ops.cast(
                    ai.djl.ndarray.NDArrays.concat(
                        new ai.djl.ndarray.NDList(list), key.contains("lora_A") ? 0 : 1),
                    Dtype.BF16)));
    SafetensorsWriter.write(
        folder.resolve("meteora/model.safetensors"),
        stacked,
        MeteoraCheckpoint.metadata(described, false));
  }

  /**
   * A byte-level vocabulary: one token for each byte, in the spelling of GPT-2's byte-level BPE,
   * without merges.
   */
  private static ObjectNode tokenizer() {
    var vocab = Jsonl.JSON.createObjectNode();
    int extra = 0;
    for (int b = 0; b < 256; b++) {
      boolean printable = b >= '!' && b <= '~' || b >= 0xA1 && b <= 0xAC || b >= 0xAE;
      vocab.put(String.valueOf((char) (printable ? b : 256 + extra++)), b);
    }
    vocab.put("<s>", 256);
    vocab.put("</s>", 257);
    var json = Jsonl.JSON.createObjectNode().put("version", "1.0");
    json.putNull("truncation");
    json.putNull("padding");
    var added = json.putArray("added_tokens");
    for (int id = 256; id < 258; id++) {
      added
          .addObject()
          .put("id", id)
          .put("content", id == 256 ? "<s>" : "</s>")
          .put("single_word", false)
          .put("lstrip", false)
          .put("rstrip", false)
          .put("normalized", false)
          .put("special", true);
    }
    json.putNull("normalizer");
    json.putObject("pre_tokenizer")
        .put("type", "ByteLevel")
        .put("add_prefix_space", false)
        .put("trim_offsets", true)
        .put("use_regex", false);
    json.putNull("post_processor");
    json.putObject("decoder")
        .put("type", "ByteLevel")
        .put("add_prefix_space", true)
        .put("trim_offsets", true)
        .put("use_regex", false);
    var model = json.putObject("model").put("type", "BPE");
    model.putNull("dropout");
    model.putNull("unk_token");
    model.putNull("continuing_subword_prefix");
    model.putNull("end_of_word_suffix");
    model.put("fuse_unk", false).put("byte_fallback", false);
    model.set("vocab", vocab);
    model.putArray("merges");
    return json;
  }

  /** Four tasks on a random word: what is asked, and the answer. */
  private static final TreeMap<String, Map.Entry<String, Function<String, String>>> TASKS =
      new TreeMap<>();

  static {
    TASKS.put(
        "count_vowels",
        Map.entry(
            "Count the vowels of ",
            word -> String.valueOf(word.chars().filter(c -> "aeiou".indexOf(c) >= 0).count())));
    TASKS.put(
        "reverse_word",
        Map.entry("Write backwards: ", word -> new StringBuilder(word).reverse().toString()));
    TASKS.put(
        "shift_letters",
        Map.entry(
            "Shift each letter by one: ",
            word ->
                word.chars()
                    .map(c -> c == 'z' ? 'a' : c + 1)
                    .collect(
                        StringBuilder::new, StringBuilder::appendCodePoint, StringBuilder::append)
                    .toString()));
    TASKS.put(
        "sort_letters",
        Map.entry(
            "Sort the letters of ",
            word ->
                word.chars()
                    .sorted()
                    .collect(
                        StringBuilder::new, StringBuilder::appendCodePoint, StringBuilder::append)
                    .toString()));
  }

  private static void datasets(Path folder) throws Exception {
    var tests = new ArrayList<List<Sample>>();
    var trains = new ArrayList<List<Sample>>();
    for (var task : TASKS.entrySet()) {
      trains.add(samples(task.getValue(), 20));
      tests.add(samples(task.getValue(), 20));
      Sample.write(folder.resolve(task.getKey()).resolve("train.jsonl"), trains.getLast());
      Sample.write(folder.resolve(task.getKey()).resolve("test.jsonl"), tests.getLast());
    }
    var header =
        CompositeMaker.header(
            List.of(
                trains.stream().map(List::getFirst).toList(),
                trains.stream().map(own -> own.get(1)).toList()));
    Sample.write(
        folder.resolve("composite_4/test.jsonl"), CompositeMaker.make(header, tests, 8, false, 0));
    var parts = Jsonl.JSON.createObjectNode();
    parts.set("tasks", Jsonl.JSON.valueToTree(TASKS.keySet()));
    Files.write(
        folder.resolve("composite_4/composite.json"),
        (parts.toPrettyString() + "\n").getBytes(StandardCharsets.UTF_8));
  }

  private static List<Sample> samples(Map.Entry<String, Function<String, String>> task, int count) {
    var result = new ArrayList<Sample>();
    for (int i = 0; i < count; i++) {
      var word = new StringBuilder();
      int length = 4 + RANDOM.nextInt(4);
      for (int c = 0; c < length; c++) {
        word.append(
            (c % 2 == 0 ? "bcdfglmnprst" : "aeiou").charAt(RANDOM.nextInt(c % 2 == 0 ? 12 : 5)));
      }
      result.add(
          new Sample(
              "[INST] " + task.getKey() + word + " [/INST]\n",
              task.getValue().apply(word.toString())));
    }
    return result;
  }
}
