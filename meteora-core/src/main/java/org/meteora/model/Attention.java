package org.meteora.model;

import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDArrays;
import ai.djl.ndarray.NDList;
import java.util.Map;
import java.util.function.UnaryOperator;
import org.meteora.moe.GatedForward;
import org.meteora.moe.GatedLinear;
import org.meteora.nn.Projection;
import org.meteora.tensor.Ops;

/** Grouped-query self-attention with rotary positions: {@code (batch, seq, hidden)} to the same. */
public final class Attention extends LlamaBlock {
  private final Architecture architecture;
  private final GatedForward input;
  private final GatedForward output;
  private final int layer;

  Attention(
      Architecture architecture, int layer, Map<Projection, GatedLinear> linears, Backend backend) {
    this.architecture = architecture;
    this.layer = layer;
    this.input = group(Projection.Input.ATTENTION, linears, backend);
    this.output = group(Projection.Input.ATTENTION_HEADS, linears, backend);
  }

  /**
   * @param wanted takes the tokens whose output is wanted out of {@code (batch, seq, …)}
   */
  NDArray forward(NDArray x, Pass pass, UnaryOperator<NDArray> wanted) {
    long B = x.getShape().get(0);
    long L = x.getShape().get(1);
    int H = architecture.numAttentionHeads();
    int KV = architecture.numKeyValueHeads();
    int D = architecture.headDim();
    var projected = project(input, x, pass);
    if (pass.rows() != null) {
      var attended =
          pass.ops().attend(projected.get(0), projected.get(1), projected.get(2), pass, layer);
      return project(output, wanted.apply(attended), pass).getFirst();
    }
    var heads =
        pass.ops().rotate(projected.get(0), projected.get(1), projected.get(2), pass, layer);
    NDArray mixed;
    if (pass.ranges() != null) {
      mixed = attendByRanges(heads, pass.ranges());
    } else if (L == 1 && H != KV) {
      // one query: the heads of a group are that many queries of one head, and nothing is repeated
      var grouped = heads.queries().reshape(B, KV, H / KV, D);
      mixed = Ops.attention(grouped, heads.keys(), heads.values(), pass.mask(), false);
    } else if (pass.samples() != null) {
      mixed = attendBySample(heads, pass);
    } else {
      mixed = attend(heads.queries(), heads.keys(), heads.values(), pass);
    }
    return project(output, wanted.apply(mixed.reshape(B, L, H * D)), pass).getFirst();
  }

  /** {@code (batch, seq, heads, headDim)}. */
  private static NDArray attend(NDArray queries, NDArray keys, NDArray values, Pass pass) {
    return Ops.transpose(Ops.attention(queries, keys, values, pass.mask(), pass.causal()), 1, 2);
  }

  /** {@code (tokens, heads, headDim)}. */
  private static NDArray attendByRanges(LayerOps.Heads heads, Ranges ranges) {
    return Ops.attentionByRanges(
        Ops.transpose(heads.queries(), 1, 2).squeeze(0),
        Ops.transpose(heads.keys(), 1, 2).squeeze(0),
        Ops.transpose(heads.values(), 1, 2).squeeze(0),
        ranges.queries(),
        ranges.keys(),
        ranges.maxQueries(),
        ranges.maxKeys());
  }

  /** The same, where the tokens of several samples are one row. */
  private static NDArray attendBySample(LayerOps.Heads heads, Pass pass) {
    var queries = Ops.split(heads.queries(), pass.samples(), 2);
    var keys = Ops.split(heads.keys(), pass.samples(), 2);
    var values = Ops.split(heads.values(), pass.samples(), 2);
    var mixed = new NDList();
    for (int i = 0; i < queries.size(); i++) {
      mixed.add(attend(queries.get(i), keys.get(i), values.get(i), pass));
    }
    return NDArrays.concat(mixed, 1);
  }
}
