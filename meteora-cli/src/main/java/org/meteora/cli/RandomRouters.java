package org.meteora.cli;

import java.util.Random;
import java.util.stream.IntStream;
import java.util.stream.LongStream;
import org.meteora.model.Llama;
import org.meteora.model.RandomLlama;
import org.meteora.moe.ForwardContext;
import org.meteora.moe.GatedLinear;
import org.meteora.moe.LayerGate;
import org.meteora.moe.Router;
import org.meteora.router.LoraFlow;
import org.meteora.router.Oracle;
import org.meteora.router.Phatgoose;
import org.meteora.router.Routers;
import org.meteora.tensor.Dtype;
import org.meteora.tensor.Ops;

/** Routers over random models; those that are trained have random values. */
final class RandomRouters {
  private RandomRouters() {}

  /**
   * The oracle's task is the first adapter's.
   *
   * @param name of {@link Routers#NAMES}
   */
  static Router of(String name, Llama model, int adapters) {
    var names = IntStream.range(0, adapters).mapToObj(i -> "adapter " + i).toList();
    return switch (name) {
      case "phatgoose" -> new Phatgoose(model, RandomRouters::vector);
      case LoraFlow.NAME ->
          new LoraFlow(model.layers().stream().map(layer -> gate(model, adapters)).toList());
      case "oracle" -> new Oracle(names).of(names.getFirst());
      default -> Routers.of(name, model, names);
    };
  }

  private static float[] vector(int adapter, GatedLinear linear) {
    var random = new Random(adapter);
    var v = new float[(int) linear.weight().getShape().get(1)];
    for (int i = 0; i < v.length; i++) {
      v[i] = (float) random.nextGaussian();
    }
    return v;
  }

  private static LayerGate gate(Llama model, long adapters) {
    var manager = model.manager();
    long hidden = model.config().hiddenSize();
    return new LayerGate(
        RandomLlama.normal(manager, model.dtype(), 0.02, adapters, hidden),
        RandomLlama.normal(manager, Dtype.F32, 0.02, adapters));
  }

  /**
   * What a pass with a router over a random model's adapters wants; the router has seen what it
   * must see of the prompts.
   */
  static ForwardContext context(Router router, Llama model, int batch, ForwardContext context) {
    var routing = context.routing();
    if (router instanceof Router.Probing probing) {
      var probe = probing.probe();
      try (var manager = model.manager().newSubManager();
          var cache = model.newCache(manager, new int[batch], 1)) {
        var ids = LongStream.range(0, batch).map(i -> i % model.config().vocabSize()).toArray();
        model.next(
            manager.create(ids, Ops.shape(batch, 1)),
            cache,
            context.withRouting(routing.withRouter(probe)));
      }
      router =
          new Router.Rows(
              probe.chosen(routing.topK()).stream()
                  .map(its -> new Router.Rows.Row(its, 0))
                  .toList());
    }
    return context.withRouting(routing.withRouter(router));
  }
}
