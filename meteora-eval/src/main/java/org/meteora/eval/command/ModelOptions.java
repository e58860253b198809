package org.meteora.eval.command;

import java.util.Optional;
import org.meteora.UserException;
import org.meteora.checkpoint.LoadedModel;
import org.meteora.data.config.DeviceOptions;
import org.meteora.data.config.FlagOptions;
import org.meteora.data.config.MeteoraConfig;
import org.meteora.data.config.RoutingTopKOption;
import org.meteora.router.Routers;
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
      names = "--routing-temperature",
      paramLabel = "auto|T",
      description =
          "Divides the gates' logits (default: auto, which is 15, 20, 30 for --task with 3, 5, 10"
              + " tasks in one prompt, else 1).")
  private String routingTemperature;

  @Option(
      names = "--router",
      paramLabel = "NAME",
      defaultValue = "gate",
      description =
          "Who chooses among the adapters of --model meteora: gate (MeteoRA's), arrow, spectr,"
              + " logo, logo-entropy, phatgoose (train-lora --phatgoose), lora-flow (train --router"
              + " lora-flow, whose result is the --meteora-ckpt-path), uniform (all alike), oracle"
              + " (eval: the task's own). All but gate do without a MeteoRA checkpoint and then"
              + " take all of --adapter-dir (default: gate).")
  private String router;

  @Option(
      names = "--batch-invariant",
      description =
          "What comes of a prompt is the same to the last bit however many run beside it, in what"
              + " order, and what was known of it before. On the CPU in f32, with gates or a single"
              + " adapter; on a GPU at the pace of 64 sequences at once.")
  private boolean batchInvariant;

  @Mixin private RoutingTopKOption topK;
  @Mixin private DeviceOptions device;
  @Mixin private FlagOptions flags;

  /** What {@code --device} says. */
  public String device() {
    return device.device().orElse(AUTO);
  }

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
    return spec(config, autoTemperature, device());
  }

  /** As above, onto a device of its own. */
  LoadedModel.Spec spec(MeteoraConfig config, double autoTemperature, String onto) {
    var chosenTopK = topK.value().or(config::routingTopK);
    var base = config.requireBaseModelPath();
    boolean gate = Routers.require(router).equals(Routers.GATE);
    if (model.equals("meteora") && (gate || config.adapterDir().isEmpty())) {
      config.requireMeteoraCkptPath();
    } else if (!model.equals("base")) {
      config.requireAdapterDir();
    }
    return new LoadedModel.Spec(
        base,
        model,
        config.meteoraCkptPath(),
        config.adapterDir(),
        chosenTopK,
        Optional.of(temperature(config, autoTemperature)),
        onto,
        device.dtype(),
        batchInvariant ? flags.over(config).invariant() : flags.over(config),
        router);
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
