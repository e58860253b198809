package org.meteora.router;

import java.util.ArrayList;
import java.util.List;
import java.util.function.Function;
import org.meteora.model.Llama;
import org.meteora.moe.GatedLinear;
import org.meteora.tensor.Ops;

/**
 * What a router keeps of each linear of a model; made once, from the adapters as they are then.
 *
 * @param rows by layer and projection; null where there are no adapters
 */
record Tables<T>(List<List<T>> rows) {
  static <T> Tables<T> of(Llama model, Function<GatedLinear, T> table) {
    try (var off = Ops.notRecording()) {
      var rows = new ArrayList<List<T>>();
      for (var layer : model.layers()) {
        var row = new ArrayList<T>();
        for (var linear : layer.projections()) {
          row.add(linear.bank() == null ? null : table.apply(linear));
        }
        rows.add(row);
      }
      return new Tables<>(rows);
    }
  }

  T of(GatedLinear linear) {
    return rows.get(linear.layer()).get(linear.projection().ordinal());
  }
}
