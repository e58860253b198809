package org.meteora.tensor;

import ai.djl.Device;
import ai.djl.ndarray.NDManager;
import org.meteora.UserException;

/** What the option {@code --device} names. */
public final class Devices {
  private Devices() {}

  /**
   * The device that a name stands for; libtorch is loaded, the one that fits.
   *
   * @param name {@code auto} (a GPU if there is one that works here, else the CPU), {@code cpu},
   *     {@code cuda} or {@code cuda:i}
   * @throws UserException if there is no such device
   */
  public static Device parse(String name) {
    switch (name) {
      case "cpu":
        LibTorch.load(false);
        return Device.cpu();
      case "auto":
        return gpus() > 0 ? Device.gpu(0) : Device.cpu();
      default:
        if (!name.matches("cuda(:\\d{1,3})?")) {
          throw new UserException("unknown device \"%s\": choose auto, cpu, cuda or cuda:i", name);
        }
        int index = name.length() > 5 ? Integer.parseInt(name.substring(5)) : 0;
        int count = gpus();
        if (index < count) {
          return Device.gpu(index);
        }
        throw new UserException(
            count > 0
                ? "no CUDA device " + index + ": there are " + count + ", counted from 0"
                : LibTorch.driver().gpus() == 0
                    ? "no CUDA device: there is no NVIDIA driver here, or it sees no GPU; --device"
                        + " cpu or auto computes on the CPU"
                    : "no CUDA device: "
                        + LibTorch.load()
                        + " was built without CUDA; install PyTorch 2.7 or newer (python3 -m pip"
                        + " install torch), or name one with METEORA_TORCH=FOLDER");
    }
  }

  /**
   * Whether a name stands for a GPU.
   *
   * @param name as {@link #parse}
   */
  public static boolean isGpu(String name) {
    return parse(name).isGpu();
  }

  /**
   * A manager of tensors on a device, of no parent: the caller closes it. Every use of DJL begins
   * here, since libtorch is chosen and DJL fitted to it first.
   */
  public static NDManager newManager(Device device) {
    LibTorch.load(device.isGpu());
    return NDManager.newBaseManager(device, "PyTorch");
  }

  /** A manager of tensors in the host's memory, as {@link #newManager}. */
  public static NDManager newHostManager() {
    return newManager(Device.cpu());
  }

  /** The name of a device: {@code cpu} or {@code cuda:i}. */
  public static String name(Device device) {
    return device.isGpu() ? "cuda:" + device.getDeviceId() : "cpu";
  }

  /** How many GPUs there are that the libtorch of this process can use. */
  public static int gpus() {
    return LibTorch.load().hasCuda() ? LibTorch.driver().gpus() : 0;
  }
}
