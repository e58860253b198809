package org.meteora.llama;

import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDArrays;
import ai.djl.ndarray.NDList;
import ai.djl.training.ParameterStore;
import ai.djl.util.PairList;
import org.meteora.moe.MoeLinear;
import org.meteora.torch.Ops;

/** Grouped-query self-attention with rotary positions: {@code (batch, seq, hidden)} to the same. */
public final class Attention extends LlamaBlock {
  private final LlamaConfig config;
  private final MoeLinear q;
  private final MoeLinear k;
  private final MoeLinear v;
  private final MoeLinear o;
  private final int layer;
  private final RotaryEmbedding rotary;

  Attention(
      LlamaConfig config,
      int layer,
      RotaryEmbedding rotary,
      MoeLinear q,
      MoeLinear k,
      MoeLinear v,
      MoeLinear o) {
    this.config = config;
    this.layer = layer;
    this.rotary = rotary;
    this.q = addChildBlock("q_proj", q);
    this.k = addChildBlock("k_proj", k);
    this.v = addChildBlock("v_proj", v);
    this.o = addChildBlock("o_proj", o);
  }

  NDArray forward(NDArray x, Pass pass) {
    long B = x.getShape().get(0);
    long L = x.getShape().get(1);
    int H = config.numAttentionHeads();
    int KV = config.numKeyValueHeads();
    int D = config.headDim();
    var queries = project(q, x, pass);
    var keys = project(k, x, pass);
    var values = Ops.transpose(project(v, x, pass).reshape(B, L, KV, D), 1, 2);
    NDArray qh;
    NDArray kh;
    if (!pass.training() && HostRows.fits(queries)) {
      HostRows.rotate(queries, pass.angles());
      HostRows.rotate(keys, pass.angles());
      qh = Ops.transpose(queries.reshape(B, L, H, D), 1, 2);
      kh = Ops.transpose(keys.reshape(B, L, KV, D), 1, 2);
    } else {
      var rotated =
          RotaryEmbedding.rotate(
              NDArrays.concat(new NDList(queries, keys), 2).reshape(B, L, H + KV, D),
              pass.angles());
      qh = Ops.transpose(Ops.narrow(rotated, 2, 0, H), 1, 2);
      kh = Ops.transpose(Ops.narrow(rotated, 2, H, KV), 1, 2);
    }
    if (pass.cache() != null) {
      kh = pass.cache().appendKeys(layer, kh);
      values = pass.cache().appendValues(layer, values);
    }
    NDArray mixed;
    if (L == 1 && H != KV) {
      // one query: the heads of a group are that many queries of one head, and nothing is repeated
      var grouped = qh.reshape(B, KV, H / KV, D);
      mixed = Ops.attention(grouped, kh, values, pass.mask(), false).reshape(B, 1, H * D);
    } else {
      mixed =
          Ops.transpose(Ops.attention(qh, kh, values, pass.mask(), pass.causal()), 1, 2)
              .reshape(B, L, H * D);
    }
    return project(o, mixed, pass);
  }

  static NDArray project(MoeLinear linear, NDArray x, Pass pass) {
    var output =
        pass.tape() != null
            ? pass.tape().forward(linear, x)
            : linear.forward(x, pass.training(), pass.gateLogits() != null);
    if (pass.gateLogits() != null && output.gateLogits() != null) {
      pass.gateLogits().add(output.gateLogits());
    }
    return output.y();
  }

  MoeLinear[] projections() {
    return new MoeLinear[] {q, k, v, o};
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
