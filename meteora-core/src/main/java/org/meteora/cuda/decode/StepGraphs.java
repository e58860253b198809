package org.meteora.cuda.decode;

import java.util.HashMap;
import java.util.List;
import java.util.Map;
import org.meteora.UserException;
import org.meteora.cuda.driver.Graph;
import org.meteora.cuda.driver.Stream;
import org.meteora.cuda.driver.Work;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/**
 * Runs the launches of steps as CUDA graphs, one for each number of rows, captured at the first
 * step; one launch after the other where graphs are turned off or cannot be captured.
 */
final class StepGraphs implements AutoCloseable {
  private static final Logger LOG = LoggerFactory.getLogger(StepGraphs.class);

  private final Stream stream;
  private final Map<Integer, Graph> graphs = new HashMap<>();
  private boolean enabled = true;

  StepGraphs(Stream stream) {
    this.stream = stream;
  }

  /** Turns graphs off or on; the same kernels run. */
  void enable(boolean is) {
    enabled = is;
  }

  /** Queues a step of {@code rows}. */
  void launch(int rows, List<? extends Work> launches) {
    if (enabled && !graphs.containsKey(rows)) {
      try {
        graphs.put(rows, stream.capture(() -> launches.forEach(launch -> launch.on(stream))));
      } catch (UserException e) {
        LOG.warn("decode runs without CUDA graphs: {}", e.getMessage());
        enabled = false;
      }
    }
    if (enabled) {
      graphs.get(rows).launch(stream);
    } else {
      launches.forEach(launch -> launch.on(stream));
    }
  }

  /** Forgets the graphs; they are captured anew. */
  @Override
  public void close() {
    graphs.values().forEach(Graph::close);
    graphs.clear();
  }
}
