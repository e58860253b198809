package org.meteora.router;

import java.util.List;
import org.meteora.UserException;
import org.meteora.model.Llama;
import org.meteora.moe.Router;

/** The routers by the names that {@code --router} gives them. */
public final class Routers {
  /** The one that needs a MeteoRA checkpoint. */
  public static final String GATE = "gate";

  /** All there are. */
  public static final List<String> NAMES =
      List.of(GATE, "arrow", "spectr", "logo", "uniform", "oracle");

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
   * Makes a router; what it derives from the adapters belongs to the model's manager.
   *
   * @param name of {@link #NAMES}
   * @param adapters their names, in the order of their indices
   */
  public static Router of(String name, Llama model, List<String> adapters) {
    return switch (require(name)) {
      case "arrow" -> new Arrow(model);
      case "spectr" -> new Spectr(model);
      case "logo" -> new Logo(model);
      case "uniform" -> Router.uniform(adapters.size());
      case "oracle" -> new Oracle(adapters);
      default -> Router.GATES;
    };
  }
}
