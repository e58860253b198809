package org.meteora.parallel;

import ai.djl.ndarray.NDArray;
import java.util.List;
import java.util.Optional;
import org.meteora.cuda.driver.Cuda;

/** Lets tests of other packages read other processes' memory, as NCCL's processes do. */
public final class PeerDoor {
  private PeerDoor() {}

  /** As {@link Collective#constants}, on a GPU; empty where that cannot be read directly. */
  public static Optional<Collective.Constants> constants(Collective all, List<NDArray> parts) {
    var device = parts.getFirst().getDevice().getDeviceId();
    return PeerConstants.of(all, Cuda.device(device), parts);
  }
}
