package org.meteora.cuda.kernel;

import org.meteora.cuda.kernel.TrainingKernels.Dropout;

/** What the kernels' dropout draws, on the host. */
public final class DropoutDraw {
  private DropoutDraw() {}

  /** Of an element: 0, or the scale. */
  public static float factor(Dropout of, long row, int column, int columns) {
    long place = row * ((columns + 3) / 4) + column / 4;
    long z = of.seed() + place * 0x9e3779b97f4a7c15L;
    z = (z ^ (z >>> 33)) * 0xff51afd7ed558ccdL;
    z = (z ^ (z >>> 33)) * 0xc4ceb9fe1a85ec53L;
    z ^= z >>> 33;
    return (z >>> 16 * (column % 4) & 0xffff) < of.threshold() ? 0 : of.scale();
  }
}
