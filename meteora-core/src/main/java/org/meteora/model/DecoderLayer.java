package org.meteora.model;

import ai.djl.ndarray.NDArray;
import java.util.Collection;
import java.util.List;
import java.util.function.UnaryOperator;
import org.meteora.moe.GatedLinear;
import org.meteora.nn.Projection;

/** One decoder layer: {@code (batch, seq, hidden)} to the same. */
public final class DecoderLayer extends LlamaBlock {
  private final RmsNorm inputNorm;
  private final Attention attention;
  private final RmsNorm postAttentionNorm;
  private final Mlp mlp;
  private final List<GatedLinear> projections;

  /**
   * @param projections those of attention and MLP, in the order of {@link Projection}
   */
  DecoderLayer(
      RmsNorm inputNorm,
      Attention attention,
      RmsNorm postAttentionNorm,
      Mlp mlp,
      Collection<GatedLinear> projections) {
    this.inputNorm = addChildBlock("input_layernorm", inputNorm);
    this.attention = addChildBlock("self_attn", attention);
    this.postAttentionNorm = addChildBlock("post_attention_layernorm", postAttentionNorm);
    this.mlp = addChildBlock("mlp", mlp);
    this.projections = List.copyOf(projections);
  }

  /**
   * One pass; the intermediates of an inference pass are freed before it returns.
   *
   * @param hidden {@code (batch, seq, hidden)}
   * @return owned by the manager of {@code hidden}
   */
  public NDArray forward(NDArray hidden, Pass pass) {
    return forward(hidden, pass, UnaryOperator.identity());
  }

  /**
   * The same of some tokens; keys and values are those of all.
   *
   * @param wanted takes these tokens out of {@code (batch, seq, …)}
   */
  NDArray forward(NDArray hidden, Pass pass, UnaryOperator<NDArray> wanted) {
    if (pass.context().training()) {
      return compute(hidden, pass, wanted);
    }
    var owner = hidden.getManager();
    try (var scope = owner.newSubManager()) {
      hidden.attach(scope);
      var result = compute(hidden, pass, wanted);
      hidden.attach(owner);
      result.attach(owner);
      pass.gateLogits().forEach(logits -> logits.attach(owner));
      return result;
    }
  }

  private NDArray compute(NDArray hidden, Pass pass, UnaryOperator<NDArray> wanted) {
    var input = pass.ops().norm(hidden, inputNorm);
    var inside = pass.inside(input);
    var attended = attention.forward(input, inside, wanted);
    var residual = pass.ops().addAndNorm(wanted.apply(hidden), attended, postAttentionNorm);
    return pass.ops().add(residual.sum(), mlp.forward(residual.normed(), inside));
  }

  /** The norm before attention. */
  public RmsNorm inputNorm() {
    return inputNorm;
  }

  /** The norm before the MLP. */
  public RmsNorm postAttentionNorm() {
    return postAttentionNorm;
  }

  /** All projections, in the order of {@link Projection}. */
  public List<GatedLinear> projections() {
    return projections;
  }

  /** Those of one input. */
  public List<GatedLinear> projections(Projection.Input input) {
    return input.readers().stream().map(this::projection).toList();
  }

  /** One projection. */
  public GatedLinear projection(Projection which) {
    return projections.get(which.ordinal());
  }
}
