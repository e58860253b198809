package org.meteora.moe;

import java.util.Arrays;
import java.util.Collections;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.OptionalInt;
import java.util.TreeMap;
import java.util.stream.Stream;
import org.meteora.UserException;

/**
 * The environment flags that choose an implementation, with the names the Python original gave
 * them.
 *
 * @param mode what they ask for
 * @param singleAdapter {@code MOELINEAR_SINGLE_MOE_LORA}: this adapter alone on every token, no
 *     gate
 * @param given what was set, by name
 */
public record Flags(ForwardMode mode, OptionalInt singleAdapter, Map<String, String> given) {
  private static final String ACCELERATE = "MOELINEAR_USE_ACCELERATE_FWD";
  private static final String LOOP = "MOELINEAR_FWD_INNER_LOOP_MODE";
  private static final String BACKEND = "MOELINEAR_ACCELERATE_FWD_BACKEND";
  private static final String TORCH_VERSION = "MOELINEAR_ACCELERATE_FWD_BACKEND_TORCH_VERSION";
  private static final String TRITON_VERSION = "MOELINEAR_ACCELERATE_FWD_BACKEND_TRITON_VERSION";
  private static final String SINGLE = "MOELINEAR_SINGLE_MOE_LORA";

  /** The flags' names. */
  public static final List<String> NAMES =
      List.of(ACCELERATE, LOOP, BACKEND, TORCH_VERSION, TRITON_VERSION, SINGLE);

  /** The best mode, gates on. */
  public static final Flags AUTO = of(ForwardMode.AUTO);

  /** One mode, gates on. */
  public static Flags of(ForwardMode mode) {
    return new Flags(mode, OptionalInt.empty(), Map.of());
  }

  /**
   * These with {@link ForwardMode#INVARIANT}.
   *
   * @throws UserException when they ask for another form
   */
  public Flags invariant() {
    if (mode != ForwardMode.AUTO) {
      throw new UserException(
          "--batch-invariant is a form of its own; the flags ask for the form " + mode.label());
    }
    return new Flags(ForwardMode.INVARIANT, singleAdapter, given);
  }

  /**
   * Reads the flags. With none of them set the mode is {@link ForwardMode#AUTO}.
   *
   * @throws UserException for a value that is not a choice, naming variable, value and choices
   */
  public static Flags fromEnvironment(Map<String, String> environment) {
    var single = OptionalInt.empty();
    var index = environment.get(SINGLE);
    if (index != null && !index.isBlank()) {
      if (!index.strip().matches("\\+?\\d{1,9}")) {
        throw new UserException("%s=%s: an adapter's index (0, 1, …) was expected", SINGLE, index);
      }
      single = OptionalInt.of(Integer.parseInt(index.strip()));
    }
    boolean accelerate = choice(environment, ACCELERATE, "1", "0", "1").equals("1");
    var loop = choice(environment, LOOP, "batch", "batch", "all", "parallel", "auto");
    var backend = choice(environment, BACKEND, "torch", "torch", "triton", "fused", "auto");
    var torch = choice(environment, TORCH_VERSION, "v1", "v1", "v2");
    choice(environment, TRITON_VERSION, "v4", "v1", "v2", "v3", "v4");
    boolean nothingSet =
        Stream.of(LOOP, BACKEND, TORCH_VERSION, TRITON_VERSION).noneMatch(environment::containsKey);
    ForwardMode mode;
    if (!accelerate) {
      mode = ForwardMode.REFERENCE;
    } else if (loop.equals("all")) {
      mode = ForwardMode.ALL;
    } else if (loop.equals("parallel")) {
      mode = ForwardMode.PARALLEL;
    } else if (nothingSet || loop.equals("auto") || backend.equals("auto")) {
      mode = ForwardMode.AUTO;
    } else if (!backend.equals("torch")) {
      mode = ForwardMode.FUSED;
    } else {
      mode = torch.equals("v1") ? ForwardMode.GATHER : ForwardMode.MASKED;
    }
    var given = new TreeMap<>(environment);
    given.keySet().retainAll(NAMES);
    return new Flags(mode, single, Collections.unmodifiableMap(given));
  }

  /**
   * What a saved result says of them: {@code forward_mode}, {@code single_adapter}, {@code flags}.
   */
  public Map<String, Object> describe() {
    var result = new LinkedHashMap<String, Object>();
    result.put("forward_mode", mode.label());
    result.put("single_adapter", singleAdapter.isPresent() ? singleAdapter.getAsInt() : null);
    result.put("flags", given);
    return result;
  }

  private static String choice(
      Map<String, String> environment, String name, String otherwise, String... choices) {
    var value = environment.get(name);
    if (value == null) {
      return otherwise;
    }
    if (!Arrays.asList(choices).contains(value)) {
      throw new UserException(name + "=" + value + ": choose one of " + String.join(", ", choices));
    }
    return value;
  }
}
