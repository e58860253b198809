package org.meteora.fuzz;

import ai.djl.ndarray.NDManager;
import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.node.ObjectNode;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import org.meteora.io.Jsonl;
import org.meteora.tensor.Devices;
import org.meteora.tensor.Dtype;
import org.meteora.tensor.Ops;
import org.meteora.train.optim.FlatParameters;

/** Good inputs that others are made of. */
final class Seeds {
  private Seeds() {}

  static final byte[] FULL_ADAPTER_CONFIG =
      utf8(
          """
          {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "lora_dropout": 0.1, "bias": "none",
           "target_modules": ".*(?P<block>self_attn|mlp)\\\\.(q|k|v|o|gate|up|down)_proj",
           "exclude_modules": ["lm_head"], "rank_pattern": {"layers.0.*q_proj": 4, "^mlp": 2},
           "alpha_pattern": {"q_proj": 16.5, "up_proj$": 1}, "layers_to_transform": null,
           "layers_pattern": null, "use_rslora": true, "modules_to_save": null,
           "init_lora_weights": "gaussian", "alora_invocation_tokens": null, "use_dora": false,
           "megatron_config": null, "loftq_config": {}, "eva_config": null}
          """);
  static final byte[] CONFIG =
      utf8(
          """
          {"model_type": "llama", "hidden_size": 64, "num_attention_heads": 4, "head_dim": 16,
           "num_key_value_heads": 2, "num_hidden_layers": 2, "intermediate_size": 128,
           "vocab_size": 512, "max_position_embeddings": 2048, "rms_norm_eps": 1e-5,
           "rope_parameters": {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0,
            "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192}, "tie_word_embeddings": true,
           "attention_bias": false, "mlp_bias": false, "hidden_act": "silu",
           "eos_token_id": [1, 2]}
          """);
  static final byte[] GENERATION_CONFIG =
      utf8(
          """
          {"do_sample": true, "temperature": 0.6, "top_p": 0.9, "top_k": 40, "min_p": 0.0,
           "no_repeat_ngram_size": 3, "eos_token_id": [1, 2], "repetition_penalty": 1.1,
           "bad_words_ids": [[3]], "num_beams": 1}
          """);
  static final byte[] YAML =
      utf8(
          """
          base_model_path: 'a/b'   # a comment
          meteora_ckpt_path: "c"
          target_dir: datasets
          routing_top_k: 2
          routing_temperature: auto
          moelinear_fwd_inner_loop_mode: batch
          train:
            learning_rate: 5.0e-4
            seed: 0x10
          """);
  static final byte[] SAMPLES =
      utf8(
          """
          {"prompt": "[INST] Größe 😀 [/INST]\\n", "response": "a"}
          {"prompt": "[INST] b \\ud83d\\ude00 [/INST]\\n", "response": ""}

          {"prompt": "x", "response": "y", "more": [1, {"a": null}]}
          """);
  static final byte[] ALPACA =
      utf8(
          """
          [{"instruction": "Say", "input": "a", "output": "b"},
           {"instruction": "Do", "input": "", "output": "c", "text": "d"},
           {"instruction": "E", "input": "f", "output": "g"}]
          """);
  static final byte[] INDEX =
      utf8(
          """
          {"metadata": {"total_size": 24},
           "weight_map": {"a": "model-00001-of-00002.safetensors",
            "b": "model-00001-of-00002.safetensors"}}
          """);
  static final byte[] SAFETENSORS =
      safetensors(
          """
          {"__metadata__":{"format":"pt"},\
          "a":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]},\
          "b":{"dtype":"BF16","shape":[4],"data_offsets":[16,24]}}\
          """,
          24);
  static final byte[] ANSWERS =
      utf8(
          """
          {"task":"winowhy","index":0,"prompt":"[INST] a [/INST]\\n","truth":"correct",\
          "decoded":"[INST] a [/INST]\\ncorrect","answer":"correct","prompt_tokens":5,\
          "new_tokens":2,"skipped":false,"prompt_lost":false}
          {"task":"winowhy","index":1,"prompt":"[INST] b [/INST]\\n","truth":"incorrect",\
          "decoded":"[INST] b [/INST]\\nx","answer":"x","prompt_tokens":5,"new_tokens":2,\
          "skipped":false,"prompt_lost":true}
          """);
  static final byte[] RESULT =
      utf8(
          """
          {"task": "winowhy", "model": "meteora", "arguments": {"task": "winowhy"},
           "settings": {"model": "meteora", "base_model_path": "x", "adapters": ["a", "b"],
            "routing_top_k": 2, "sha256": {"x": "00"}, "tasks": []},
           "metrics": {"accuracy": 0.5}, "intervals": {"winowhy": {"accuracy": [0.1, 0.9]}},
           "samples": 2, "skipped": 0, "warnings": {"empty_answers": 0}, "throughput": {},
           "answers": "x.answers.jsonl"}
          """);

  static final byte[] TASK_FOLDER =
      utf8("{\"tasks\": [\"winowhy\", \"own\"], \"metrics\": [\"exact_accuracy\", \"bleu\"]}");
  static final byte[] TRAINING =
      utf8("{\"append_eos\": true, \"response_only\": false, \"steps\": 10}");
  static final byte[] TRAINING_METRICS =
      utf8(
          """
          {"event":"step","step":1,"loss":3.5,"seconds":0.1}
          {"event":"eval","step":2,"answer_loss":2.5,"answer_loss_by_task":{"a":1.0}}
          {"event":"step","step":4,"loss":3.25}
          """);

  /** Variables of Hub and proxies, and of each starter of processes. */
  static final List<byte[]> ENVIRONMENTS =
      List.of(
          utf8(
              """
              HF_ENDPOINT=https://hub.example/mirror
              HF_TOKEN=hf_x
              HF_HOME=~/hf
              HF_HUB_CACHE=/x/hub
              http_proxy=http://me:s%40crt@[::1]:3128/
              HTTPS_PROXY=proxy:8080
              all_proxy=socks5h://s
              no_proxy=localhost, .example.org,10.0.0.0/8,fd00::/8,[::1]:80,*.net
              MOELINEAR_FWD_INNER_LOOP_MODE=batch
              MOELINEAR_SINGLE_MOE_LORA=1
              RANK=0
              WORLD_SIZE=2
              LOCAL_RANK=0
              MASTER_ADDR=localhost
              MASTER_PORT=29500
              """),
          utf8("OMPI_COMM_WORLD_RANK=0\nOMPI_COMM_WORLD_SIZE=2\nOMPI_COMM_WORLD_LOCAL_RANK=0\n"),
          utf8("PMI_RANK=1\nPMI_SIZE=2\nMPI_LOCALRANKID=1\n"),
          utf8(
              """
              SLURM_STEP_ID=0
              SLURM_PROCID=1
              SLURM_NTASKS=4
              SLURM_STEP_NUM_TASKS=4
              SLURM_LOCALID=0
              SLURM_JOB_ID=77
              SLURM_STEP_NODELIST=n[01-03,7]-x
              SLURM_JOB_NODELIST=n[01-03,7]-x
              SLURM_NODELIST=n1
              """));

  static Map<String, String> variables(Path file) throws IOException {
    var result = new HashMap<String, String>();
    for (var line : new String(Files.readAllBytes(file), StandardCharsets.UTF_8).split("\n")) {
      int equals = line.indexOf('=');
      // a variable holds no byte 0
      if (equals > 0 && line.indexOf('\0') < 0) {
        result.put(line.substring(0, equals), line.substring(equals + 1));
      }
    }
    return result;
  }

  /** Tokenizers with the parts that tokenizers of Llamas have, and others that the format has. */
  static List<byte[]> tokenizers(Path tiny) throws IOException {
    var plain = Files.readString(tiny);
    var llama2 = (ObjectNode) Jsonl.JSON.readTree(plain);
    llama2.set(
        "normalizer",
        json(
            """
            {"type":"Sequence","normalizers":[{"type":"Prepend","prepend":"▁"},
             {"type":"Replace","pattern":{"String":" "},"content":"▁"},{"type":"NFKC"},
             {"type":"Strip","strip_left":true,"strip_right":false},{"type":"Lowercase"}]}\
            """));
    llama2.putNull("pre_tokenizer");
    llama2.set(
        "decoder",
        json(
            """
            {"type":"Sequence","decoders":[
             {"type":"Replace","pattern":{"String":"▁"},"content":" "},{"type":"ByteFallback"},
             {"type":"Fuse"},{"type":"Strip","content":" ","start":1,"stop":0}]}\
            """));
    var llama3 = (ObjectNode) Jsonl.JSON.readTree(plain);
    llama3.set(
        "pre_tokenizer",
        json(
            """
            {"type":"Sequence","pretokenizers":[{"type":"Split","pattern":{"Regex":
             "(?i:'s|'t)|[^\\\\r\\\\n\\\\p{L}\\\\p{N}]?\\\\p{L}+|\\\\p{N}{1,3}|\\\\s+(?!\\\\S)|\\\\s+"},
             "behavior":"Isolated","invert":false},{"type":"Digits","individual_digits":true},
             {"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,"use_regex":false}]}\
            """));
    llama3.set(
        "post_processor",
        json(
            """
            {"type":"TemplateProcessing","single":[{"SpecialToken":{"id":"<s>","type_id":0}},
             {"Sequence":{"id":"A","type_id":0}}],"pair":[{"Sequence":{"id":"A","type_id":0}},
             {"Sequence":{"id":"B","type_id":1}}],
             "special_tokens":{"<s>":{"id":"<s>","ids":[256],"tokens":["<s>"]}}}\
            """));
    var metaspace = (ObjectNode) Jsonl.JSON.readTree(plain);
    metaspace.set(
        "pre_tokenizer",
        json(
            "{\"type\":\"Metaspace\",\"replacement\":\"▁\",\"prepend_scheme\":\"first\",\"split\":false}"));
    metaspace.set(
        "decoder",
        json(
            "{\"type\":\"Metaspace\",\"replacement\":\"▁\",\"prepend_scheme\":\"first\",\"split\":false}"));
    metaspace.set(
        "model",
        json(
            """
            {"type":"Unigram","unk_id":0,"vocab":[["<unk>",0.0],["▁",-2.0],["a",-3.5],["x",-4.0]],
             "byte_fallback":false}\
            """));
    metaspace.set("added_tokens", json("[]"));
    metaspace.putNull("post_processor");
    var word = (ObjectNode) metaspace.deepCopy();
    word.set("pre_tokenizer", json("{\"type\":\"BertPreTokenizer\"}"));
    word.set(
        "normalizer",
        json(
            "{\"type\":\"BertNormalizer\",\"clean_text\":true,\"handle_chinese_chars\":true,\"strip_accents\":null,\"lowercase\":true}"));
    word.set("decoder", json("{\"type\":\"WordPiece\",\"prefix\":\"##\",\"cleanup\":true}"));
    word.set(
        "model",
        json(
            """
            {"type":"WordPiece","unk_token":"[UNK]","continuing_subword_prefix":"##",
             "max_input_chars_per_word":100,"vocab":{"[UNK]":0,"a":1,"##b":2}}\
            """));
    return List.of(
        utf8(plain),
        utf8(llama2.toString()),
        utf8(llama3.toString()),
        utf8(metaspace.toString()),
        utf8(word.toString()));
  }

  /** The first samples of a file. */
  static byte[] head(Path jsonl) throws IOException {
    try (var lines = Files.lines(jsonl)) {
      return utf8(String.join("\n", lines.limit(4).toList()));
    }
  }

  /** A checkpoint without its numbers: those of one tensor, as many as the header says. */
  static byte[] checkpoint(Path file) throws IOException {
    return Files.readAllBytes(file);
  }

  static FlatParameters parameters(NDManager manager) {
    return new FlatParameters(
        manager,
        Map.of("model.layers.0.self_attn.q_proj.lora_A", Ops.zeros(manager, Dtype.F32, 2, 4)));
  }

  static byte[] trainer() {
    try (var manager = Devices.newManager(ai.djl.Device.cpu())) {
      var slots = Jsonl.JSON.valueToTree(parameters(manager).slots()).toString();
      var header = Jsonl.JSON.createObjectNode();
      header
          .putObject("__metadata__")
          .put("format", "2")
          .put("step", "1")
          .put("planned_steps", "10")
          .put("optimizer_steps", "1")
          .put("identity", "{\"settings\":{},\"files\":{}}")
          .put("settings", "{}")
          .put("slots", slots);
      int at = 0;
      for (var name : List.of("adam.mean", "adam.variance", "parameters")) {
        var tensor = header.putObject(name).put("dtype", "F32");
        tensor.putArray("shape").add(8);
        tensor.putArray("data_offsets").add(at).add(at + 32);
        at += 32;
      }
      return safetensors(header.toString(), 96);
    }
  }

  static byte[] best() {
    return safetensors(
        """
        {"__metadata__":{"step":"3","answer_loss":"1.5"},\
        "parameters":{"dtype":"F32","shape":[8],"data_offsets":[0,32]}}\
        """,
        32);
  }

  private static byte[] safetensors(String header, int data) {
    var json = utf8(header);
    return ByteBuffer.allocate(8 + json.length + data)
        .order(ByteOrder.LITTLE_ENDIAN)
        .putLong(json.length)
        .put(json)
        .array();
  }

  private static JsonNode json(String text) throws IOException {
    return Jsonl.JSON.readTree(text);
  }

  private static byte[] utf8(String text) {
    return text.getBytes(StandardCharsets.UTF_8);
  }
}
