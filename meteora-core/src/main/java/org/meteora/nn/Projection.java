package org.meteora.nn;

import java.util.Arrays;
import java.util.List;

/**
 * The linear layers of a decoder layer, in the order in which files, listeners and optimisers count
 * them: {@link #ordinal} is the module's number everywhere.
 */
public enum Projection {
  Q("self_attn.q_proj", Input.ATTENTION),
  K("self_attn.k_proj", Input.ATTENTION),
  V("self_attn.v_proj", Input.ATTENTION),
  O("self_attn.o_proj", Input.ATTENTION_HEADS),
  GATE("mlp.gate_proj", Input.MLP),
  UP("mlp.up_proj", Input.MLP),
  DOWN("mlp.down_proj", Input.MLP_INNER);

  /** What a projection reads: those with the same input can share products. */
  public enum Input {
    /** The normed hidden states, {@code (…, hidden)}. */
    ATTENTION,
    /** All heads' results, {@code (…, heads · headDim)}. */
    ATTENTION_HEADS,
    /** The normed sum behind attention, {@code (…, hidden)}. */
    MLP,
    /** {@code silu(gate) · up}, {@code (…, intermediate)}. */
    MLP_INNER;

    /** The projections that read it, in order. */
    public List<Projection> readers() {
      return Arrays.stream(Projection.values()).filter(each -> each.input == this).toList();
    }
  }

  /** Hugging Face's names, such as {@code q_proj}, in order. */
  public static final List<String> NAMES = Arrays.stream(values()).map(Projection::module).toList();

  private final String path;
  private final Input input;

  Projection(String path, Input input) {
    this.path = path;
    this.input = input;
  }

  /** Hugging Face's name, such as {@code q_proj}. */
  public String module() {
    return path.substring(path.indexOf('.') + 1);
  }

  /** Path in a model, such as {@code model.layers.0.self_attn.q_proj}. */
  public String path(int layer) {
    return "model.layers." + layer + "." + path;
  }

  /** Whether it belongs to attention; to the MLP otherwise. */
  public boolean inAttention() {
    return path.startsWith("self_attn");
  }

  /** What it reads. */
  public Input input() {
    return input;
  }
}
