package org.meteora.data.config;

import org.meteora.UserException;
import org.meteora.parallel.Collective;
import picocli.CommandLine.Option;

/** {@code --shard-base}, beside {@link ProcessOptions}. */
public final class ShardBaseOption {
  @Option(
      names = "--shard-base",
      description =
          "The processes share the base model's weights, for a model that does not fit one GPU:"
              + " each keeps a part, and every layer is gathered when a pass comes to it.")
  private boolean shardBase;

  /** Whether it was given. */
  public boolean isGiven() {
    return shardBase;
  }

  /**
   * The processes that share the base model's weights.
   *
   * @param all of the run
   * @return one process, which has them whole, without the option
   * @throws UserException with the option where there is one process
   */
  public Collective sharers(Collective all) {
    if (shardBase && all.size() == 1) {
      throw new UserException(
          "--shard-base shares the base model among several processes, and there is one: add"
              + " --processes N, or start them by torchrun, mpirun or srun");
    }
    return shardBase ? all : Collective.single();
  }
}
