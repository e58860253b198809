package org.meteora.moe;

import ai.djl.ndarray.NDArray;
import java.util.Optional;

/**
 * What one request wants of the gated layers; it travels through the model, which keeps nothing of
 * it. Immutable.
 *
 * @param routing k, T and the router
 * @param mode which implementation the flags ask for
 * @param training training's equation for the weights, and gradients to gate, A and B
 * @param dropout whether a training pass drops adapters' inputs; evaluations between steps do not
 * @param gateLogits whether outputs must have the gates' logits; without them few tokens on a GPU
 *     need fewer launches
 * @param listener sees every routing
 * @param tape runs the gated layers of a recorded training pass; without one they run themselves
 * @param layerInput what q, k and v of the present decoder layer read, {@code (…, hidden)}; for
 *     routers that weigh the adapters of a whole layer by it
 */
public record ForwardContext(
    RoutingSettings routing,
    ForwardMode mode,
    boolean training,
    boolean dropout,
    boolean gateLogits,
    Optional<RoutingListener> listener,
    Optional<GatedTape> tape,
    Optional<NDArray> layerInput) {

  /** Inference with these settings, as the flags have it; nobody listens. */
  public static ForwardContext inference(RoutingSettings routing, Flags flags) {
    var single = flags.singleAdapter();
    return new ForwardContext(
        single.isPresent() ? routing.withRouter(Router.fixed(single.getAsInt())) : routing,
        flags.mode(),
        false,
        false,
        false,
        Optional.empty(),
        Optional.empty(),
        Optional.empty());
  }

  /** The same in training, with gate logits in the outputs. */
  public ForwardContext forTraining(boolean withDropout) {
    return new ForwardContext(routing, mode, true, withDropout, true, listener, tape, layerInput);
  }

  /** The same with other settings. */
  public ForwardContext withRouting(RoutingSettings value) {
    return new ForwardContext(
        value, mode, training, dropout, gateLogits, listener, tape, layerInput);
  }

  /** The same by another implementation. */
  public ForwardContext withMode(ForwardMode value) {
    return new ForwardContext(
        routing, value, training, dropout, gateLogits, listener, tape, layerInput);
  }

  /** The same with or without gate logits in the outputs. */
  public ForwardContext withGateLogits(boolean value) {
    return new ForwardContext(routing, mode, training, dropout, value, listener, tape, layerInput);
  }

  /** The same with another listener. */
  public ForwardContext withListener(Optional<RoutingListener> value) {
    return new ForwardContext(
        routing, mode, training, dropout, gateLogits, value, tape, layerInput);
  }

  /** The same on a tape. */
  public ForwardContext withTape(Optional<GatedTape> value) {
    return new ForwardContext(
        routing, mode, training, dropout, gateLogits, listener, value, layerInput);
  }

  /** The same inside a decoder layer. */
  public ForwardContext withLayerInput(NDArray x) {
    return new ForwardContext(
        routing, mode, training, dropout, gateLogits, listener, tape, Optional.of(x));
  }

  /** Whether the flags leave the implementation to the backend. */
  public boolean backendChooses() {
    return mode == ForwardMode.AUTO || mode == ForwardMode.FUSED || mode == ForwardMode.INVARIANT;
  }
}
