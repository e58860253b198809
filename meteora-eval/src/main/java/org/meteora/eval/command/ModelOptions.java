package org.meteora.eval.command;

import java.util.Locale;
import java.util.Optional;
import org.meteora.UserException;
import org.meteora.checkpoint.LoadedModel;
import org.meteora.data.config.FlagOptions;
import org.meteora.data.config.MeteoraConfig;
import picocli.CommandLine.Mixin;
import picocli.CommandLine.Option;

/** Which model to run, and how its adapters are chosen. */
public final class ModelOptions {
  private static final String AUTO = "auto";

  @Option(
      names = "--model",
      paramLabel = "NAME",
      defaultValue = "meteora",
      description =
          "meteora, base (no adapter), or the name of one adapter in --adapter-dir (default:"
              + " meteora).")
  private String model;

  @Option(
      names = "--routing-top-k",
      paramLabel = "K",
      description = "Adapters that act on a token (default: 2).")
  private Integer routingTopK;

  @Option(
      names = "--routing-temperature",
      paramLabel = "auto|T",
      description =
          "Divides the gates' logits (default: auto, which is 15, 20, 30 for --task with 3, 5, 10"
              + " tasks in one prompt, else 1).")
  private String routingTemperature;

  @Option(
      names = "--device",
      paramLabel = "DEVICE",
      defaultValue = "auto",
      description =
          "auto (a GPU if there is one, else the CPU), cpu, cuda or cuda:i (default: auto).")
  private String device;

  @Option(
      names = "--dtype",
      paramLabel = "TYPE",
      description = "f32, f16 or bf16 (default: f32 on the CPU, bf16 on CUDA).")
  private String dtype;

  @Mixin private FlagOptions flags;

  /** {@code meteora}, {@code base} or an adapter's name. */
  public String model() {
    return model;
  }

  /**
   * What to load.
   *
   * @param autoTemperature the routing temperature that {@code auto} stands for
   * @throws UserException when a value is out of range or a path is not set
   */
  public LoadedModel.Spec spec(MeteoraConfig config, double autoTemperature) {
    if (routingTopK != null && routingTopK < 1) {
      throw new UserException("--routing-top-k must be at least 1, not " + routingTopK);
    }
    var base = config.requireBaseModelPath();
    if (model.equals("meteora")) {
      config.requireMeteoraCkptPath();
    } else if (!model.equals("base")) {
      config.requireAdapterDir();
    }
    return new LoadedModel.Spec(
        base,
        model,
        config.meteoraCkptPath(),
        config.adapterDir(),
        Optional.ofNullable(routingTopK).or(config::routingTopK),
        Optional.of(temperature(config, autoTemperature)),
        device,
        Optional.ofNullable(dtype).map(name -> name.toLowerCase(Locale.ROOT)),
        flags.over(config));
  }

  private double temperature(MeteoraConfig config, double auto) {
    var given = Optional.ofNullable(routingTemperature).or(config::routingTemperature).orElse(AUTO);
    if (given.equals(AUTO)) {
      return auto;
    }
    try {
      double value = Double.parseDouble(given);
      if (value > 0 && value < Double.POSITIVE_INFINITY) {
        return value;
      }
    } catch (NumberFormatException e) {
      // said below
    }
    throw new UserException("--routing-temperature must be auto or a number above 0, not " + given);
  }
}
