package org.meteora.cuda.driver;

/**
 * A captured chain of launches, ready to run again with one call; the addresses in it stay those of
 * the capture.
 */
public final class Graph implements AutoCloseable {
  private final long graph;
  private final long executable;

  Graph(long graph) {
    this.graph = graph;
    this.executable =
        CudaDriver.pointer("instantiating a graph", CudaDriver.GRAPH_INSTANTIATE, graph, 0L);
  }

  public void launch(Stream stream) {
    CudaDriver.check(
        "launching a graph",
        () -> (int) CudaDriver.GRAPH_LAUNCH.invokeExact(executable, stream.handle()));
  }

  @Override
  public void close() {
    CudaDriver.call("dropping a graph", CudaDriver.GRAPH_EXEC_DESTROY, executable);
    CudaDriver.call("dropping a graph", CudaDriver.GRAPH_DESTROY, graph);
  }
}
