package org.meteora.router;

import java.util.List;
import org.meteora.UserException;
import org.meteora.moe.Router;

/**
 * The task's own adapter on all its tokens: what a router that is never wrong would choose. It must
 * be told the task, see {@link #of}.
 *
 * @param adapters names by index
 */
public record Oracle(List<String> adapters) implements Router.Probing {
  @Override
  public String name() {
    return "oracle";
  }

  /**
   * @param task whose adapter has its name
   * @throws UserException when there is none
   */
  public Router of(String task) {
    return Router.fixed(name(), adapter(task));
  }

  /**
   * The index of the adapter with a task's name.
   *
   * @throws UserException when there is none
   */
  public int adapter(String task) {
    int adapter = adapters.indexOf(task);
    if (adapter < 0) {
      throw new UserException(
          "--router oracle: no adapter is called %s like the task; there are %s"
              .formatted(task, String.join(", ", adapters)));
    }
    return adapter;
  }

  /**
   * @throws UserException always: prompts alone do not say which task they belong to
   */
  @Override
  public Probe probe() {
    throw new UserException(
        "--router oracle must know whose task a prompt is: only meteora eval does");
  }
}
