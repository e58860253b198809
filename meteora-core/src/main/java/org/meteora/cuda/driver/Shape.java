package org.meteora.cuda.driver;

/**
 * The blocks and threads of a launch.
 *
 * @param x blocks beside each other in x; y and z likewise
 * @param threads of a block
 * @param shared bytes of dynamic shared memory of a block
 * @param overlap lets the blocks start before the kernel in front has ended (programmatic dependent
 *     launch; compute capability 9.0 and newer, nothing before); only for kernels that wait for it
 *     themselves
 * @param cluster this many blocks beside each other in x run at the same time and read each other's
 *     shared memory; compute capability 9.0 and newer, 1 anywhere
 */
public record Shape(int x, int y, int z, int threads, int shared, boolean overlap, int cluster) {
  /** Without dynamic shared memory, overlap and clusters. */
  public static Shape of(int x, int y, int z, int threads) {
    return new Shape(x, y, z, threads, 0, false, 1);
  }

  /** The same with so many bytes of dynamic shared memory. */
  public Shape withShared(int bytes) {
    return new Shape(x, y, z, threads, bytes, overlap, cluster);
  }

  /** The same with or without overlap. */
  public Shape withOverlap(boolean is) {
    return new Shape(x, y, z, threads, shared, is, cluster);
  }

  /** The same in clusters of so many blocks. */
  public Shape withCluster(int blocks) {
    return new Shape(x, y, z, threads, shared, overlap, blocks);
  }
}
