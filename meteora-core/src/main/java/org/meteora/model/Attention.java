package org.meteora.model;

import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDArrays;
import ai.djl.ndarray.NDList;
import ai.djl.training.ParameterStore;
import ai.djl.util.PairList;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.stream.Stream;
import org.meteora.backend.cpu.HostRows;
import org.meteora.backend.cuda.GpuRows;
import org.meteora.moe.LinearGroup;
import org.meteora.moe.MoeLinear;
import org.meteora.nn.Projection;
import org.meteora.tensor.Ops;

/** Grouped-query self-attention with rotary positions: {@code (batch, seq, hidden)} to the same. */
public final class Attention extends LlamaBlock {
  private final Architecture config;
  private final LinearGroup input;
  private final LinearGroup output;
  private final int layer;
  private final RotaryEmbedding rotary;

  Attention(
      Architecture config, int layer, RotaryEmbedding rotary, Map<Projection, MoeLinear> linears) {
    this.config = config;
    this.layer = layer;
    this.rotary = rotary;
    this.input = group(Projection.Input.ATTENTION, linears);
    this.output = group(Projection.Input.ATTENTION_HEADS, linears);
  }

  NDArray forward(NDArray x, Pass pass) {
    long B = x.getShape().get(0);
    long L = x.getShape().get(1);
    int H = config.numAttentionHeads();
    int KV = config.numKeyValueHeads();
    int D = config.headDim();
    var projected = project(input, x, pass);
    var queries = projected.get(0);
    var keys = projected.get(1);
    var values = projected.get(2);
    if (pass.cache() != null && x.getDevice().isGpu()) {
      var cached = GpuRows.rotateIntoCache(queries, keys, values, pass, layer);
      var rotated = Ops.transpose(queries.reshape(B, L, H, D), 1, 2);
      return attend(rotated, cached.keys(), cached.values(), pass);
    }
    NDArray qh;
    NDArray kh;
    var vh = Ops.transpose(values.reshape(B, L, KV, D), 1, 2);
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
      vh = pass.cache().appendValues(layer, vh);
    }
    return attend(qh, kh, vh, pass);
  }

  /** Attention of heads {@code (batch, heads, seq, headDim)} and the output projection. */
  private NDArray attend(NDArray qh, NDArray kh, NDArray vh, Pass pass) {
    long B = qh.getShape().get(0);
    long L = qh.getShape().get(2);
    int H = config.numAttentionHeads();
    int KV = config.numKeyValueHeads();
    int D = config.headDim();
    NDArray mixed;
    if (L == 1 && H != KV) {
      // one query: the heads of a group are that many queries of one head, and nothing is repeated
      var grouped = qh.reshape(B, KV, H / KV, D);
      mixed = Ops.attention(grouped, kh, vh, pass.mask(), false).reshape(B, 1, H * D);
    } else {
      mixed =
          Ops.transpose(Ops.attention(qh, kh, vh, pass.mask(), pass.causal()), 1, 2)
              .reshape(B, L, H * D);
    }
    return project(output, mixed, pass).getFirst();
  }

  /** What linears with one input give; their logits go where the pass wants them. */
  static List<NDArray> project(LinearGroup group, NDArray x, Pass pass) {
    var outputs =
        pass.tape() != null
            ? group.linears().stream().map(linear -> pass.tape().forward(linear, x)).toList()
            : group.forward(x, pass.training(), pass.gateLogits() != null);
    if (pass.gateLogits() != null) {
      outputs.stream()
          .map(MoeLinear.Output::gateLogits)
          .filter(Objects::nonNull)
          .forEach(pass.gateLogits()::add);
    }
    return outputs.stream().map(MoeLinear.Output::y).toList();
  }

  Stream<MoeLinear> projections() {
    return Stream.of(input, output).flatMap(group -> group.linears().stream());
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
