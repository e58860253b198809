package org.meteora.router;

import java.nio.file.Path;
import java.util.List;
import java.util.Optional;
import org.meteora.UserException;
import org.meteora.model.Llama;
import org.meteora.moe.Router;

/** The routers by the names that {@code --router} gives them. */
public final class Routers {
  /** The one that needs a MeteoRA checkpoint. */
  public static final String GATE = "gate";

  /** All there are. */
  public static final List<String> NAMES =
      List.of(
          GATE,
          "arrow",
          "spectr",
          "logo",
          "logo-entropy",
          "phatgoose",
          LoraFlow.NAME,
          "uniform",
          "oracle");

  private Routers() {}

  /**
   * @throws UserException when no router is called so
   */
  public static String require(String name) {
    if (!NAMES.contains(name)) {
      throw new UserException("no router " + name + ": choose one of " + String.join(", ", NAMES));
    }
    return name;
  }

  /**
   * Where trained routers' values lie.
   *
   * @param adapterDir adapters' folders by name, with their vectors for phatgoose
   * @param loraFlow lora-flow's file
   */
  public record Sources(Optional<Path> adapterDir, Optional<Path> loraFlow) {
    /**
     * @throws UserException when a router's values cannot be anywhere
     */
    public void require(String router) {
      if (router.equals("phatgoose") && adapterDir.isEmpty()) {
        throw new UserException(
            "--router phatgoose: its vectors lie beside the adapters: set adapter_dir"
                + " (--adapter-dir)");
      }
      if (router.equals(LoraFlow.NAME) && loraFlow.isEmpty()) {
        throw new UserException(
            "--router lora-flow: name the folder that \"meteora train --router lora-flow\" wrote"
                + " by --meteora-ckpt-path");
      }
    }

    /** The files that a router over these adapters reads. */
    public List<Path> files(String router, List<String> adapters) {
      return switch (router) {
        case "phatgoose" ->
            adapters.stream()
                .map(name -> adapterDir.orElseThrow().resolve(name).resolve(PhatgooseFile.NAME))
                .toList();
        case LoraFlow.NAME -> List.of(loraFlow.orElseThrow());
        default -> List.of();
      };
    }
  }

  /** {@link #of(String, Llama, List, Sources)} for what is not trained. */
  public static Router of(String name, Llama model, List<String> adapters) {
    return of(name, model, adapters, new Sources(Optional.empty(), Optional.empty()));
  }

  /**
   * Makes a router; what it derives from the adapters belongs to the model's manager.
   *
   * @param name of {@link #NAMES}
   * @param adapters their names, in the order of their indices
   * @throws UserException when what it was trained to is missing or does not fit
   */
  public static Router of(String name, Llama model, List<String> adapters, Sources sources) {
    sources.require(name);
    return switch (require(name)) {
      case "arrow" -> new Arrow(model);
      case "spectr" -> new Spectr(model);
      case "logo" -> new Logo(model, Logo.Signal.NORM);
      case "logo-entropy" -> new Logo(model, Logo.Signal.INVERSE_ENTROPY);
      case "phatgoose" -> PhatgooseFile.router(model, sources.files(name, adapters));
      case LoraFlow.NAME -> LoraFlowFile.router(model, sources.loraFlow().orElseThrow(), adapters);
      case "uniform" -> Router.uniform(adapters.size());
      case "oracle" -> new Oracle(adapters);
      case GATE -> Router.GATES;
      default -> throw new IllegalStateException(name + " is among the names and is not made");
    };
  }
}
