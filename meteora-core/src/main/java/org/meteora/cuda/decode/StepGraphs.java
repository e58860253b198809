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
 * Runs the launches of steps as CUDA graphs, one for each number of rows, captured once a few steps
 * of so many have shown that they go on; one launch after the other before that, and where graphs
 * are turned off or cannot be captured.
 */
final class StepGraphs implements AutoCloseable {
  private static final Logger LOG = LoggerFactory.getLogger(StepGraphs.class);

  /** Steps of so many rows that are launched one by one before a capture is worth its time. */
  private static final int FIRST = 3;

  private final Stream stream;
  private final Map<Integer, Graph> graphs = new HashMap<>();
  private final Map<Integer, Integer> steps = new HashMap<>();
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
    boolean worth = enabled && steps.merge(rows, 1, Integer::sum) > FIRST;
    if (worth && !graphs.containsKey(rows)) {
      try {
        graphs.put(rows, stream.capture(() -> launches.forEach(launch -> launch.on(stream))));
      } catch (UserException e) {
        LOG.warn("decode runs without CUDA graphs: {}", e.getMessage());
        enabled = false;
      }
    }
    if (graphs.containsKey(rows) && enabled) {
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
    steps.clear();
  }
}
