package org.meteora.cli;

import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.Callable;
import java.util.function.Supplier;
import org.meteora.UserException;
import org.meteora.checkpoint.LoadedModel;
import org.meteora.data.config.ConfigOptions;
import org.meteora.data.config.JsonOption;
import org.meteora.data.config.Limits;
import org.meteora.eval.command.GenerationOptions;
import org.meteora.eval.command.MaxNewTokensOption;
import org.meteora.eval.command.ModelOptions;
import org.meteora.generate.AnswerListener;
import org.meteora.generate.Request;
import org.meteora.generate.StopTexts;
import org.meteora.generate.TextStream;
import org.meteora.io.Jsonl;
import org.meteora.parallel.Collective;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;
import picocli.CommandLine.ArgGroup;
import picocli.CommandLine.Command;
import picocli.CommandLine.Mixin;
import picocli.CommandLine.Option;

/** {@code meteora generate}: tries a model on prompts. */
@Command(
    name = "generate",
    description =
        "Answers prompts, streaming to the terminal; with --json as prompt, text and token_ids.",
    footer = {
      "",
      "Examples:",
      "  meteora generate --prompt '[INST] Is seven a prime number? [/INST]' --greedy",
      "  meteora generate --model alpaca --prompts prompts.jsonl --json --batch-size 8"
          + " --max-new-tokens 100"
    })
final class GenerateCommand implements Callable<Integer> {
  private static final Logger LOG = LoggerFactory.getLogger(GenerateCommand.class);

  @Mixin private ConfigOptions config;
  @Mixin private ModelOptions model;
  @Mixin private GenerationOptions generation;
  @Mixin private MaxNewTokensOption maxNewTokens;
  @Mixin private JsonOption json;

  @Option(
      names = "--batch-size",
      paramLabel = "N",
      defaultValue = "1",
      description = "Prompts that are answered at once, at most (default: ${DEFAULT-VALUE}).")
  private int batchSize;

  @Option(
      names = "--stop",
      paramLabel = "TEXT",
      description = "An answer ends before this text; may be repeated.")
  private List<String> stops = List.of();

  @ArgGroup(exclusive = true, multiplicity = "1")
  private Input input;

  private static final class Input {
    @Option(names = "--prompt", paramLabel = "TEXT", description = "The prompt, taken as it is.")
    private String prompt;

    @Option(
        names = "--prompts",
        paramLabel = "FILE",
        description =
            "Lines of {\"prompt\": …}; - is standard input. A line may have settings of its own,"
                + " under the options' names: greedy, temperature, top_p, top_k, seed,"
                + " no_repeat_ngram_size, max_new_tokens, stop, routing_top_k, routing_temperature,"
                + " router, and adapter (a name, or base). A line that cannot be answered is named"
                + " and skipped; the exit code is then 1.")
    private Path prompts;
  }

  @Override
  public Integer call() throws Exception {
    maxNewTokens.value();
    Limits.atLeast(1, "--batch-size", batchSize);
    if (stops.contains("")) {
      throw new UserException("--stop must be a text that is not empty");
    }
    generation.check();
    var prompts =
        input.prompt != null
            ? List.of(new PromptLine(input.prompt, Jsonl.JSON.createObjectNode(), "--prompt"))
            : Jsonl.read(input.prompts, PromptLine::of);
    if (prompts.isEmpty()) {
      throw new UserException(input.prompts + ": no prompt in it");
    }
    for (var name : PromptLine.misspelt(prompts)) {
      LOG.warn("{}: {}", input.prompts, name);
    }
    var spec = model.spec(config.load(), 1);
    generation.check(spec.basePath());
    try (var loaded =
        LoadedModel.load(
            spec, Collective.single(), new LoadedModel.Room(batchSize, maxNewTokens.orDefault()))) {
      var printer = new Printer(loaded, prompts);
      loaded.generator().generate(printer.requests(), batchSize, printer);
      if (printer.skipped > 0) {
        LOG.error("{} of {} prompts could not be answered", printer.skipped, prompts.size());
      }
      return printer.skipped > 0 ? 1 : 0;
    }
  }

  /** Prints answers in the order of the prompts: one's text as it comes once it is its turn. */
  private final class Printer implements AnswerListener {
    private final LoadedModel model;
    private final List<PromptLine> prompts;
    private final List<Answer> answers = new ArrayList<>();
    private int turn;
    private int skipped;

    Printer(LoadedModel model, List<PromptLine> prompts) {
      this.model = model;
      this.prompts = prompts;
    }

    /** Of the prompts that can be encoded, with the settings that they can have. */
    List<Request> requests() {
      var requests = new ArrayList<Request>();
      for (var prompt : prompts) {
        try {
          var ends = new StopTexts(model.tokenizer(), prompt.stops(stops));
          requests.add(
              prompt.request(
                  model.tokenizer().encode(prompt.text(), true),
                  model,
                  generation.given(),
                  maxNewTokens.orDefault(),
                  ends));
          answers.add(new Answer(prompt, ends));
        } catch (UserException e) {
          skip(prompt, e);
        }
      }
      return requests;
    }

    private void skip(PromptLine prompt, UserException reason) {
      if (input.prompt != null) {
        throw reason;
      }
      LOG.error("{}: {}: skipped", prompt.where(), reason.getMessage());
      skipped++;
    }

    @Override
    public void onToken(int request, int token) {
      if (!json.isGiven()) {
        answers.get(request).stream.add(token); // a text takes time: when it is its turn
        if (request == turn) {
          print(answers.get(turn).stream.fresh());
        }
      }
    }

    @Override
    public void onAnswer(int request, int[] tokens) {
      var answer = answers.get(request);
      end(
          request,
          () ->
              (json.isGiven() ? answer.line(tokens) : answer.stream.rest())
                  + System.lineSeparator());
    }

    @Override
    public void onFailure(int request, UserException reason) {
      var answer = answers.get(request);
      skip(answer.prompt, reason);
      end(request, answer.stream::fresh);
    }

    private void end(int request, Supplier<String> rest) {
      answers.get(request).rest = rest;
      if (request == turn) {
        while (turn < answers.size() && answers.get(turn).rest != null) {
          print(answers.get(turn++).rest.get());
        }
        if (turn < answers.size()) {
          print(answers.get(turn).stream.fresh());
        }
      }
    }

    private static void print(String text) {
      System.out.print(text);
      System.out.flush();
    }
  }

  /** An answer in the making. */
  private static final class Answer {
    final PromptLine prompt;
    final StopTexts ends;
    final TextStream stream;
    Supplier<String> rest; // what is still to be printed of one that has ended

    Answer(PromptLine prompt, StopTexts ends) {
      this.prompt = prompt;
      this.ends = ends;
      this.stream = new TextStream(ends);
    }

    String line(int[] tokens) {
      var node = Jsonl.JSON.createObjectNode().put("prompt", prompt.text());
      node.put("text", ends.before(tokens)).set("token_ids", Jsonl.JSON.valueToTree(tokens));
      return node.toString();
    }
  }
}
