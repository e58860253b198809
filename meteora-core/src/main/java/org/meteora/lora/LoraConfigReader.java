package org.meteora.lora;

import com.fasterxml.jackson.databind.JsonNode;
import java.nio.file.Path;
import java.util.LinkedHashMap;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.Set;
import java.util.TreeSet;
import org.meteora.UserException;
import org.meteora.nn.Projection;

/**
 * Reads the keys of one {@code adapter_config.json}: each is honoured, known to change nothing, or
 * refused by name.
 */
record LoraConfigReader(Path file, JsonNode node) {
  private static final int HIGHEST_RANK = 1 << 16;

  /** Keys that are read below. */
  private static final Set<String> HONOURED =
      words(
          """
          peft_type r lora_alpha lora_dropout target_modules exclude_modules layers_to_transform
          layers_pattern rank_pattern alpha_pattern use_rslora bias modules_to_save
          init_lora_weights
          """);

  /**
   * Keys that change nothing of what the adapter computes: where it comes from, how its first
   * values were found, how its gradient was stored, what holds for other layers than linear ones.
   */
  private static final Set<String> WITHOUT_EFFECT =
      words(
          """
          task_type auto_mapping peft_version base_model_name_or_path revision inference_mode
          fan_in_fan_out megatron_core loftq_config eva_config corda_config lora_ga_config
          velora_config qalora_group_size runtime_config ensure_weight_tying
          """);

  /** Ways to begin that leave the base as it is; the others take their start out of the base. */
  private static final Set<String> PLAIN_STARTS = words("true false gaussian eva orthogonal mica");

  private static Set<String> words(String text) {
    return Set.of(text.split("\\s+"));
  }

  LoraConfig read() {
    if (!node.isObject()) {
      throw refused("a JSON object was expected");
    }
    if (node.has("lora_parameters") || node.has("fine_tune_type")) {
      throw refused(
          "an adapter of mlx-lm; convert it to PEFT first: r = rank, lora_alpha = scale · rank,"
              + " lora_A.weight = lora_a transposed, lora_B.weight = lora_b transposed");
    }
    if (node.hasNonNull("peft_type") && !node.get("peft_type").asText().equals("LORA")) {
      throw refused("peft_type is " + shown("peft_type") + ", only LORA can be embedded");
    }
    for (var entry : node.properties()) {
      var key = entry.getKey();
      if (!HONOURED.contains(key)
          && !WITHOUT_EFFECT.contains(key)
          && !saysNothing(entry.getValue())) {
        throw refused(
            "%s is not supported, it may change what the adapter computes; here it is %s"
                .formatted(key, shown(key)));
      }
    }
    requireBaseAsItIs();
    if (node.hasNonNull("bias") && !node.get("bias").asText().equals("none")) {
      throw refused("bias " + shown("bias") + " is not supported, only \"none\"");
    }
    var layersPattern = names("layers_pattern");
    if (!layersPattern.isEmpty() && !layersPattern.contains("layers")) {
      throw refused("layers_pattern " + shown("layers_pattern") + " is not supported");
    }
    return new LoraConfig(
        rank(node.path("r"), "r"),
        alpha(node.path("lora_alpha"), "lora_alpha"),
        dropout(),
        targets(),
        modules("exclude_modules"),
        flag("use_rslora"),
        rankPattern(),
        alphaPattern(),
        layers(),
        names("modules_to_save"));
  }

  /**
   * PiSSA, OLoRA, CorDA, LoftQ and LoRA-GA take the adapter's first values out of the base's
   * weights. An adapter that was converted when it was saved says {@code true} here.
   */
  private void requireBaseAsItIs() {
    if (node.hasNonNull("init_lora_weights")
        && !PLAIN_STARTS.contains(
            node.get("init_lora_weights").asText().toLowerCase(Locale.ROOT))) {
      throw refused(
          ("init_lora_weights %s is not supported: such a start changes the base model's weights;"
                  + " save the adapter with path_initial_model_for_weight_conversion, which makes"
                  + " it a plain LoRA")
              .formatted(shown("init_lora_weights")));
    }
  }

  private double dropout() {
    if (!node.hasNonNull("lora_dropout")) {
      return 0;
    }
    var value = node.get("lora_dropout");
    double number = value.doubleValue();
    require(value.isNumber() && number >= 0 && number <= 1, "lora_dropout must be in 0…1", value);
    return number;
  }

  private boolean flag(String key) {
    var value = node.path(key);
    require(!node.hasNonNull(key) || value.isBoolean(), key + " must be true or false", value);
    return value.asBoolean(false);
  }

  private int rank(JsonNode value, String what) {
    int rank = value.isInt() ? value.intValue() : 0;
    require(
        rank >= 1 && rank <= HIGHEST_RANK, what + " must be a number in 1…" + HIGHEST_RANK, value);
    return rank;
  }

  private double alpha(JsonNode value, String what) {
    // a scale is used in float32
    double alpha = value.isNumber() ? value.doubleValue() : 0;
    boolean right = alpha >= Float.MIN_NORMAL && alpha < Float.MAX_VALUE;
    require(right, what + " must be a number above 0", value);
    return alpha;
  }

  private LoraConfig.Modules targets() {
    // without it PEFT chooses by the model's type; the tensors tell
    return !node.hasNonNull("target_modules")
            || node.get("target_modules").asText().equalsIgnoreCase("all-linear")
        ? new LoraConfig.Modules(Set.copyOf(Projection.NAMES), null)
        : modules("target_modules");
  }

  private LoraConfig.Modules modules(String key) {
    return node.path(key).isTextual() && !node.path(key).asText().isEmpty()
        ? new LoraConfig.Modules(Set.of(), node.path(key).asText())
        : new LoraConfig.Modules(names(key), null);
  }

  /** A text, or a list of them. */
  private Set<String> names(String key) {
    var value = node.path(key);
    if (saysNothing(value)) {
      return Set.of();
    }
    var result = new LinkedHashSet<String>();
    boolean names = value.isTextual() || value.isArray();
    for (var each : value.isTextual() ? List.of(value) : value) {
      names &= each.isTextual();
      result.add(each.asText());
    }
    require(names, key + " must be a list of names", value);
    return result;
  }

  private Map<String, Integer> rankPattern() {
    var result = new LinkedHashMap<String, Integer>();
    for (var entry : patterns("rank_pattern").properties()) {
      result.put(entry.getKey(), rank(entry.getValue(), "rank_pattern: " + entry.getKey()));
    }
    return result;
  }

  private Map<String, Double> alphaPattern() {
    var result = new LinkedHashMap<String, Double>();
    for (var entry : patterns("alpha_pattern").properties()) {
      if (ModulePattern.compile(entry.getKey()).isEmpty()) {
        throw refused("alpha_pattern has a pattern that is not understood: " + cut(entry.getKey()));
      }
      result.put(entry.getKey(), alpha(entry.getValue(), "alpha_pattern: " + entry.getKey()));
    }
    return result;
  }

  private JsonNode patterns(String key) {
    var value = node.path(key);
    require(!node.hasNonNull(key) || value.isObject(), key + " must be a map", value);
    return value;
  }

  private Set<Integer> layers() {
    var result = new TreeSet<Integer>();
    if (node.hasNonNull("layers_to_transform")) {
      var value = node.get("layers_to_transform");
      for (var each : value.isArray() ? value : List.of(value)) {
        boolean layer = each.isInt() && each.intValue() >= 0;
        require(layer, "layers_to_transform must be a list of layers", value);
        result.add(each.intValue());
      }
    }
    return result;
  }

  private UserException refused(String why) {
    return new UserException(file + ": " + why);
  }

  private void require(boolean right, String what, JsonNode value) {
    if (!right) {
      var given = value.isMissingNode() ? "missing" : cut(value.toString());
      throw refused(what + ", it is " + given);
    }
  }

  private String shown(String key) {
    return cut(node.get(key).toString());
  }

  private static String cut(String text) {
    return text.length() <= 200 ? text : text.substring(0, 200) + "…";
  }

  private static boolean saysNothing(JsonNode value) {
    return value.isMissingNode()
        || value.isNull()
        || value.isBoolean() && !value.booleanValue()
        || value.isTextual() && value.textValue().isEmpty()
        || value.isContainerNode() && value.isEmpty();
  }
}
