package org.meteora.moe;

import org.meteora.UserException;

/**
 * How many adapters act on a token, how their weights are spread, and who chooses them.
 *
 * @param topK adapters for each token, at least 1; cut to the number there is
 * @param temperature T of the inference equation, above 0
 * @param router who chooses: the gates, unless said otherwise
 */
public record RoutingSettings(int topK, double temperature, Router router) {
  /** k, for help texts. */
  public static final int DEFAULT_TOP_K = 2;

  /**
   * The paper's k = 2 and T = 1: what holds for models, training, benchmarks and blocks alike where
   * no option, file or request says otherwise; commands give composite tasks a T of their own.
   */
  public static final RoutingSettings DEFAULT = new RoutingSettings(DEFAULT_TOP_K, 1);

  public RoutingSettings {
    if (topK < 1) {
      throw new UserException("routing-top-k must be at least 1, it is " + topK);
    }
    if (!(temperature > 0) || Double.isInfinite(temperature)) {
      throw new UserException("routing-temperature must be a number above 0, it is " + temperature);
    }
  }

  /** The gates choose. */
  public RoutingSettings(int topK, double temperature) {
    this(topK, temperature, Router.GATES);
  }

  /**
   * Whether a sequence has a router of its own with this, of {@link SequenceRouter}s: from its
   * beginning, or when its prompt has been looked at.
   */
  public boolean isOfEach() {
    return router instanceof Router.Fixed
        || router instanceof Router.Rows
        || router instanceof Router.Reading
        || router instanceof Router.Probing;
  }

  /** Adapters of a token at most: k, but of a router that is fixed as many as it has. */
  public int width() {
    return router instanceof Router.Fixed fixed ? fixed.topK() : topK;
  }

  /** The same with another T. */
  public RoutingSettings withTemperature(double value) {
    return new RoutingSettings(topK, value, router);
  }

  /** The same with another router. */
  public RoutingSettings withRouter(Router value) {
    return new RoutingSettings(topK, temperature, value);
  }
}
