package org.meteora.eval.routes;

import java.util.Arrays;
import java.util.List;
import java.util.function.Function;
import org.meteora.moe.Choice;
import org.meteora.moe.Router;
import org.meteora.moe.SequenceRouter;
import org.meteora.router.Oracle;

/**
 * {@link Oracle} on composite prompts, whose parts are known: a question's tokens, and in worked
 * examples its answer's, have its task's adapter; what belongs to no task has none. Behind the
 * prompt every token has the adapter of the line that the next token belongs to: line i answers
 * task i.
 */
public final class CompositeOracle implements Router.Reading {
  private static final int NONE = -1;

  private final List<String> tasks;
  private final int[] adapters;
  private final Function<int[], String> decode;

  /**
   * @param oracle knows the adapters by their tasks
   * @param tasks the composite's, in order
   * @param decode token ids to text, special tokens kept
   * @throws org.meteora.UserException when a task has no adapter
   */
  public CompositeOracle(Oracle oracle, List<String> tasks, Function<int[], String> decode) {
    this.tasks = List.copyOf(tasks);
    this.adapters = tasks.stream().mapToInt(oracle::adapter).toArray();
    this.decode = decode;
  }

  @Override
  public String name() {
    return "oracle";
  }

  @Override
  public SequenceRouter of(int[] prompt) {
    return new Places(this, ofPrompt(prompt), new int[0]);
  }

  /** Each token's adapter. */
  private int[] ofPrompt(int[] prompt) {
    var result = Part.numbers(tasks, prompt, decode, task -> adapters[tasks.indexOf(task)]);
    int end = prompt.length;
    while (end > 0 && result[end - 1] == NONE) {
      end--;
    }
    Arrays.fill(result, Math.min(end, prompt.length - 1), prompt.length, adapters[0]);
    return result;
  }

  /** The adapter of an answer's newest token. */
  private int ofNewest(int[] answer) {
    var text = decode.apply(answer);
    long lines = text.lines().filter(line -> !line.isBlank()).count();
    long ended = text.endsWith("\n") ? lines : Math.max(0, lines - 1);
    return adapters[(int) Math.min(ended, adapters.length - 1)];
  }

  /**
   * What serves a sequence.
   *
   * @param places each token's adapter
   * @param answer its tokens so far
   */
  private record Places(CompositeOracle oracle, int[] places, int[] answer)
      implements SequenceRouter {
    @Override
    public SequenceRouter next(int token) {
      var longer = with(answer, token);
      return new Places(oracle, with(places, oracle.ofNewest(longer)), longer);
    }

    private static int[] with(int[] values, int last) {
      var longer = Arrays.copyOf(values, values.length + 1);
      longer[values.length] = last;
      return longer;
    }

    @Override
    public Choice choose(int first, int tokens) {
      var choice = new Choice(tokens, 1);
      for (int i = 0; i < tokens; i++) {
        int adapter = first + i < 0 ? NONE : places[first + i];
        choice.indices()[i] = Math.max(adapter, 0);
        choice.weights()[i] = adapter == NONE ? 0 : 1;
      }
      return choice;
    }
  }
}
