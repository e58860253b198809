package org.meteora.train;

import java.util.ArrayList;
import java.util.List;
import org.meteora.train.listener.Part;
import org.meteora.train.optim.AdamW;
import org.meteora.train.optim.CosineSchedule;
import org.meteora.train.optim.FlatParameters;

/**
 * How a step's gradients change the parameters: gates and adapters have each their rate and, if
 * asked for, their clipping.
 */
final class Update {
  private static final String GATE = ".moe_gate";

  /** A stretch of this process's slice that is all gates, or all adapters. */
  private record Stretch(boolean gates, long from, long to) {}

  private final TrainConfig config;
  private final FlatParameters parameters;
  private final List<Stretch> stretches = new ArrayList<>();
  private final long before;
  private final CosineSchedule schedule;
  private final CosineSchedule adapters;

  Update(TrainConfig config, FlatParameters parameters, Part part) {
    this.config = config;
    this.before = part.before();
    this.parameters = parameters;
    for (var slot : parameters.slots()) {
      boolean gate = slot.name().endsWith(GATE);
      long start = Math.max(slot.offset(), parameters.sliceStart()) - parameters.sliceStart();
      long end =
          Math.min(slot.offset() + slot.size(), parameters.sliceEnd()) - parameters.sliceStart();
      if (start >= end) {
        continue; // another process's
      }
      boolean goesOn = !stretches.isEmpty() && stretches.getLast().gates() == gate;
      stretches.add(new Stretch(gate, goesOn ? stretches.removeLast().from() : start, end));
    }
    schedule = CosineSchedule.of(part.rate(), config.warmupRatio(), part.steps());
    adapters = CosineSchedule.of(part.adapterRate(), config.warmupRatio(), part.steps());
  }

  /** The rate of a step, counted from 0: the gates', or that of an adapter trained alone. */
  double rate(long step) {
    return schedule.rate(step - before);
  }

  /** The norm of all gradients, over all processes. */
  double norm(AdamW optimizer) {
    double norm = optimizer.gradientNorm();
    return Math.sqrt(parameters.sum(norm * norm));
  }

  /**
   * Clips the gradients and makes a step.
   *
   * @param step counted from 0
   */
  void apply(AdamW optimizer, long step, double norm) {
    double gates = AdamW.clipFactor(norm, config.maxGradNorm());
    double others = gates;
    if (config.adapterMaxGradNorm().isPresent()) {
      gates = AdamW.clipFactor(norm(optimizer, true), config.maxGradNorm());
      others = AdamW.clipFactor(norm(optimizer, false), config.adapterMaxGradNorm().get());
    }
    var parts = new ArrayList<AdamW.Part>();
    for (var each : stretches) {
      double rate = each.gates() ? rate(step) : adapters.rate(step - before);
      parts.add(new AdamW.Part(each.from(), each.to(), rate, each.gates() ? gates : others));
    }
    optimizer.step(parts);
  }

  private double norm(AdamW optimizer, boolean gates) {
    double squares = 0;
    for (var each : stretches) {
      if (each.gates() == gates) {
        double norm = optimizer.gradientNorm(each.from(), each.to());
        squares += norm * norm;
      }
    }
    return Math.sqrt(parameters.sum(squares));
  }
}
