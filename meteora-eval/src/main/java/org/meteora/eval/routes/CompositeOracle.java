package org.meteora.eval.routes;

import ai.djl.ndarray.NDArray;
import java.util.Arrays;
import java.util.List;
import java.util.function.Function;
import java.util.stream.IntStream;
import org.meteora.moe.Choice;
import org.meteora.moe.GatedLinear;
import org.meteora.moe.Router;
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
  public Router of(List<int[]> prompts) {
    return new Rows(
        prompts.stream().map(this::ofPrompt).toList(),
        prompts.stream().map(prompt -> new Written(new int[0], NONE)).toList());
  }

  /** Each token's adapter. */
  private int[] ofPrompt(int[] prompt) {
    var result = new int[prompt.length];
    Arrays.fill(result, NONE);
    var parts = Part.composite(tasks, RoutedToken.of(decode, id -> "", prompt, prompt.length));
    int end = 0;
    for (var part : parts) {
      Arrays.fill(result, part.from(), part.to(), adapters[tasks.indexOf(part.task())]);
      end = part.to();
    }
    Arrays.fill(result, Math.min(end, prompt.length - 1), prompt.length, adapters[0]);
    return result;
  }

  /**
   * What has been run of an answer.
   *
   * @param tokens behind the prompt; none while the prompt itself is run
   * @param adapter of the newest
   */
  private record Written(int[] tokens, int adapter) {}

  private Written with(Written before, int token) {
    var tokens = Arrays.copyOf(before.tokens(), before.tokens().length + 1);
    tokens[tokens.length - 1] = token;
    var text = decode.apply(tokens);
    long lines = text.lines().filter(line -> !line.isBlank()).count();
    long ended = text.endsWith("\n") ? lines : Math.max(0, lines - 1);
    return new Written(tokens, adapters[(int) Math.min(ended, adapters.length - 1)]);
  }

  /** What serves a batch. */
  private final class Rows implements Choosing {
    private final List<int[]> prompts;
    private final List<Written> written;

    /**
     * @param prompts each row's adapters, token by token
     * @param written each row's answer so far
     */
    Rows(List<int[]> prompts, List<Written> written) {
      this.prompts = prompts;
      this.written = written;
    }

    @Override
    public String name() {
      return CompositeOracle.this.name();
    }

    @Override
    public Router next(int[] tokens) {
      return new Rows(
          prompts,
          IntStream.range(0, tokens.length)
              .mapToObj(row -> with(written.get(row), tokens[row]))
              .toList());
    }

    @Override
    public Router keepRows(int[] rows) {
      return new Rows(
          Arrays.stream(rows).mapToObj(prompts::get).toList(),
          Arrays.stream(rows).mapToObj(written::get).toList());
    }

    @Override
    public Choice choose(GatedLinear linear, NDArray x, int rows) {
      int tokens = (int) x.getShape().get(0);
      int width = tokens / rows;
      var choice = new Choice(tokens, 1);
      for (int row = 0; row < rows; row++) {
        for (int t = 0; t < width; t++) {
          int adapter = adapter(row, width - 1 - t);
          choice.indices()[row * width + t] = Math.max(adapter, 0);
          choice.weights()[row * width + t] = adapter == NONE ? 0 : 1;
        }
      }
      return choice;
    }

    /** Of the token so far from the end of what is run; prompts are padded on their left. */
    private int adapter(int row, int fromEnd) {
      var answer = written.get(row);
      if (answer.tokens().length > 0) {
        return answer.adapter();
      }
      int at = prompts.get(row).length - 1 - fromEnd;
      return at < 0 ? NONE : prompts.get(row)[at];
    }
  }
}
