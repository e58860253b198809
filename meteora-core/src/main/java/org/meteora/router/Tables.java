package org.meteora.router;

import java.util.IdentityHashMap;
import java.util.Map;
import java.util.function.Function;
import org.meteora.model.Llama;
import org.meteora.moe.GatedLinear;
import org.meteora.tensor.Ops;

/**
 * What a router keeps of each linear of a model; made once, from the adapters as they are then.
 *
 * @param tables of linears with adapters
 */
record Tables<T>(Map<GatedLinear, T> tables) {
  static <T> Tables<T> of(Llama model, Function<GatedLinear, T> table) {
    try (var off = Ops.notRecording()) {
      var tables = new IdentityHashMap<GatedLinear, T>();
      model.adapted().forEach(linear -> tables.put(linear, table.apply(linear)));
      return new Tables<>(tables);
    }
  }

  T of(GatedLinear linear) {
    return tables.get(linear);
  }
}
