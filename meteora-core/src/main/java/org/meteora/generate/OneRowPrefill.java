package org.meteora.generate;

import java.util.ArrayList;
import java.util.List;
import org.meteora.moe.ForwardContext;

/**
 * Runs prompts through a model one after another in one row: no more than the tokens of each that
 * are not known is computed, however different their lengths are. A pass ends where its budget
 * does, within a prompt too.
 */
abstract sealed class OneRowPrefill implements Prefill permits BlockPrefill, PackedPrefill {
  private final List<int[]> prompts;
  private final int[] there; // how many tokens of each have been run, or were known
  private int current; // the first prompt of which something is left
  private float[] logits;

  /**
   * @param known how many of each prompt's first tokens are
   */
  OneRowPrefill(List<int[]> prompts, int[] known) {
    this.prompts = prompts;
    this.there = known.clone();
  }

  /**
   * The next tokens of a prompt.
   *
   * @param prompt its place in the list
   * @param first how many are before
   */
  record Piece(int prompt, int first, int count) {}

  /** What comes next, so many tokens at most. */
  List<Piece> next(long most) {
    var pieces = new ArrayList<Piece>();
    long left = most;
    for (int i = current; i < there.length && left > 0; i++) {
      int count = (int) Math.min(left, prompts.get(i).length - there[i]);
      pieces.add(new Piece(i, there[i], count));
      left -= count;
    }
    return pieces;
  }

  /** Runs what {@link #next} gave. */
  void run(List<Piece> pieces, ForwardContext context) {
    var ids = new long[pieces.stream().mapToInt(Piece::count).sum()];
    int at = 0;
    for (var piece : pieces) {
      for (int i = 0; i < piece.count(); i++) {
        ids[at++] = prompts.get(piece.prompt())[piece.first() + i];
      }
    }
    var its = logits(ids, pieces, context);
    int vocab = its.length / pieces.size();
    if (logits == null) {
      logits = new float[prompts.size() * vocab];
    }
    for (int i = 0; i < pieces.size(); i++) {
      int prompt = pieces.get(i).prompt();
      there[prompt] += pieces.get(i).count();
      if (there[prompt] == prompts.get(prompt).length) {
        System.arraycopy(its, i * vocab, logits, prompt * vocab, vocab);
        current++;
      }
    }
  }

  /**
   * Runs tokens.
   *
   * @param ids of all pieces
   * @return of each piece's last token {@code (pieces, vocab)}
   */
  abstract float[] logits(long[] ids, List<Piece> pieces, ForwardContext context);

  @Override
  public boolean isDone() {
    return current == prompts.size();
  }

  @Override
  public float[] logits() {
    return logits;
  }
}
