package org.meteora.eval;

import java.util.List;
import org.meteora.moe.RoutingListener;

/** Watches an evaluation's batches, for reports on routing. */
public interface BatchObserver {
  /**
   * Called before a batch is generated.
   *
   * @param samples the rows' positions in the task's data
   * @param prompts token ids of the rows, not padded; the batch pads them on the left to the
   *     longest
   * @return hears the gates of this batch; rows that finish leave the batch
   */
  RoutingListener before(List<Integer> samples, List<int[]> prompts);

  /**
   * Called after the batch, with the same rows.
   *
   * @param newTokens each row's answer, EOS and padding left out
   */
  void after(List<Integer> samples, List<int[]> prompts, List<int[]> newTokens);
}
