package org.meteora.model;

import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDList;
import ai.djl.training.ParameterStore;
import ai.djl.util.PairList;
import java.util.List;
import java.util.stream.Stream;
import org.meteora.moe.MoeLinear;
import org.meteora.nn.Projection;

/** One decoder layer: {@code (batch, seq, hidden)} to the same. */
public final class DecoderLayer extends LlamaBlock {
  private final RmsNorm inputNorm;
  private final Attention attention;
  private final RmsNorm postAttentionNorm;
  private final Mlp mlp;
  private final RotaryEmbedding rotary;
  private final List<MoeLinear> projections;

  DecoderLayer(
      RotaryEmbedding rotary,
      RmsNorm inputNorm,
      Attention attention,
      RmsNorm postAttentionNorm,
      Mlp mlp) {
    this.rotary = rotary;
    this.inputNorm = addChildBlock("input_layernorm", inputNorm);
    this.attention = addChildBlock("self_attn", attention);
    this.postAttentionNorm = addChildBlock("post_attention_layernorm", postAttentionNorm);
    this.mlp = addChildBlock("mlp", mlp);
    this.projections = Stream.concat(attention.projections(), mlp.projections()).toList();
  }

  /**
   * One pass; the intermediates of an inference pass are freed before it returns.
   *
   * @param hidden {@code (batch, seq, hidden)}
   * @return owned by the manager of {@code hidden}
   */
  public NDArray forward(NDArray hidden, Pass pass) {
    if (pass.training()) {
      return compute(hidden, pass);
    }
    var owner = hidden.getManager();
    try (var scope = owner.newSubManager()) {
      hidden.attach(scope);
      var result = compute(hidden, pass);
      hidden.attach(owner);
      result.attach(owner);
      if (pass.gateLogits() != null) {
        pass.gateLogits().forEach(logits -> logits.attach(owner));
      }
      return result;
    }
  }

  private NDArray compute(NDArray hidden, Pass pass) {
    var attended = attention.forward(inputNorm.forward(hidden, pass.training()), pass);
    if (!pass.training() && hidden.getDevice().isGpu()) {
      var normed = postAttentionNorm.forwardOfSum(hidden, attended);
      return attended.addi(mlp.forward(normed, pass));
    }
    attended = hidden.add(attended);
    return attended.add(mlp.forward(postAttentionNorm.forward(attended, pass.training()), pass));
  }

  public RmsNorm inputNorm() {
    return inputNorm;
  }

  public RmsNorm postAttentionNorm() {
    return postAttentionNorm;
  }

  /** All projections, in the order of {@link Projection}. */
  public List<MoeLinear> projections() {
    return projections;
  }

  /** One projection. */
  public MoeLinear projection(Projection which) {
    return projections.get(which.ordinal());
  }

  @Override
  protected NDList forwardInternal(
      ParameterStore parameterStore,
      NDList inputs,
      boolean training,
      PairList<String, Object> params) {
    var x = inputs.head();
    return new NDList(
        forward(x, Pass.whole(x.getManager(), rotary, (int) x.getShape().get(1), training)));
  }
}
