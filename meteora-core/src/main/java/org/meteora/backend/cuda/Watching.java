package org.meteora.backend.cuda;

import org.meteora.model.LlamaTraining.Part;
import org.meteora.model.LlamaTraining.Watch;

/** Tells a watch, if there is one, which part of a pass is being queued. */
final class Watching {
  /** Which way a pass goes. */
  enum Phase {
    FORWARD,
    AGAIN,
    BACKWARD
  }

  private Watch watch;
  private Phase phase = Phase.FORWARD;

  void set(Watch value) {
    watch = value;
  }

  void phase(Phase value) {
    phase = value;
    adapters(false);
  }

  void begin(Part part) {
    if (watch != null) {
      watch.begin(part);
    }
  }

  /** Products of the base model, or all that adapters and gates add. */
  void adapters(boolean are) {
    begin(
        switch (phase) {
          case FORWARD -> are ? Part.FORWARD_ADAPTERS : Part.FORWARD;
          case AGAIN -> Part.RECOMPUTATION;
          case BACKWARD -> are ? Part.BACKWARD_ADAPTERS : Part.BACKWARD;
        });
  }

  void gradients() {
    begin(Part.WEIGHT_GRADIENTS);
  }

  void attention() {
    begin(
        switch (phase) {
          case FORWARD -> Part.ATTENTION;
          case AGAIN -> Part.RECOMPUTATION;
          case BACKWARD -> Part.ATTENTION_BACKWARD;
        });
  }

  void between() {
    begin(phase == Phase.AGAIN ? Part.RECOMPUTATION : Part.BETWEEN_PRODUCTS);
  }
}
